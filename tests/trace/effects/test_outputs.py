"""Results are taken apart into a template with holes, and built anew from other tensors."""

from __future__ import annotations

from collections import defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dsjit.trace.effects.outputs import TemplateError, TemplateMaker, build_template

A, B = torch.zeros(2), torch.ones(3)
Pair = namedtuple("Pair", ["left", "right"])


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    name: str


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x


def rebuilt(result: Any, *tensors: torch.Tensor) -> Any:
    template = TemplateMaker(lambda obj: False).make(result)
    return build_template(template, tensors, [], {})


@pytest.mark.parametrize("result", [[A, B], (A, B), Pair(A, B), {"a": A, "b": B}], ids=lambda r: type(r).__name__)
def test_containers_keep_their_type_and_take_the_new_tensors(result: Any) -> None:
    new = rebuilt(result, B, A)
    assert type(new) is type(result)
    items = list(new.values()) if isinstance(new, dict) else list(new)
    assert items[0] is B and items[1] is A


def test_objects_keep_class_and_attributes() -> None:
    slotted = rebuilt(Slotted(A, "n"), B)
    assert type(slotted) is Slotted and slotted.x is B and slotted.name == "n"
    plain = rebuilt(Plain(Plain(A)), B)
    assert type(plain.x) is Plain and plain.x.x is B


def test_what_was_shared_or_refers_to_itself_does_so_again() -> None:
    shared = [A]
    first, second = rebuilt((shared, shared), B)
    assert first is second and first[0] is B
    loop: list[Any] = [A]
    loop.append(loop)
    new = rebuilt(loop, B)
    assert new[1] is new and new[0] is B


def test_one_tensor_fills_one_hole_however_often_it_appears() -> None:
    maker = TemplateMaker(lambda obj: False)
    maker.make([A, {"again": A}])
    assert len(maker.tensors) == 1 and maker.tensors[0] is A


def test_objects_from_before_the_run_are_fetched_and_not_copied() -> None:
    old = {"x": 1}
    maker = TemplateMaker(lambda obj: obj is old)
    template = maker.make((old, A))
    other = {"x": 2}
    assert maker.existing == [old]
    assert build_template(template, [B], [other], {})[0] is other


@pytest.mark.parametrize("result", [iter([1]), (n for n in "ab"), memoryview(b"x")], ids=lambda r: type(r).__name__)
def test_what_cannot_be_built_anew_is_refused(result: Any) -> None:
    with pytest.raises(TemplateError, match="cannot be built anew"):
        TemplateMaker(lambda obj: False).make(result)


def test_objects_shared_between_templates_are_made_once() -> None:
    shared = [A]
    maker = TemplateMaker(lambda obj: False)
    first, second = maker.make(shared), maker.make({"again": shared})
    made: dict[int, Any] = {}
    new = build_template(first, [B], [], made)
    assert build_template(second, [B], [], made)["again"] is new


def test_a_function_with_a_closure_that_the_call_made_is_refused() -> None:
    kept = [A]
    with pytest.raises(TemplateError, match="closure"):
        TemplateMaker(lambda obj: False).make(lambda: kept)


def test_a_deque_keeps_its_limit() -> None:
    new = rebuilt(deque([A, A], maxlen=2), B)
    assert type(new) is deque and new.maxlen == 2 and list(new) == [B, B]


def test_a_dict_with_a_factory_keeps_it() -> None:
    table: defaultdict[str, Any] = defaultdict(list, a=A)
    new = rebuilt(table, B)
    assert type(new) is defaultdict and new["a"] is B and new["missing"] == []
