"""What becomes of the tensors of a program: the function's result, and its effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dsjit.ir.template import fill
from dsjit.trace.capture import Capture
from dsjit.trace.effects.replay import Returned, ReturnedSize
from dsjit.trace.shapes.rehearsal import Rehearsal

__all__ = ["finisher", "open_finisher"]


def finisher(captured: Capture) -> Callable[[Any, Any, Any], Any]:
    """From input and output tensors, and the call's arguments, to the function's result (and its effects)."""
    recipe = captured.recipe
    assert recipe is not None
    if recipe.first_output:
        return lambda inputs, outputs, call: outputs[0]
    return recipe.finish if recipe.events or recipe.writes else recipe.make


def open_finisher(found: Rehearsal) -> Callable[[Any, Any, Any], Any]:
    """The same for a call of many sizes."""
    template, polynomials, shapes = found.returned, found.sizes, found.segments[-1].sizes
    sizes = [] if shapes is None else [polynomial.at(shapes.typical) for polynomial in polynomials]
    typical: tuple[Returned | ReturnedSize, ...] = fill(template, sizes)
    recipe = found.description.recipe(typical)
    if recipe.first_output:
        return lambda inputs, outputs, call: outputs[0]
    if not polynomials or shapes is None:
        return recipe.finish
    sources = shapes.sources

    def finish(inputs: Any, outputs: Any, call: Any) -> Any:
        point = [inputs[number].shape[dim] for number, dim in sources]
        returned = fill(template, [polynomial.at(point) for polynomial in polynomials])
        return replace(recipe, returned=returned).finish(inputs, outputs, call)

    return finish
