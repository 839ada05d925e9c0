"""Modules that changed after their first compiled call: weights, submodules, hooks, modes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program


def linear(value: float, inputs: int = 2, outputs: int = 2) -> nn.Linear:
    """Small whole numbers, so that the order of additions does not matter."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def double_first(module: nn.Module, values: Any, *rest: Any) -> Any:
    """A hook: values go on with the first one doubled."""
    return (2 * values[0], *values[1:])


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sub = linear(1.0)

    def forward(self, x: torch.Tensor) -> Any:
        return self.sub(x)


@program(traces=2)
def layer_added_in_an_attribute(play: Play) -> None:
    """pytorch/pytorch#120958: a LoRA layer that was set on a compiled module, or taken off, was not noticed."""

    class Adapted(nn.Linear):
        extra: nn.Module | None = None

        def forward(self, x: torch.Tensor) -> Any:
            out = super().forward(x)
            return out if self.extra is None else out + self.extra(x)

    module = Adapted(2, 2, bias=False)
    nn.init.constant_(module.weight, 1.0)
    f = play.jit(module)
    for extra in (None, None, linear(3.0), linear(5.0), None):
        module.extra = extra
        play(f, torch.arange(2.0))


@program(traces=2)
def submodule_shadowed_by_an_instance_attribute(play: Play) -> None:
    """pytorch/pytorch#197859: an entry of `__dict__` that hides a submodule of the same name was not noticed."""
    model = Wrapper()
    f = play.jit(model)
    for _ in range(2):
        play(f, torch.arange(2.0))
    object.__setattr__(model, "sub", linear(5.0))
    for _ in range(2):
        play(f, torch.arange(2.0))
    object.__delattr__(model, "sub")
    play(f, torch.arange(2.0))


@program(traces=1)
def submodule_replaced_by_one_like_it(play: Play) -> None:
    """pytorch/pytorch#98928: attributes of a module that changed after the first call were not noticed."""
    model = Wrapper()
    f = play.jit(model)
    for value in (1.0, 1.0, 5.0, 7.0):
        model.sub = linear(value)
        play(f, torch.arange(2.0))


@program(traces=2)
def forward_hook_registered_later(play: Play) -> None:
    """pytorch/pytorch#117758: forward hooks registered after the first call did not run."""
    model = nn.Sequential(linear(1.0), nn.ReLU(), linear(2.0))
    f = play.jit(model)
    for _ in range(2):
        play(f, torch.arange(2.0))
    handle = model[0].register_forward_hook(lambda module, args, out: out + 1)
    for _ in range(2):
        play(f, torch.arange(2.0))
    handle.remove()
    for _ in range(2):
        play(f, torch.arange(2.0))


@program(traces=2)
def forward_replaced_on_the_instance(play: Play) -> None:
    """pytorch/pytorch#117265 (comment): a `forward` that was set on the instance was ignored."""
    model = Wrapper()
    f = play.jit(model)
    for _ in range(2):
        play(f, torch.arange(2.0))
    vars(model.sub)["forward"] = lambda x: 3.0 * x
    for _ in range(2):
        play(f, torch.arange(2.0))
    del model.sub.forward
    play(f, torch.arange(2.0))


@program(compiled=False, grad=True)
def backward_hook_registered_later(play: Play) -> None:
    """pytorch/pytorch#117265: a full backward pre-hook that was registered after the first call did not run."""
    model = Wrapper()
    f = play.jit(model)
    for round in range(4):
        x = torch.ones(2, requires_grad=True)
        out = play(f, x)
        out.sum().backward()
        play.note("gradient", x.grad)
        if round == 1:
            model.sub.register_full_backward_pre_hook(double_first)


@program(compiled=False, grad=True)
def backward_hook_on_the_inputs(play: Play) -> None:
    """pytorch/pytorch#115750: a full backward hook that was registered after the first call did not run."""
    model = Wrapper()
    f = play.jit(model)
    for round in range(4):
        x = torch.ones(2, requires_grad=True)
        out = play(f, x)
        out.sum().backward()
        play.note("gradient", x.grad)
        if round == 1:
            model.sub.register_full_backward_hook(double_first)


