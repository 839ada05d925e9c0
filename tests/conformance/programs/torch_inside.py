"""Features of torch that are used inside the call: modes, hooks, reparametrized weights, checkpoints, transforms."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(whole(outputs, inputs))
        layer.bias.copy_(whole(outputs))
    return layer


def train(play: Play, step: Any, parameters: list[torch.Tensor], count: int = 4) -> None:
    """A step for each batch, with a backward outside the call."""
    for start in range(count):
        result = play(step, whole(4, 3, start=start))
        for parameter in parameters:
            parameter.grad = None
        result.sum().backward()
        play.note("gradients", [parameter.grad for parameter in parameters])


@program(traces=1, grad=True)
def a_target_is_computed_without_gradients(play: Play) -> None:
    online, target = linear(3, 2), linear(3, 2)

    def f(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            goal = target(x)
        error = online(x) - goal.detach()
        return (error * error).sum()

    train(play, play.jit(f), [online.weight, online.bias])


@program(traces=2, exact=False)
def autocast_is_entered_inside(play: Play) -> None:
    layer = linear(3, 2)

    def f(x: torch.Tensor, enabled: bool) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = layer(x)
            with torch.autocast("cpu", enabled=False):
                z = layer(x.float())
        return y.float() + z

    jitted = play.jit(f)
    for enabled in (True, False, True, False):
        play(jitted, whole(4, 3), enabled)


with warnings.catch_warnings():  # of torch's, about what the first transform of a process loads
    warnings.simplefilter("ignore")
    torch.func.jvp(lambda v: v * v, (torch.ones(1),), (torch.ones(1),))
    torch.func.vmap(torch.func.grad(lambda v: (v * v).sum()))(torch.ones(1, 1))


@program(traces=None, exact=False)
def functions_are_transformed_inside(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        squares = torch.func.vmap(lambda row: (row * row).sum())(x)
        slopes = torch.func.vmap(torch.func.grad(lambda row: (row * row).sum()))(x)
        value, tangent = torch.func.jvp(lambda v: v * v, (x,), (torch.ones_like(x),))
        return squares, slopes, value, tangent

    jitted = play.jit(f)
    for start in range(3):
        play(jitted, whole(4, 3, start=start))


@program(traces=2, grad=True)
def layers_are_checkpointed(play: Play) -> None:
    layers = nn.Sequential(linear(3, 2), nn.ReLU(), linear(2, 2))

    def f(x: torch.Tensor) -> torch.Tensor:
        y = checkpoint(layers, x, use_reentrant=False)
        return checkpoint_sequential([layers[1], layers[2]], 2, y, use_reentrant=False).sum()

    train(play, play.jit(f), list(layers.parameters()))


@program(traces=2, grad=True, exact=False)
def a_weight_has_a_norm_of_its_own(play: Play) -> None:
    layers = nn.Sequential(weight_norm(linear(3, 2)), parametrizations.weight_norm(linear(2, 2)))
    train(play, play.jit(layers), list(layers.parameters()))


@program(traces=3, grad=True, exact=False)
def a_weight_is_divided_by_its_largest_singular_value(play: Play) -> None:
    layers = nn.Sequential(parametrizations.spectral_norm(linear(3, 2)), nn.utils.spectral_norm(linear(2, 2)))
    play.watch(layers=layers)
    train(play, play.jit(layers), list(layers.parameters()))
    layers.eval()
    play(play.jit(layers), whole(4, 3))


@program(traces=3)
def hooks_keep_activations_by_name(play: Play) -> None:
    net = nn.Sequential(linear(3, 2), nn.ReLU(), linear(2, 2))
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            kept[name] = output.detach()

        return hook

    handles = [child.register_forward_hook(keep(name)) for name, child in net.named_children()]
    f = play.jit(net)
    play.watch(kept=kept)
    for start in range(3):
        play(f, whole(4, 3, start=start))
    for handle in handles:
        handle.remove()
    play(f, whole(4, 3))
    play(f, whole(4, 3, start=5))


@program(traces=2)
def hooks_take_keywords(play: Play) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
            return x * scale

    net = Net()
    net.register_forward_pre_hook(lambda m, args, kwargs: (args, {**kwargs, "scale": 3.0}), with_kwargs=True)
    net.register_forward_hook(lambda m, args, kwargs, out: out + kwargs["scale"], with_kwargs=True)
    f = play.jit(net)
    for start in range(3):
        play(f, whole(3, start=start), scale=2.0)


@program(traces=2)
def data_is_written_past_autograd(play: Play) -> None:
    weight = nn.Parameter(whole(3))

    def f(x: torch.Tensor) -> torch.Tensor:
        weight.data.mul_(2)
        weight.data[0] = x.sum()
        weight.data.copy_(weight.data + 1)
        return weight.detach() * x

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(3, start=start))


@program(traces=2)
def data_of_an_intermediate_is_replaced(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.data = y.data + 1
        y.data = y.data * (y.data > 0)
        return y - 1

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(3, start=start))


@program(traces=2, grad=True)
def data_of_a_result_with_gradients_is_replaced(play: Play) -> None:
    layer = linear(3, 2)

    def f(x: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        y.data = y.data.clamp(min=0)
        return y * 2

    train(play, play.jit(f), [layer.weight, layer.bias])


@program(traces=None)
def weights_are_averaged_by_data(play: Play) -> None:
    online, average = linear(3, 2), linear(3, 2)

    def f(x: torch.Tensor) -> torch.Tensor:
        for mine, theirs in zip(average.parameters(), online.parameters(), strict=True):
            mine.data = mine.data * 0.5 + theirs.data * 0.5
        return average(x)

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(4, 3, start=start))


@program(traces=2, grad=True)
def tensors_have_hooks_of_their_own(play: Play) -> None:
    layer = linear(3, 2)

    def f(x: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 2)
        return y.sum()

    train(play, play.jit(f), [layer.weight, layer.bias])


@program(traces=None, grad=True)
def modes_of_gradients_are_nested(play: Play) -> None:
    layer = linear(3, 2)

    def f(x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(x.sum().item() > 0):
            y = layer(x)
        with torch.inference_mode():
            z = (y * 2).sum().item()
        return (y * z).sum() if y.requires_grad else layer(x).sum()

    train(play, play.jit(f), [layer.weight, layer.bias])


@program(grad=True)
def weights_are_decayed_in_the_loss(play: Play) -> None:
    net = nn.Sequential(linear(3, 2), linear(2, 2))

    def f(x: torch.Tensor) -> torch.Tensor:
        loss = net(x).sum()
        return loss + 0.5 * sum((p * p).sum() for name, p in net.named_parameters() if "bias" not in name)

    train(play, play.jit(f), list(net.parameters()))


@program(traces=3, exact=False)
def recurrent_and_attending_layers(play: Play) -> None:
    torch.manual_seed(1)
    rnn, attention = nn.LSTM(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

    def f(x: torch.Tensor) -> tuple[Any, ...]:
        out, (hidden, cell) = rnn(x)
        mixed, weights = attention(out, out, x, need_weights=True)
        return mixed, weights, hidden, cell

    jitted = play.jit(f)
    for batch, length in ((2, 3), (2, 3), (3, 3), (2, 3)):
        play(jitted, torch.randn(batch, length, 4))


@program(exact=False)
def an_encoder_of_torchs_own(play: Play) -> None:
    torch.manual_seed(1)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    f = play.jit(encoder.eval())
    mask = torch.zeros(2, 5, dtype=torch.bool)
    for _ in range(3):
        play(f, torch.randn(2, 5, 8), src_key_padding_mask=mask)


@program(traces=None, compiled=False)
def numbers_of_python_are_drawn_with_a_seed(play: Play) -> None:
    generator = random.Random(5)

    def f(x: torch.Tensor) -> torch.Tensor:
        return x * generator.randint(1, 5) + random.choice([1.0, 2.0, 3.0])

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(3))
        play.note("state", generator.random())


@program(traces=None, exact=False)
def layers_are_dropped_at_random(play: Play) -> None:
    layers = nn.ModuleList([linear(3, 3) for _ in range(3)])

    def f(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            if torch.rand([]) < 0.5:
                continue
            x = layer(x) * 0.125
        return x

    jitted = play.jit(f)
    for _ in range(12):
        play(jitted, whole(2, 3))


@program(traces=2)
def rows_of_an_embedding_are_renormalized(play: Play) -> None:
    table = nn.Embedding(5, 2, max_norm=2.0, padding_idx=0)
    with torch.no_grad():
        table.weight.copy_(whole(5, 2) * 4)
    f = play.jit(table)
    play.watch(table=table)
    for tokens in ([0, 1], [1, 2], [3, 4], [1, 3]):
        play(f, torch.tensor(tokens))


@program(traces=None)
def what_a_tensor_is_is_asked(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(x.dtype).min if x.is_floating_point() else torch.iinfo(x.dtype).min
        assert torch.is_tensor(x) and not isinstance(x, nn.Parameter) and x.is_leaf and x.grad_fn is None
        if x.is_cuda or x.device.type != "cpu" or torch.jit.is_scripting() or torch.compiler.is_compiling():
            return x
        y = x.new_zeros(x.size()).type_as(x) + torch.empty_like(x).fill_(2)
        return torch.where(x > 0, x, lowest) + y.to(x.device, x.dtype) * x.element_size() + x.numel() + x.ndim

    jitted = play.jit(f)
    for dtype in (torch.float32, torch.int64, torch.float32, torch.int64):
        play(jitted, whole(4, dtype=dtype))


@program(traces=2)
def an_average_over_all_batches(play: Play) -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.tensor(0, dtype=torch.long))
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            factor = 1.0 / float(self.seen)
            self.mean = self.mean * (1.0 - factor) + x.sum(0) * factor
            return x - self.mean

    f = play.jit(Average())
    for start in range(6):
        play(f, whole(2, 3, start=start))


@program(traces=None, grad=True)
def a_penalty_on_gradients(play: Play) -> None:
    layer = linear(3, 1)

    def f(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((layer(x) ** 2).sum(), x)
        return (slope * slope).sum().detach()

    jitted = play.jit(f)
    for start in range(3):
        play(jitted, whole(4, 3, start=start))


@program(traces=None)
def heads_are_chosen_by_name(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"a": linear(3, 1), "b": linear(3, 2)})
            self.scales = nn.ParameterDict({"a": nn.Parameter(torch.tensor(2.0))})

        def forward(self, x: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            return {name: self.heads[name](x) * self.scales.get(name, 1.0) for name in names if name in self.heads}

    f = play.jit(Net())
    for names in (("a",), ("a", "b"), ("a",), ("b", "c"), ("b", "c"), ("a", "b")):
        play(f, whole(2, 3), names)


@program(traces=2, exact=False)
def images_are_resized_by_their_sizes(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(x, scale_factor=0.5, mode="nearest")
        back = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return back + F.adaptive_avg_pool2d(x, 1) * math.prod(x.shape[-2:])

    jitted = play.jit(f)
    for size in (4, 4, 4):
        play(jitted, whole(1, 1, size, size))
