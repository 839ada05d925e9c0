"""What bytecode proves about the use of a value: additions and appends are recognised, everything else is not."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from dsjit.trace.reads.uses import Load, Use, attribute_load, attribute_loads, name_loads, stores_name

COUNT = 0


def load_of(function: Callable[..., Any], name: str = "n") -> Load:
    """What the function does with the first attribute `name` that it reads."""
    code = function.__code__
    offset = next(i.offset for i in dis.get_instructions(code) if i.opname == "LOAD_ATTR" and i.argval == name)
    return attribute_load(code, offset, name)


def add(box: Any) -> None:
    box.n += 1


def subtract(box: Any, by: float) -> None:
    box.n -= by


def add_plainly(box: Any) -> None:
    box.n = box.n + 1


def add_what_is_computed(box: Any, x: Any) -> None:
    box.n += x.shape[0] * max(x.size(0), 2)


def add_two(box: Any) -> None:
    box.n, box.m = box.n + 1, box.m + 1


@pytest.mark.parametrize(
    ("function", "amount", "in_place"),
    [
        (add, ("constant", 1), True),
        (subtract, ("local", "by"), True),
        (add_plainly, ("constant", 1), False),
        (add_what_is_computed, None, True),
        (add_two, ("constant", 1), False),
    ],
)
def test_additions_are_recognised(function: Any, amount: Any, in_place: bool) -> None:
    load = load_of(function)
    assert (load.use, load.amount, load.in_place) == (Use.ADD, amount, in_place)
    stored = next(i for i in dis.get_instructions(function.__code__) if i.offset == load.store)
    assert (stored.opname, stored.argval) == ("STORE_ATTR", "n")


def append(box: Any, x: Any) -> None:
    box.n.append((x, [x + 1]))


def append_and_return(box: Any) -> Any:
    return box.n.append(box)


def put(box: Any, key: str) -> None:
    box.n[key] = 1


def count_by_key(box: Any) -> None:
    box.n["calls"] += 1


@pytest.mark.parametrize(
    ("function", "use", "key"),
    [
        (append, Use.APPEND, None),
        (append_and_return, Use.APPEND, None),
        (put, Use.PUT, ("local", "key")),
        (count_by_key, Use.ADD_ITEM, ("constant", "calls")),
    ],
)
def test_what_is_put_into_containers_is_recognised(function: Any, use: Use, key: Any) -> None:
    load = load_of(function)
    assert (load.use, load.key) == (use, key)


def other_key(box: Any) -> None:
    box.n["a"] = box.n["b"] + 1


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (lambda box: box.n[0], ("constant", 0)),
        (lambda box, k: box.n[k] * 2, ("local", "k")),
        (lambda box, k: box.n.get(k), ("local", "k")),
        (lambda box, k: box.n.get(k, [k + 1]), ("local", "k")),
        (lambda box, k: k in box.n, ("local", "k")),
        (lambda box: "a" not in box.n, ("constant", "a")),
        (lambda box, k: 1 if k in box.n else 2, ("local", "k")),
        (other_key, ("constant", "b")),
    ],
)
def test_questions_about_one_entry_are_recognised(function: Any, key: Any) -> None:
    load = load_of(function)
    assert (load.use, load.key) == (Use.ITEM, key)


def test_what_is_put_into_a_set_is_recognised() -> None:
    load = load_of(lambda box, k: box.n.add(k))
    assert (load.use, load.key) == (Use.ADD_ELEMENT, ("local", "k"))


CHOSEN = pytest.param(
    lambda box, k: (k if k else 2) in box.n,
    marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="each branch reads a known element"),
)


@pytest.mark.parametrize("function", [lambda box, k: (k + 1) in box.n, CHOSEN])
def test_a_computed_element_is_not_known(function: Any) -> None:
    assert load_of(function).use is Use.ANY


OTHER_USES: dict[str, Callable[..., Any]] = {
    "read": lambda box: box.n,
    "passed on": lambda box, f: f(box.n),
    "another operator": lambda box: setattr(box, "n", box.n * 2),
    "on the right": lambda box: 1 + box.n,
    "another method": lambda box: box.n.pop(),
    "a key that is computed": lambda box, k: box.n.__setitem__(k + 1, 2),
    "element with a key that is computed": lambda box, k: box.n[k + 1],
    "entry by keyword": lambda box, k: box.n.get(key=k),
    "added, with a key that is computed": lambda box, k: box.n.add(k + 1),
    "conditional": lambda box, c: box.n.append(1 if c else 2),
    "keyword": lambda box: box.n.append(object=1),
}


def multiply(box: Any) -> None:
    box.n *= 2


def store_elsewhere(box: Any) -> None:
    box.m = box.n + 1


def store_twice(box: Any) -> None:
    box.n = box.m = box.n + 1


def keep(box: Any) -> Any:
    n = box.n
    n += 1
    return n


@pytest.mark.parametrize("function", [*OTHER_USES.values(), multiply, store_elsewhere, store_twice, keep])
def test_every_other_use_is_any(function: Any) -> None:
    assert load_of(function).use is Use.ANY


def test_a_wrong_offset_or_name_is_any() -> None:
    assert attribute_load(add.__code__, 0, "n").use is Use.ANY
    assert attribute_load(add.__code__, next(i.offset for i in dis.get_instructions(add.__code__)), "m").use is Use.ANY


def global_counter() -> None:
    global COUNT
    COUNT += 1


def global_reset_and_counted() -> None:
    global COUNT
    COUNT = 0
    COUNT += 1


def global_deleted() -> None:
    global COUNT
    del COUNT


def global_stored() -> None:
    global COUNT
    COUNT = 5


def test_loads_of_globals() -> None:
    (load,) = name_loads(global_counter.__code__, "COUNT", cell=False) or ()
    assert load.use is Use.ADD
    assert name_loads(global_reset_and_counted.__code__, "COUNT", cell=False) is None
    assert name_loads(global_deleted.__code__, "COUNT", cell=False) is None
    assert name_loads(global_stored.__code__, "COUNT", cell=False) == ()
    assert stores_name(global_stored.__code__, "COUNT") and not stores_name(add.__code__, "COUNT")


def closures() -> tuple[types.CodeType, ...]:
    n: Any = 0

    def counted_inside() -> Any:
        class Local:
            def method(self) -> None:
                nonlocal n
                n += 1

        return Local

    def read_inside() -> Any:
        nonlocal n
        n += 1
        return lambda: n

    return counted_inside.__code__, read_inside.__code__


def test_loads_of_closure_variables_include_functions_inside() -> None:
    counted, read = closures()
    assert [load.use for load in name_loads(counted, "n", cell=True) or ()] == [Use.ADD]
    assert Use.ANY in [load.use for load in name_loads(read, "n", cell=True) or ()]


def test_attribute_loads_leave_out_calls() -> None:
    def function(box: Any) -> None:
        box.items.append(1)
        for _ in box.table.items():
            pass

    assert [load.use for load in attribute_loads(function.__code__, "items")] == [Use.APPEND]
