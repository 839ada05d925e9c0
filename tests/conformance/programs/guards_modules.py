"""Guards on `nn.Module`: parameters, buffers, children, hooks, training mode, and what torch keeps beside them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


def linear(width: int, start: int = -3) -> nn.Linear:
    """A square layer of small whole numbers."""
    layer = nn.Linear(width, width)
    layer.weight.copy_(whole(width, width, start=start))
    layer.bias.copy_(whole(width))
    return layer


@program(traces=1)
def a_parameter_is_updated_replaced_and_loaded(play: Play) -> None:
    net = play.jit(nn.Sequential(linear(3), nn.ReLU()))
    play(net, whole(2, 3))
    net[0].weight.mul_(2)
    play(net, whole(2, 3))
    net[0].weight = nn.Parameter(whole(3, 3, start=5))
    play(net, whole(2, 3))
    net[0].weight.data = whole(3, 3, start=8)
    play(net, whole(2, 3))
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    play(net, whole(2, 3))


@program(traces=3)
def weights_are_tied_and_untied(play: Play) -> None:
    net = nn.Sequential(linear(3), linear(3, start=2))

    def f(x: torch.Tensor) -> torch.Tensor:
        net[0].weight.add_(1)
        return net(x)

    jitted = play.jit(f)
    play(jitted, whole(2, 3))
    play(jitted, whole(2, 3))
    net[1].weight = net[0].weight
    play(jitted, whole(2, 3))
    play(jitted, whole(2, 3))
    net[1].weight = nn.Parameter(net[0].weight.clone())
    play(jitted, whole(2, 3))


@program(traces=4)
def children_are_replaced_reordered_and_added(play: Play) -> None:
    net = play.jit(nn.Sequential(linear(3), nn.ReLU()))
    play(net, whole(2, 3))
    play(net, whole(2, 3))
    net[1] = nn.Hardtanh(-2.0, 2.0)
    play(net, whole(2, 3))
    net[0], net[1] = net[1], net[0]
    play(net, whole(2, 3))
    net.append(nn.Flatten(0))
    play(net, whole(2, 3))
    play(net, whole(2, 3))


@program(traces=4)
def module_lists_and_dicts_are_changed(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([linear(3), linear(3)])
            self.heads = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Identity()})
            self.shift = nn.ParameterDict({"s": nn.Parameter(whole(3))})

        def forward(self, x: torch.Tensor, head: str = "a") -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.heads[head](x) + sum(self.shift.values())

    net = play.jit(Net())
    play(net, whole(2, 3))
    play(net, whole(2, 3))
    play(net, whole(2, 3), "b")
    net.layers.insert(0, linear(3, start=1))
    play(net, whole(2, 3))
    net.shift["t"] = nn.Parameter(whole(3, start=9))
    play(net, whole(2, 3))
    play(net, whole(2, 3))


@program(traces=3)
def training_changes_in_one_child_only(play: Play) -> None:
    net = play.jit(nn.Sequential(nn.Identity(), nn.Sequential(nn.Dropout(0.5), nn.ReLU())).eval())
    play(net, whole(2, 8))
    play(net, whole(2, 8))
    net[1][0].train()
    play(net, whole(2, 8))
    play(net, whole(2, 8))
    net[1][0].p = 0.25
    play(net, whole(2, 8))
    play(net, whole(2, 8))


@program(traces=2, exact=False)
def batch_norm_is_switched_between_training_and_evaluation(play: Play) -> None:
    net = play.jit(nn.BatchNorm1d(3))
    for mode in (True, True, True, False, False, True, False):
        net.train(mode)
        play(net, whole(4, 3))


@program(traces=6)
def hooks_are_added_changed_and_removed(play: Play) -> None:
    net = play.jit(nn.Sequential(linear(3), nn.ReLU()))
    play(net, whole(2, 3))
    play(net, whole(2, 3))
    handle = net[0].register_forward_hook(lambda module, args, output: output + 1)
    play(net, whole(2, 3))
    play(net, whole(2, 3))
    before = net.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    play(net, whole(2, 3))
    play(net, whole(2, 3))
    handle.remove()
    play(net, whole(2, 3))
    before.remove()
    play(net, whole(2, 3))
    play(net, whole(2, 3))


@program(traces=3)
def a_hook_on_all_modules_is_added_and_removed(play: Play) -> None:
    net = play.jit(nn.Sequential(nn.ReLU(), nn.Identity()))
    play(net, whole(4))
    play(net, whole(4))
    handle = register_module_forward_hook(lambda module, args, output: output + 1)
    try:
        play(net, whole(4))
        play(net, whole(4))
    finally:
        handle.remove()
    play(net, whole(4))
    play(net, whole(4))


@program(traces=3)
def forward_is_replaced_on_an_instance_and_on_its_class(play: Play) -> None:
    class Act(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    act = Act()
    net = play.jit(nn.Sequential(act, nn.Identity()))
    play(net, whole(5))
    play(net, whole(5))
    Act.forward = lambda self, x: x * 7  # type: ignore[method-assign]
    play(net, whole(5))
    play(net, whole(5))
    act.forward = lambda x: x - 1  # type: ignore[method-assign]
    play(net, whole(5))
    play(net, whole(5))


@program(traces=4)
def a_buffer_is_replaced_removed_and_hidden(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", whole(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if self.mask is None else x * self.mask

    net: Any = play.jit(Net())
    play(net, whole(3))
    net.mask = whole(3, start=7)
    play(net, whole(3))
    net.mask = None
    play(net, whole(3))
    play(net, whole(3))
    vars(net)["mask"] = whole(3, start=30)
    play(net, whole(3))
    play(net, whole(3))


@program(traces=3)
def the_dtype_of_a_model_changes_and_comes_back(play: Play) -> None:
    net = play.jit(linear(3))
    play(net, whole(2, 3))
    net.double()
    play(net, whole(2, 3, dtype=torch.float64))
    play(net, whole(2, 3, dtype=torch.float64))
    net.float()
    play(net, whole(2, 3))
    play(net, whole(2, 3, dtype=torch.float64))


@program(traces=3)
def a_parametrization_is_added_and_removed(play: Play) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    net = nn.Sequential(linear(3))
    f = play.jit(lambda x: net(x))
    play(f, whole(2, 3))
    play(f, whole(2, 3))
    parametrize.register_parametrization(net[0], "weight", Doubled())
    play(f, whole(2, 3))
    net[0].parametrizations.weight.original.add_(1)
    play(f, whole(2, 3))
    parametrize.remove_parametrizations(net[0], "weight")
    play(f, whole(2, 3))
    play(f, whole(2, 3))


# A copy of a jitted module is as a copy of the original: it is not jitted.
@program(compiled=False)
def a_copy_of_a_jitted_module_goes_its_own_way(play: Play) -> None:
    net = play.jit(nn.Sequential(linear(3), nn.ReLU()))
    play(net, whole(2, 3))
    twin = copy.deepcopy(net)
    twin[0].weight.add_(1)
    twin[1] = nn.Identity()
    for model in (net, twin, net, twin):
        play(model, whole(2, 3))


@program(traces=2)
def parameters_are_walked_and_one_is_frozen(play: Play) -> None:
    net = nn.Sequential(linear(3), linear(3))
    f = play.jit(lambda x: sum((x * p.sum() for p in net.parameters() if p.requires_grad), x))
    play(f, whole(3))
    play(f, whole(3))
    net[0].weight.requires_grad_(False)
    play(f, whole(3))
    play(f, whole(3))


@program(traces=1)
def equal_layers_share_a_program(play: Play) -> None:
    layers = nn.ModuleList(nn.Sequential(linear(3, start=n), nn.ReLU()) for n in range(6))
    block = play.jit(lambda layer, x: layer(x))
    play(block, layers[0], whole(2, 3))
    for layer in layers:
        play(block, layer, whole(2, 3))


@program(traces=2)
def extra_state_and_plain_attributes_of_a_module(play: Play) -> None:
    class Net(nn.Module):
        gain = 2.0

        def __init__(self) -> None:
            super().__init__()
            self.settings = {"shift": 1.0}
            self.register_parameter("bias", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * self.gain + self.settings["shift"]
            return x if self.bias is None else x + self.bias

    net: Any = play.jit(Net())
    play(net, whole(3))
    play(net, whole(3))
    net.settings["shift"], net.gain, net.bias = 5.0, 3.0, nn.Parameter(whole(3))
    play(net, whole(3))
    play(net, whole(3))
