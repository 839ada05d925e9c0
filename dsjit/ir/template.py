"""Structures with sizes left open: what several structures of equal form have in common, and how to make more of them.

`TemplateMaker.make` takes the same structure as it is at several points (choices of sizes) and returns a `Template`.
Where the structures hold different integers, a polynomial in the sizes takes their place. `Filling` then makes the
structure for other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import torch

from dsjit.ir.polynomial import Polynomial, PolynomialFit

__all__ = ["Fixed", "Made", "Mismatch", "Open", "Template", "TemplateMaker", "compile_filling", "fill"]


class Mismatch(Exception):
    """The structures differ in more than sizes; the message says where."""


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """The same everywhere."""

    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """Number `number` of the open sizes; as a float when `real`."""

    number: int
    real: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """`make(*parts)`; make is a class, or `tuple` of all the parts."""

    make: type
    parts: tuple[Template, ...]


Template: TypeAlias = Fixed | Open | Made


class TemplateMaker:
    """Makes Templates that share their open sizes. sizes: the polynomials of these, by number.

    fit: at the points to which the structures belong.
    """

    def __init__(self, fit: PolynomialFit) -> None:
        self.fit = fit
        self.sizes: dict[Polynomial, int] = {}

    def make(self, structures: Sequence[Any]) -> Template:
        """structures: tuples, dataclasses, numbers and opaque objects, one at each point. Raises Mismatch."""
        first = structures[0]
        kind = type(first)
        if all(other is first for other in structures):
            return Fixed(first)
        if any(type(other) is not kind for other in structures):
            raise Mismatch(f"{first!r} is a {kind.__name__} for some sizes only")
        if kind is int or kind is float:
            return self._number(structures)
        if isinstance(first, tuple):
            if any(len(other) != len(first) for other in structures):
                raise Mismatch(f"{first!r} has another length for other sizes")
            return self._made(kind, [self.make(parts) for parts in zip(*structures, strict=True)], first)
        if is_dataclass(first):
            names = [field.name for field in fields(first) if field.init]
            return self._made(kind, [self.make([getattr(s, name) for s in structures]) for name in names], first)
        if isinstance(first, torch.Tensor):
            same = all(torch.equal(first, other) for other in structures)
        else:
            same = all(first == other for other in structures)
        if not same:
            raise Mismatch(f"{first!r} is {structures[-1]!r} for other sizes")
        return Fixed(first)

    def make_mapping(self, structures: Sequence[Mapping[str, Any]]) -> dict[str, Template]:
        """The Templates of the values of dictionaries with equal keys."""
        names = list(structures[0])
        if any(list(other) != names for other in structures):
            raise Mismatch("other names are used for other sizes")
        return {name: self.make([structure[name] for structure in structures]) for name in names}

    def _number(self, numbers: Sequence[int | float]) -> Template:
        if all(repr(number) == repr(numbers[0]) for number in numbers):
            return Fixed(numbers[0])
        if not all(float(number).is_integer() for number in numbers):
            raise Mismatch(f"{numbers[0]} is {numbers[-1]} for other sizes")
        polynomial = self.fit.find(tuple([int(number) for number in numbers]))
        if polynomial is None:
            raise Mismatch(f"{numbers[0]} is {numbers[-1]} for other sizes, by no simple rule")
        number = self.sizes.setdefault(polynomial, len(self.sizes))
        return Open(number, isinstance(numbers[0], float))

    def _made(self, kind: type, parts: Sequence[Template], first: Any) -> Template:
        if all(isinstance(part, Fixed) for part in parts):
            return Fixed(first)
        return Made(kind, tuple(parts))


def fill(template: Template, sizes: Sequence[Any]) -> Any:
    """The structure with these numbers (or stand-ins for numbers) as its open sizes."""
    if isinstance(template, Fixed):
        return template.value
    if isinstance(template, Open):
        size = sizes[template.number]
        return float(size) if template.real and isinstance(size, int) else size
    parts = [fill(part, sizes) for part in template.parts]
    return tuple(parts) if template.make is tuple else template.make(*parts)


def compile_filling(
    templates: Sequence[Template], polynomials: Sequence[Polynomial], variables: int
) -> Callable[..., tuple[Any, ...]]:
    """A function of so many sizes that fills all templates, whose open sizes are these polynomials in the sizes.

    It does what `fill` does, without walking through the templates each time.
    """
    printer = _Printer()
    results = "".join([f"{printer.expression(template)}, " for template in templates])
    names = ", ".join([f"s{number}" for number in range(variables)])
    sizes = "".join([f"    n{number} = {polynomial}\n" for number, polynomial in enumerate(polynomials)])
    exec(compile(f"def filled({names}):\n{sizes}    return ({results})\n", "<dsjit sizes>", "exec"), printer.names)
    found: Callable[..., tuple[Any, ...]] = printer.names["filled"]
    return found


class _Printer:
    """Prints templates as Python expressions. names: what these refer to, but for n0, n1, ... (the open sizes)."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def expression(self, template: Template) -> str:
        if isinstance(template, Fixed):
            return self._name(template.value)
        if isinstance(template, Open):
            return f"float(n{template.number})" if template.real else f"n{template.number}"
        parts = "".join([f"{self.expression(part)}, " for part in template.parts])
        return f"({parts})" if template.make is tuple else f"{self._name(template.make)}({parts})"

    def _name(self, constant: Any) -> str:
        name = f"k{len(self.names)}"
        self.names[name] = constant
        return name
