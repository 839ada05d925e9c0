"""Guards of whole models: steady while nothing changes, failing on any one change anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dsjit.trace.guards.guard import Guard
from dsjit.trace.observe import Observer

IDS = torch.arange(8).reshape(2, 4)
IMAGES = torch.ones(1, 3, 32, 32)


class Bottleneck(nn.Module):
    """The residual block of ResNet-50 (He et al. 2015, figure 5 right)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width // 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(Bottleneck(8) for _ in range(3)))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def bert() -> nn.Module:
    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=16)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0))


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
            vocab_size=16,
        )
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "bert": (bert, IDS),
    "gpt2": (gpt2, IDS),
    "llama": (llama, IDS),
    "resnet": (ResNet, IMAGES),
}


@functools.cache
def warm_up() -> None:
    """Call each model once: transformers registers classes, and gives its warnings, at the first call."""
    for make, x in MODELS.values():
        make().eval()(x)


@functools.cache
def traced(name: str, native: bool) -> tuple[Guard, int]:
    """The guard of one call `model(x)` in inference, for any equal model; and the number of its input tensors."""
    make, x = MODELS[name]
    model = make().eval()

    def call(model: nn.Module, x: torch.Tensor) -> Any:
        return model(x)

    with torch.no_grad():
        warm_up()
        observer = Observer(call, (model, x), {})
        with observer:
            call(model, x)
        assert observer.problems == ()
        paths = [path for path, *_ in observer.tensors_met()]
        return observer.build_guard(paths, frozenset(), native=native), len(paths)


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _fresh(name: str) -> tuple[Any, tuple[Any, ...]]:
    make, x = MODELS[name]
    model = make().eval()
    return model, (model, x)


def test_an_unchanged_model_passes_and_gives_its_tensors(name: str, native: bool) -> None:
    guard, count = traced(name, native)
    model, args = _fresh(name)
    for _ in range(3):
        inputs = guard.check(args, {})
        assert inputs is not None and len(inputs) == count
        unused = {id(p) for name, p in model.named_parameters() if "pooler" in name}
        assert {id(p) for p in model.parameters()} - unused <= {id(tensor) for tensor in inputs}
    assert guard.why_not(args, {}) is None
    assert guard._residual == {}


def _leaf(model: nn.Module, kind: type[nn.Module]) -> Any:
    return [module for module in model.modules() if isinstance(module, kind)][-1]


def _training(model: nn.Module) -> None:
    model.train()


def _hook(model: nn.Module) -> None:
    list(model.modules())[-1].register_forward_hook(lambda *args: None)


def _other_shape(model: nn.Module) -> None:
    module = next(module for module in model.modules() if "weight" in module._parameters)
    module.weight = nn.Parameter(torch.ones(1))


def _other_dtype_in_place(model: nn.Module) -> None:
    parameter = list(model.parameters())[-1]
    parameter.data = parameter.data.double()


def _forward(model: nn.Module) -> None:
    module = list(model.modules())[-1]
    module.forward = module.forward


def _submodule(model: nn.Module) -> None:
    children = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    children[-1].append(nn.Identity())


@pytest.mark.parametrize(
    "change", [_training, _hook, _other_shape, _other_dtype_in_place, _forward, _submodule], ids=lambda f: f.__name__
)
def test_one_change_anywhere_fails(name: str, change: Callable[[nn.Module], None], native: bool) -> None:
    guard, _ = traced(name, native)
    model, args = _fresh(name)
    for _ in range(3):
        assert guard.check(args, {}) is not None
    change(model)
    assert guard.check(args, {}) is None
    assert guard.why_not(args, {}) is not None


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        ("bert", lambda m: setattr(m.config, "use_cache", not m.config.use_cache), "use_cache"),
        ("bert", lambda m: setattr(m.config, "_attn_implementation", "eager"), "_attn_implementation"),
        ("bert", lambda m: setattr(_leaf(m, nn.LayerNorm), "eps", 0.5), "eps"),
        ("bert", lambda m: setattr(_leaf(m, nn.Dropout), "p", 0.25), ".p: was 0.1, now 0.25"),
        ("gpt2", lambda m: setattr(m.config, "scale_attn_weights", False), "scale_attn_weights"),
        ("llama", lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.5), "layers[1].self_attn.scaling"),
        ("resnet", lambda m: setattr(_leaf(m, nn.BatchNorm2d), "momentum", 0.5), "args[0].blocks[2].bn2.momentum"),
        ("resnet", lambda m: setattr(_leaf(m, nn.Conv2d), "padding", (0, 0)), "args[0].blocks[2].conv2.padding"),
    ],
)
def test_a_changed_setting_fails_and_is_named(name: str, change: Callable[[Any], None], where: str) -> None:
    guard, _ = traced(name, native=True)
    model, args = _fresh(name)
    for _ in range(3):
        assert guard.check(args, {}) is not None
    change(model)
    assert guard.check(args, {}) is None
    assert where in (guard.why_not(args, {}) or "")


def test_weights_that_train_in_place_pass() -> None:
    guard, _ = traced("resnet", native=True)
    model, args = _fresh("resnet")
    for _ in range(3):
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert guard.check(args, {}) is not None
    model.load_state_dict(ResNet().state_dict())
    assert guard.check(args, {}) is not None


def test_going_to_train_and_back_passes_again(native: bool) -> None:
    guard, _ = traced("resnet", native)
    model, args = _fresh("resnet")
    for _ in range(3):
        assert guard.check(args, {}) is not None
        model.train()
        assert guard.check(args, {}) is None
        model.eval()
