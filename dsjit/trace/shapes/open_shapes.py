"""Which shapes a program for many sizes serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from dsjit.ir.graph import TensorType
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.polynomial import Polynomial
from dsjit.ir.template import Made, Open, Template, compile_filling
from dsjit.trace.looks.outcome import SMALLEST
from dsjit.trace.reads.facts import Fact, TensorOf
from dsjit.trace.reads.paths import Path
from dsjit.trace.shapes.size_rules import keeps_shape_rules, meets

__all__ = ["OpenShapes"]

SHAPES_REMEMBERED: Final = 4096


@dataclass(slots=True, eq=False)
class OpenShapes:
    """sources: where each open size is read, as (input number, dimension). template: the Graph for the sizes.

    ruled: the part of it whose shapes are checked (`size_rules`).
    conditions: Python expressions in s0, s1, ... that hold. smallest: of an open size itself; what is computed from
        them must be SMALLEST or more.
    """

    sources: tuple[tuple[int, int], ...]
    template: GraphTemplate
    ruled: GraphTemplate
    conditions: tuple[str, ...]
    smallest: int = SMALLEST
    _inputs: tuple[int, ...] = field(init=False)
    _extents: tuple[tuple[Polynomial, int], ...] = field(init=False)
    _layouts: Callable[..., tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = field(init=False)
    _allows: Callable[..., bool] = field(init=False)
    _known: dict[Any, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs = self.template.inputs
        self._inputs = tuple([number for number, type_ in enumerate(inputs) if isinstance(type_, Made)])
        extents: dict[int, None] = {}
        _open_extents(self.template.structure, extents)
        polynomials = [self.template.sizes[number] for number in extents]
        self._extents = tuple([(each, self.smallest if each.is_variable else SMALLEST) for each in polynomials])
        layouts = [_layout(inputs[number]) for number in self._inputs]
        self._layouts = compile_filling(layouts, self.template.sizes, len(self.sources))
        ranges = [f"{extent} >= {smallest}" for extent, smallest in self._extents]
        names = ", ".join([f"s{number}" for number in range(len(self.sources))])
        rules = " and ".join([f"({each})" for each in (*ranges, *self.conditions)]) or "True"
        self._allows = eval(f"lambda {names}: {rules}", {"max": max, "min": min})

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs, by number, whose shapes are open."""
        return self._inputs

    @property
    def typical(self) -> tuple[int, ...]:
        """What the open sizes were."""
        inputs = self.template.example.inputs
        return tuple([inputs[number].type.shape[dim] for number, dim in self.sources])

    def admits(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether inputs of these shapes and strides are served. Quick for those that were met before."""
        key = tuple([(inputs[number].shape, inputs[number].stride()) for number in self._inputs])
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= SHAPES_REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._serves(inputs)
        return known

    def _serves(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether `why_not` says nothing."""
        point = tuple([inputs[number].shape[dim] for number, dim in self.sources])
        layouts = tuple([(inputs[number].shape, inputs[number].stride()) for number in self._inputs])
        return self._allows(*point) and layouts == self._layouts(*point) and self._keeps_rules(point)

    def why_not(self, inputs: Sequence[torch.Tensor]) -> str | None:
        """What keeps these inputs from being served, in words."""
        point = tuple([inputs[number].shape[dim] for number, dim in self.sources])
        for extent, smallest in self._extents:
            if extent.at(point) < smallest:
                return f"the size {extent} is {extent.at(point)}, and must be {smallest} or more"
        for number, layout in zip(self._inputs, self._layouts(*point), strict=True):
            shape, strides = tuple(inputs[number].shape), inputs[number].stride()
            if (shape, strides) != layout:
                expected = f"shape {layout[0]}, strides {layout[1]}"
                return f"input {number} has shape {shape}, strides {strides}, not {expected}"
        broken = self.broken_condition(point)
        if broken is not None:
            return f"{broken} does not hold"
        if not self._keeps_rules(point):
            return "an index, or the shape of a result, is beyond what was recorded"
        return None

    def _keeps_rules(self, point: Sequence[int]) -> bool:
        recorded = self.ruled.example
        return not recorded.nodes or keeps_shape_rules(self.ruled.at(point), recorded)

    def serves_typical(self) -> bool:
        """Whether the sizes that the call had are not too small for what it was made into."""
        return all(extent.at(self.typical) >= smallest for extent, smallest in self._extents)

    def pattern(self, number: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Shape and strides of an input, None where they are open."""
        type_ = self.template.inputs[number]
        assert isinstance(type_, Made)
        example = self.template.example.inputs[number].type
        shape, strides = (_free(type_.parts[0], example.shape), _free(type_.parts[2], example.strides))
        return shape, strides

    def open_facts(self, facts: Sequence[Fact], input_paths: Sequence[Path]) -> list[Fact]:
        """The facts, with free sizes and steps where the inputs, which are at these paths, have open ones."""
        patterns = {input_paths[number]: self.pattern(number) for number in self.inputs}
        found: list[Fact] = []
        for fact in facts:
            if fact.path in patterns and isinstance(fact.expectation, TensorOf):
                shape, strides = patterns[fact.path]
                pattern = replace(fact.expectation, shape=shape, strides=strides)
                fact = replace(fact, expectation=fact.expectation.freed(pattern))
            found.append(fact)
        return found

    def broken_condition(self, point: Sequence[int]) -> str | None:
        """The first condition that does not hold for these sizes."""
        return next((condition for condition in self.conditions if not meets(point, [condition])), None)

    def describe(self) -> list[str]:
        """The conditions, one a line."""
        ranges = [f"{extent} >= {smallest}" for extent, smallest in self._extents]
        return list(dict.fromkeys([*ranges, *self.conditions]))


def _open_extents(template: Template, found: dict[int, None]) -> None:
    """Collects the numbers of the open sizes that are extents of tensors."""
    if not isinstance(template, Made):
        return
    parts = template.parts
    if template.make is TensorType:
        shape = parts[0]
        if isinstance(shape, Made):
            found.update(dict.fromkeys([part.number for part in shape.parts if isinstance(part, Open)]))
        return
    for part in parts:
        _open_extents(part, found)


def _layout(type_: Template) -> Template:
    """Shape and strides of a tensor type with open sizes."""
    assert isinstance(type_, Made)
    return Made(tuple, (type_.parts[0], type_.parts[2]))


def _free(template: Template, example: tuple[int, ...]) -> tuple[int | None, ...]:
    if not isinstance(template, Made):
        return example
    return tuple([None if isinstance(part, Open) else size for part, size in zip(template.parts, example, strict=True)])