@program(traces=2)
def global_forward_pre_hook(play: Play) -> None:
    """pytorch/pytorch#149502: a global forward pre-hook made a compiled model's inference results wrong."""
    f = play.jit(Wrapper())
    for _ in range(2):
        play(f, torch.arange(2.0))
    handle = nn.modules.module.register_module_forward_pre_hook(double_first)
    try:
        for _ in range(2):
            play(f, torch.arange(2.0))
    finally:
        handle.remove()
    play(f, torch.arange(2.0))


@program(traces=1)
def state_dict_loaded_by_assignment(play: Play) -> None:
    """pytorch/pytorch#129362: `load_state_dict(assign=True)` had no effect on a compiled forward."""
    model = Wrapper()
    vars(model)["forward"] = play.jit(model.forward)
    for value in (1.0, 1.0, 4.0, 6.0):
        model.load_state_dict({"sub.weight": torch.full((2, 2), value)}, assign=True)
        play(model, torch.arange(2.0))


@program(traces=2)
def state_dict_loaded_between_eval_and_train(play: Play) -> None:
    """pytorch/pytorch#104984: weights were frozen as of the first call in eval mode under `no_grad`."""
    model = nn.Sequential(linear(1.0), nn.ReLU())
    f = play.jit(model)
    for value in (1.0, 4.0, 6.0):
        model.load_state_dict({"0.weight": torch.full((2, 2), value)})
        model.eval()
        play(f, torch.arange(2.0))
        model.train()
        play(f, torch.arange(2.0))


@program(traces=2)
def training_flag_toggled(play: Play) -> None:
    """pytorch/pytorch#105653: a changed `training` flag of a module was not noticed."""

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if self.training else x + 100

    model = Doubled()
    f = play.jit(model)
    for training in (True, True, False, False, True, False):
        model.train(training)
        play(f, torch.arange(2.0))


@program(traces=2, exact=False)
def running_statistics_of_a_batch_norm(play: Play) -> None:
    """tinygrad/tinygrad#17206: in training, running statistics were not updated since nothing read them."""
    model = nn.BatchNorm1d(3)
    f = play.jit(model)
    for training in (True, True, True, False, True, False, False):
        model.train(training)
        play(f, torch.randn(8, 3) * 2 + 1)


@program(traces=None, exact=False)
def batch_norm_with_a_cumulative_average(play: Play) -> None:
    """pytorch/pytorch#194504: a batch norm with `momentum=None`, whose factor is a number of a tensor, failed."""
    model = nn.BatchNorm1d(3, momentum=None)
    f = play.jit(model)
    for _ in range(4):
        play(f, torch.randn(8, 3) * 2 + 1)


@program(exact=False)
def batch_norm_then_group_norm_in_eval_mode(play: Play) -> None:
    """pytorch/pytorch#181696: batch norm in eval mode, folded, before a group norm gave differences above 1."""
    model = nn.Sequential(nn.BatchNorm1d(10), nn.ELU(), nn.GroupNorm(5, 10)).eval()
    f = play.jit(model)
    for _ in range(3):
        play(f, torch.randn(6, 10, 12))


@program(compiled=False, grad=True)
def parameters_frozen_and_thawed(play: Play) -> None:
    """pytorch/pytorch#139476: a program made for frozen parameters was used after they required gradients."""
    model = Wrapper()
    f = play.jit(model)
    for required in (False, False, True, True, False):
        model.sub.weight.requires_grad_(required)
        play(f, torch.arange(2.0))


@program(exact=False)
def weight_norm_parametrization(play: Play) -> None:
    """pytorch/pytorch#121304: a layer with the weight norm parametrization could not be run at all."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), dim=0).eval()
    f = play.jit(model)
    for scale in (1.0, 1.0, 2.0):
        model.parametrizations.weight.original0.fill_(scale)
        play(f, torch.randn(2, 3))


@program(traces=2)
def deep_copy_of_a_compiled_module(play: Play) -> None:
    """pytorch/pytorch#128121: a deep copy of a compiled model could not be compiled in its turn."""
    model = Wrapper()
    f = play.jit(model)
    for _ in range(2):
        play(f, torch.arange(2.0))
    twin = play.jit(copy.deepcopy(model))
    twin.sub.weight.fill_(9.0)
    for _ in range(2):
        play(twin, torch.arange(2.0))
        play(f, torch.arange(2.0))
