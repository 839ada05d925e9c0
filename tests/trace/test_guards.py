"""Each kind of read: unchanged, the guard passes; changed, it fails and says what changed."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import gc
import math
import os
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn

from dsjit.trace.guards import Guard
from dsjit.trace.observe import Observer

ONES = torch.ones(2, 3)


def trace(
    function: Callable[..., Any], *args: Any, native: bool = True, written: frozenset[int] = frozenset(), **kwargs: Any
) -> Guard:
    """The guard of one observed call; every tensor that it met is an input."""
    observer = Observer(function, args, kwargs)
    with observer:
        function(*args, **kwargs)
    assert observer.problems == ()
    return observer.build_guard(observer.tensor_paths(), written, native=native)


@dataclass
class Change:
    """A call, and a change to what it reads. `where` is in the message that tells what changed."""

    function: Callable[..., Any]
    change: Callable[[], Any]
    where: str
    args: tuple[Any, ...] = (ONES,)
    kwargs: dict[str, Any] = field(default_factory=dict)


class Box:
    kind = "plain"
    table: dict[str, Any] = {}

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @property
    def doubled(self) -> float:
        return self.factor * 2

    @staticmethod
    def static(x: torch.Tensor) -> torch.Tensor:
        return x


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Opaque:
    """Like transformers' configurations: every read goes through a `__getattribute__` written in Python."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__({"alias": "factor"}.get(name, name))


class Dynamic:
    def __init__(self) -> None:
        self.values = {"factor": 2.0}

    def __getattr__(self, name: str) -> Any:
        return self.values[name]


class Mode(enum.Enum):
    A = 1
    B = 2


FACTOR = 2.0
SETTINGS: dict[str, Any] = {"deep": [1, {"factor": 2.0}]}
WEIGHT = torch.ones(3)
module_of_user = types.ModuleType("module_of_user")
exec("FACTOR = 2.0\ndef f(x):\n    return x * FACTOR\n", module_of_user.__dict__)


def helper(x: torch.Tensor, factor: float = 2.0, *, bias: float = 1.0) -> torch.Tensor:
    return x * factor + bias


def _globals_with(**changes: Any) -> Callable[[], None]:
    return lambda: globals().update(changes)


@pytest.fixture(autouse=True)
def _restore_globals() -> Any:
    before = dict(globals())
    attributes = {cls: dict(cls.__dict__) for cls in (Box, Slotted, Opaque, Dynamic)}
    module = dict(module_of_user.__dict__)
    defaults = helper.__defaults__, dict(helper.__kwdefaults__), helper.__code__
    settings = {"deep": [1, {"factor": 2.0}]}
    yield
    for name in set(globals()) - set(before):
        del globals()[name]
    globals().update(before)
    SETTINGS.clear()
    SETTINGS.update(settings)
    module_of_user.__dict__.update(module)
    helper.__defaults__, helper.__kwdefaults__, helper.__code__ = defaults
    Box.table.clear()
    for cls, entries in attributes.items():
        for name in set(cls.__dict__) - set(entries):
            delattr(cls, name)
        for name, value in entries.items():
            if cls.__dict__[name] is not value:
                setattr(cls, name, value)


def _attribute() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _attribute_absent() -> Change:
    box = Box()
    return Change(lambda x: hasattr(box, "extra"), lambda: setattr(box, "extra", 1), ".extra: was absent, now 1")


def _attribute_deleted() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: delattr(box, "factor"), ".factor: was 2.0, now absent")


def _attribute_of_argument() -> Change:
    box = Box(factor=2.0)
    change = lambda: setattr(box, "factor", 3.0)  # noqa: E731
    return Change(lambda x, b: x * b.factor, change, "args[1].factor: was 2.0, now 3.0", (ONES, box))


def _attribute_in_dict() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * vars(box)["factor"], lambda: vars(box).update(factor=3.0), ".factor: was 2.0, now 3.0")


def _vars_grow() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: len(vars(box)), lambda: setattr(box, "other", 1), "vars(")


def _dict_replaced() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "__dict__", {"factor": 3.0}), ".factor")


def _class_replaced() -> Change:
    box = Box(factor=2.0)
    other = type("Other", (Box,), {})
    return Change(lambda x: x * box.factor, lambda: setattr(box, "__class__", other), "was a Box, now a Other")


def _nested_attribute() -> Change:
    box = Box(inner=Box(items=[Box(factor=2.0)]))
    change = lambda: setattr(box.inner.items[0], "factor", 3.0)  # noqa: E731
    return Change(lambda x: x * box.inner.items[0].factor, change, ".inner.items[0].factor: was 2.0, now 3.0")


def _object_replaced() -> Change:
    box = Box(inner=Box(factor=2.0))
    change = lambda: setattr(box, "inner", Box(factor=3.0))  # noqa: E731
    return Change(lambda x: x * box.inner.factor, change, ".inner.factor: was 2.0, now 3.0")


def _slot() -> Change:
    box = Slotted(2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _property() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.doubled, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _property_replaced() -> Change:
    box = Box(factor=2.0)
    change = lambda: setattr(Box, "doubled", property(lambda self: 5.0))  # noqa: E731
    return Change(lambda x: x * box.doubled, change, "Box.doubled")


def _opaque() -> Change:
    box = Opaque(factor=2.0)
    return Change(lambda x: x * box.alias, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _dynamic() -> Change:
    box = Dynamic()
    change = lambda: box.values.update(factor=3.0)  # noqa: E731
    return Change(lambda x: x * box.factor, change, ".values['factor']: was 2.0, now 3.0")


def _class_attribute() -> Change:
    box = Box()
    return Change(lambda x: box.kind, lambda: setattr(Box, "kind", "fancy"), "Box.kind: was 'plain', now 'fancy'")


def _class_attribute_shadowed() -> Change:
    box = Box()
    return Change(lambda x: box.kind, lambda: setattr(box, "kind", "own"), ".kind: was absent, now 'own'")


def _class_attribute_overridden_between() -> Change:
    middle = type("Middle", (Box,), {})
    box = type("Lower", (middle,), {})()
    return Change(lambda x: box.kind, lambda: setattr(middle, "kind", "own"), "kind: was 'plain', now 'own'")


def _class_container() -> Change:
    box = Box()
    return Change(lambda x: len(box.table), lambda: Box.table.update(new=1), "Box.table")


def _class_by_name() -> Change:
    return Change(lambda x: Box.kind, lambda: setattr(Box, "kind", "fancy"), "Box.kind: was 'plain', now 'fancy'")


def _method_on_class() -> Change:
    box = Box()
    change = lambda: setattr(Box, "scale", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box.scale(x), change, "Box.scale")


def _method_on_instance() -> Change:
    box = Box()
    return Change(lambda x: box.scale(x), lambda: setattr(box, "scale", lambda x: x * 3), ".scale: was absent")


def _super_method() -> Change:
    class Lower(Box):
        def scale(self, x: torch.Tensor) -> torch.Tensor:
            return super().scale(x) + 1

    box = Lower()
    change = lambda: setattr(Box, "scale", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box.scale(x), change, "Box.scale")


def _special_method() -> Change:
    callable_box = type("Callable", (Box,), {"__call__": lambda self, x: x * 2})
    box = callable_box()
    change = lambda: setattr(callable_box, "__call__", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box(x), change, "__call__")


def _global_constant() -> Change:
    return Change(lambda x: x * FACTOR, _globals_with(FACTOR=3.0), "['FACTOR']: was 2.0, now 3.0")


def _global_type() -> Change:
    return Change(lambda x: x * FACTOR, _globals_with(FACTOR=2), "['FACTOR']: was 2.0, now 2")


def _global_container() -> Change:
    change = lambda: SETTINGS["deep"][1].update(factor=3.0)  # noqa: E731
    return Change(lambda x: x * SETTINGS["deep"][1]["factor"], change, "['SETTINGS']['deep'][1]['factor']: was 2.0")


def _global_container_grows() -> Change:
    return Change(lambda x: len(SETTINGS["deep"]), lambda: SETTINGS["deep"].append(1), "len(")


def _global_function() -> Change:
    return Change(lambda x: helper(x), _globals_with(helper=lambda x: x), "['helper']")


def _global_function_code() -> Change:
    change = lambda: setattr(helper, "__code__", (lambda x, factor=2.0, *, bias=1.0: x).__code__)  # noqa: E731
    return Change(lambda x: helper(x), change, "['helper']")


def _global_of_callee() -> Change:
    return Change(lambda x: module_of_user.f(x), lambda: setattr(module_of_user, "FACTOR", 3.0), "['FACTOR']: was 2.0")


def _global_in_inner_function() -> Change:
    def outer(x: torch.Tensor) -> Any:
        return [x * FACTOR for _ in range(2)]

    return Change(outer, _globals_with(FACTOR=3.0), "['FACTOR']: was 2.0, now 3.0")


def _builtin_shadowed() -> Change:
    return Change(lambda x: max(1, 2), lambda: globals().update(max=min), "['max']: was absent")


def _default() -> Change:
    return Change(lambda x: helper(x), lambda: setattr(helper, "__defaults__", (3.0,)), "__defaults__")


def _keyword_default() -> Change:
    return Change(lambda x: helper(x), lambda: helper.__kwdefaults__.update(bias=2.0), "['bias']: was 1.0, now 2.0")


def _module_attribute() -> Change:
    change = lambda: setattr(module_of_user, "f", lambda x: x)  # noqa: E731
    return Change(lambda x: module_of_user.f(x), change, "module_of_user.f")


def _torch_function() -> Change:
    original = torch.relu

    def change() -> None:
        torch.relu = lambda x: x

    weakref.finalize(change, setattr, torch, "relu", original)
    return Change(lambda x: torch.relu(x), change, "torch.relu")


def _closure() -> Change:
    factor = 2.0

    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    def change() -> None:
        nonlocal factor
        factor = 3.0

    return Change(scale, change, "closure(scale)['factor']: was 2.0, now 3.0")


def _closure_of_callee() -> Change:
    factor = 2.0

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    def change() -> None:
        nonlocal factor
        factor = 3.0

    return Change(lambda x: inner(x), change, "['factor']: was 2.0, now 3.0")


def _closure_of_decorated_method() -> Change:
    cell = [2.0]

    def decorate(function: Callable[..., Any], factors: list[float]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args) * factors[0]

        return wrapper

    class Lower(Box):
        scale = decorate(Box.scale, cell)

    box = Lower()
    return Change(lambda x: box.scale(x), lambda: cell.__setitem__(0, 3.0), "[0]: was 2.0, now 3.0")


def _partial() -> Change:
    keywords = functools.partial(helper, bias=2.0)
    box = Box(f=keywords)
    return Change(lambda x: box.f(x), lambda: keywords.keywords.update(bias=3.0), "['bias']: was 2.0, now 3.0")


def _function_attribute() -> Change:
    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * scale.factor

    scale.factor = 2.0
    return Change(scale, lambda: setattr(scale, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _list_order() -> Change:
    items = [1, 2]
    return Change(lambda x: x * items[0], lambda: items.reverse(), "[0]: was 1, now 2")


def _dict_order() -> Change:
    items = {"a": 1, "b": 2}

    def change() -> None:
        items["a"] = items.pop("a")

    return Change(lambda x: next(iter(items)), change, "keys(")


def _ordered_dict_order() -> Change:
    items = collections.OrderedDict(a=1, b=2)
    return Change(lambda x: next(iter(items)), lambda: items.move_to_end("a"), "keys(")


def _set_element() -> Change:
    items = {"a", "b"}

    def change() -> None:
        items.remove("a")
        items.add("c")

    return Change(lambda x: "a" in items, change, "['items']")


def _set_of_equal_elements() -> Change:
    items = {1}

    def change() -> None:
        items.clear()
        items.add(True)

    return Change(lambda x: next(iter(items)), change, "['items']")


def _deque_element() -> Change:
    items = collections.deque([1, 2])
    return Change(lambda x: x * items[0], lambda: items.rotate(), "[0]: was 1, now 2")


def _namedtuple_constant() -> Change:
    point = collections.namedtuple("point", "a b")
    box = Box(p=point(1, 2))
    return Change(lambda x: x * box.p.a, lambda: setattr(box, "p", point(3, 2)), ".p[0]: was 1, now 3")


def _enum() -> Change:
    box = Box(mode=Mode.A)
    return Change(lambda x: box.mode is Mode.A, lambda: setattr(box, "mode", Mode.B), ".mode")


def _numpy_content() -> Change:
    array = numpy.ones(3)
    box = Box(array=array)
    return Change(lambda x: x * float(box.array[0]), lambda: array.fill(2), ".array")


def _weak_reference() -> Change:
    inner = Box(factor=2.0)
    box = Box(ref=weakref.ref(inner), keep=inner)
    return Change(lambda x: x * box.ref().factor, lambda: setattr(inner, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _simple_namespace() -> Change:
    space = types.SimpleNamespace(factor=2.0)
    return Change(lambda x: x * space.factor, lambda: setattr(space, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _environment() -> Change:
    os.environ.pop("DSJIT_TEST_VALUE", None)
    change = lambda: os.environ.update(DSJIT_TEST_VALUE="1")  # noqa: E731
    return Change(lambda x: os.environ.get("DSJIT_TEST_VALUE"), change, "os.environ[b'DSJIT_TEST_VALUE']: was absent")


def _tensor_shape() -> Change:
    box = Box(weight=torch.ones(3))
    return Change(lambda x: x * box.weight, lambda: setattr(box, "weight", torch.ones(1)), ".weight: was a Tensor")


def _tensor_dtype_in_place() -> Change:
    box = Box(weight=torch.ones(3))
    change = lambda: setattr(box.weight, "data", torch.ones(3, dtype=torch.float64))  # noqa: E731
    return Change(lambda x: x * box.weight, change, "float64")


def _tensor_strides_in_place() -> Change:
    box = Box(weight=torch.ones(2, 3))
    return Change(lambda x: x * box.weight, lambda: box.weight.as_strided_((2, 3), (1, 2)), "strides (1, 2)")


def _tensor_of_many_dimensions() -> Change:
    box = Box(weight=torch.ones(1, 2, 3, 1, 1, 1))
    return Change(lambda x: box.weight + 1, lambda: box.weight.transpose_(1, 2), "shape (1, 3, 2, 1, 1, 1)")


def _tensor_requires_grad() -> Change:
    box = Box(weight=torch.ones(3))
    return Change(lambda x: x * box.weight, lambda: box.weight.requires_grad_(), "requires_grad=True")


def _tensor_class() -> Change:
    box = Box(weight=torch.ones(3))
    change = lambda: setattr(box, "weight", nn.Parameter(torch.ones(3), requires_grad=False))  # noqa: E731
    return Change(lambda x: x * box.weight, change, "now a Parameter")


def _tensor_attribute() -> Change:
    box = Box(weight=torch.ones(3))
    box.weight.tag = 1
    return Change(lambda x: box.weight.tag, lambda: setattr(box.weight, "tag", 2), ".weight.tag: was 1, now 2")


def _tied_tensors_untied() -> Change:
    weight = torch.ones(3)
    box = Box(a=weight, b=weight)
    return Change(lambda x: x * box.a * box.b, lambda: setattr(box, "b", torch.ones(3)), "now another object")


def _module_training() -> Change:
    layer = nn.Dropout(0.0)
    return Change(layer, lambda: layer.eval(), "self.training: was True, now False")


def _module_parameter_none() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: setattr(layer, "bias", None), "self.bias: was a Parameter")


def _module_hook() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: layer.register_forward_hook(lambda *a: None), "self._forward_hooks")


def _module_pre_hook() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: layer.register_forward_pre_hook(lambda *a: None), "self._forward_pre_hooks")


def _module_child() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    return Change(layer, lambda: layer.__setitem__(1, nn.Tanh()), "self[1]: was a ReLU, now a Tanh")


def _module_child_added() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    return Change(layer, lambda: layer.append(nn.Tanh()), "keys(self._modules)")


def _module_forward() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3))
    change = lambda: setattr(layer[0], "forward", lambda x: x)  # noqa: E731
    return Change(layer, change, "self[0].forward: was absent")


def _module_forward_of_class() -> Change:
    cls = type("Mine", (nn.Linear,), {})
    layer = cls(3, 3)
    return Change(layer, lambda: setattr(cls, "forward", lambda self, x: x), "Mine.forward")


CHANGES = [
    function for name, function in sorted(globals().items()) if name.startswith("_") and not name.startswith("__")
    if isinstance(function, types.FunctionType) and function.__annotations__.get("return") == "Change"
]  # fmt: skip


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("make", CHANGES, ids=[function.__name__.strip("_") for function in CHANGES])
def test_a_changed_read_fails_the_check(make: Callable[[], Change], native: bool) -> None:
    case = make()
    guard = trace(case.function, *case.args, native=native, **case.kwargs)
    for _ in range(3):  # walked in Python, bound, checked natively
        assert guard.check(case.args, case.kwargs) is not None, guard.why_not(case.args, case.kwargs)
    assert guard.why_not(case.args, case.kwargs) is None
    case.change()
    for _ in range(2):
        assert guard.check(case.args, case.kwargs) is None
    assert case.where in (guard.why_not(case.args, case.kwargs) or "")


class Point(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    scale: float = 2.0


def _use(*args: Any, **kwargs: Any) -> None:
    """Reads its arguments' structure only."""


NAN = math.nan
ARGUMENTS: list[tuple[str, tuple[Any, ...], tuple[Any, ...], bool]] = [
    ("same tensor", (ONES,), (ONES,), True),
    ("another tensor", (ONES,), (torch.zeros(2, 3),), True),
    ("another offset", (torch.ones(4)[:2],), (torch.ones(4)[2:],), True),
    ("another shape", (ONES,), (torch.ones(3, 2),), False),
    ("another dtype", (ONES,), (ONES.double(),), False),
    ("other strides", (ONES,), (torch.ones(3, 2).t(),), False),
    ("a parameter", (ONES,), (nn.Parameter(ONES),), False),
    ("gradient wanted", (ONES,), (torch.ones(2, 3, requires_grad=True),), False),
    ("conjugated", (torch.ones(2, dtype=torch.complex64),), (torch.ones(2, dtype=torch.complex64).conj(),), False),
    ("no tensor", (ONES,), (1,), False),
    ("one more", (ONES,), (ONES, ONES), False),
    ("one tensor twice", (ONES, ONES), (ONES, ONES), True),
    ("two tensors where one was twice", (ONES, ONES), (ONES, torch.ones(2, 3)), False),
    ("one tensor twice where two were", (ONES, torch.ones(2, 3)), (ONES, ONES), False),
    ("int", (ONES, 3), (ONES, 3), True),
    ("another int", (ONES, 3), (ONES, 4), False),
    ("1 for True", (ONES, True), (ONES, 1), False),
    ("True for 1", (ONES, 1), (ONES, True), False),
    ("1.0 for 1", (ONES, 1), (ONES, 1.0), False),
    ("float", (ONES, 0.5), (ONES, 1.0 / 2), True),
    ("-0.0 for 0.0", (ONES, 0.0), (ONES, -0.0), False),
    ("NaN", (ONES, NAN), (ONES, float("nan")), True),
    ("-0j for 0j", (ONES, complex(0.0, 0.0)), (ONES, complex(0.0, -0.0)), False),
    ("string", (ONES, "mean"), (ONES, "".join(["me", "an"])), True),
    ("another string", (ONES, "mean"), (ONES, "sum"), False),
    ("None", (ONES, None), (ONES, None), True),
    ("0 for None", (ONES, None), (ONES, 0), False),
    ("dtype", (ONES, torch.float32), (ONES, torch.float64), False),
    ("slice", (ONES, slice(1, 2)), (ONES, slice(1, 2)), True),
    ("another slice", (ONES, slice(1, 2)), (ONES, slice(True, 2)), False),
    ("list", ([ONES, [3]],), ([torch.zeros(2, 3), [3]],), True),
    ("another list", ([ONES, [3]],), ([ONES, [4]],), False),
    ("longer list", ([ONES],), ([ONES, 3],), False),
    ("tuple for list", ([ONES],), ((ONES,),), False),
    ("dictionary", ({"x": ONES, "n": 2},), ({"x": torch.zeros(2, 3), "n": 2},), True),
    ("another order", ({"x": ONES, "n": 2},), ({"n": 2, "x": ONES},), False),
    ("another key", ({"x": ONES},), ({"y": ONES},), False),
    ("named tuple", (Point(ONES, 1),), (Point(torch.zeros(2, 3), 1),), True),
    ("another named tuple", (Point(ONES, 1),), (Point(ONES, 2),), False),
    ("tuple for named tuple", (Point(ONES, 1),), ((ONES, 1),), False),
    ("frozenset", (frozenset({1, 2}),), (frozenset({2, 1}),), True),
    ("equal frozenset", (frozenset({1}),), (frozenset({True}),), False),
    ("enum", (Mode.A,), (Mode.B,), False),
    ("class", (Box,), (Batch,), False),
]


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize(("first", "then", "passes"), [case[1:] for case in ARGUMENTS], ids=[c[0] for c in ARGUMENTS])
def test_arguments(first: tuple[Any, ...], then: tuple[Any, ...], passes: bool, native: bool) -> None:
    guard = trace(_use, *first, native=native)
    for _ in range(3):
        assert (guard.check(then, {}) is not None) is passes
    assert (guard.why_not(then, {}) is None) is passes


def test_keyword_arguments() -> None:
    guard = trace(_use, x=ONES, n=2)
    assert guard.check((), {"x": torch.zeros(2, 3), "n": 2}) is not None
    assert guard.check((), {"x": ONES, "n": 3}) is None
    assert guard.check((), {"x": ONES}) is None
    assert guard.check((ONES,), {"n": 2}) is None


def test_a_dataclass_argument_is_guarded_by_what_was_read() -> None:
    guard = trace(lambda batch: batch.x * batch.scale, Batch(ONES))
    other = torch.zeros(2, 3)
    for _ in range(3):
        assert guard.check((Batch(other),), {}) == (other,)
        assert guard.check((Batch(ONES, 3.0),), {}) is None
    assert guard.why_not((Batch(ONES, 3.0),), {}) == "args[0].scale: was 2.0, now 3.0"


def test_inputs_come_in_the_order_asked_for() -> None:
    box = Box(weight=torch.ones(3))
    observer = Observer(lambda x, y: x * box.weight + y, (ONES, ONES * 2), {})
    with observer:
        observer._function(ONES, observer._args[1])
    x, y, weight = observer._args[0], observer._args[1], box.weight
    paths = [observer.path_of(tensor) for tensor in (y, weight, x)]
    guard = observer.build_guard([path for path in paths if path is not None], frozenset())
    new = torch.zeros(2, 3), torch.full((2, 3), 5.0)
    for _ in range(3):
        inputs = guard.check(new, {})
        assert inputs is not None
        assert [id(tensor) for tensor in inputs] == [id(new[1]), id(weight), id(new[0])]


def test_a_replaced_parameter_of_the_same_kind_is_fetched_again() -> None:
    layer = nn.Linear(3, 3, bias=False)
    guard = trace(layer, ONES)
    assert guard.check((ONES,), {}) is not None
    layer.weight = nn.Parameter(torch.zeros(3, 3))
    for _ in range(3):
        inputs = guard.check((ONES,), {})
        assert inputs is not None and any(tensor is layer.weight for tensor in inputs)


def test_new_data_in_a_parameter_passes() -> None:
    layer = nn.Linear(3, 3, bias=False)
    guard = trace(layer, ONES)
    layer.weight.data = torch.zeros(3, 3)
    assert guard.check((ONES,), {}) is not None
    with torch.no_grad():
        layer.weight.add_(1)
    assert guard.check((ONES,), {}) is not None


def test_an_equal_constant_passes_and_is_bound_anew() -> None:
    box = Box(factor=1e300)
    guard = trace(lambda x: x * box.factor, ONES)
    for _ in range(4):
        box.factor = float("1e300")
        assert guard.check((ONES,), {}) is not None
    for step in range(100):  # addresses of freed floats are used again
        box.factor = float(step)
        assert guard.check((ONES,), {}) is None


def test_a_function_made_anew_at_an_old_address_is_looked_at_anew() -> None:
    def make(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x * factor

    box = Box(f=make(2.0))
    guard = trace(lambda x: box.f(x), ONES)
    for step in range(100):
        assert guard.check((ONES,), {}) is not None
        box.f = make(step + 10.0)
        assert guard.check((ONES,), {}) is None
        box.f = make(2.0)


def test_a_list_made_anew_at_an_old_address_is_looked_at_anew() -> None:
    box = Box(items=[[1.5], {"k": [2.5]}])
    guard = trace(lambda x: x * box.items[0][0], ONES)
    for step in range(100):
        assert guard.check((ONES,), {}) is not None
        box.items = [[1.5], {"k": [step + 10.0]}]
        assert guard.check((ONES,), {}) is None
        box.items = [[1.5], {"k": [2.5]}]


def test_what_was_not_read_may_change() -> None:
    box = Box(factor=2.0, unused=1)
    guard = trace(lambda x: x * box.factor, ONES)
    box.unused = 2
    box.more = 3
    assert guard.check((ONES,), {}) is not None


def test_objects_born_during_the_trace_are_not_guarded() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        box = Box(factor=2.0)
        box.items = [1]
        box.items.append(2)
        return x * box.factor

    guard = trace(function, ONES)
    assert not any("items" in line.path for line in guard.describe())


@pytest.mark.parametrize(
    "state",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "sdpa_kernel", "function mode"],
)
def test_another_torch_state_fails_the_check(state: Callable[[], Any]) -> None:
    guard = trace(lambda x: x + 1, ONES)
    with state():
        assert guard.check((ONES,), {}) is None
        assert guard.why_not((ONES,), {}) is not None
    assert guard.check((ONES,), {}) is not None


def test_the_default_dtype_is_guarded() -> None:
    guard = trace(lambda x: x + 1, ONES)
    torch.set_default_dtype(torch.float64)
    try:
        assert guard.check((ONES,), {}) is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_requires_grad_of_parameters_decides_nothing_without_grad_mode() -> None:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        guard = trace(layer, ONES)
        layer.requires_grad_(False)
        assert guard.check((ONES,), {}) is not None
    assert guard.check((ONES,), {}) is None


class Layer(nn.Module):
    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_equal_layers_share_one_guard(native: bool) -> None:
    layers = [Layer() for _ in range(4)]
    guard = trace(Layer.forward, layers[0], ONES, native=native)
    for _ in range(4):
        for layer in layers:
            inputs = guard.check((layer, ONES), {})
            assert inputs is not None
            assert {id(tensor) for tensor in inputs} == {id(ONES), *map(id, layer.parameters())}
    layers[2].scale = 0.25
    for number, layer in enumerate(layers):
        assert (guard.check((layer, ONES), {}) is None) == (number == 2)
    assert guard.why_not((layers[2], ONES), {}) == "args[0].scale: was 0.5, now 0.25"


def test_a_guard_keeps_no_model_alive() -> None:
    layers = [Layer() for _ in range(2)]
    guard = trace(Layer.forward, layers[0], ONES)
    for _ in range(3):
        for layer in layers:
            assert guard.check((layer, ONES), {}) is not None
    dead = weakref.ref(layers.pop())
    del layer
    gc.collect()
    assert dead() is None


def test_tracing_another_function_leaves_the_check_valid() -> None:
    layer = Layer()
    guard = trace(layer, ONES)
    for _ in range(3):
        trace(Layer(), ONES)
        assert guard.check((ONES,), {}) is not None


def test_a_bound_method_a_partial_and_a_callable_object_are_functions_too() -> None:
    box = Box(factor=2.0)
    box_type = type("Callable", (Box,), {"__call__": lambda self, x: x * self.factor})
    called = box_type(factor=2.0)
    guards = [
        (trace(Layer().forward, ONES), (ONES,)),
        (trace(functools.partial(helper, factor=3.0), ONES), (ONES,)),
        (trace(called, ONES), (ONES,)),
        (trace(box.scale, ONES), (ONES,)),
    ]
    for guard, args in guards:
        assert guard.check(args, {}) is not None
    called.factor = 3.0
    assert guards[2][0].check((ONES,), {}) is None


def test_a_written_input_must_not_share_memory_with_another() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> None:
        x.add_(y)

    guard = trace(function, torch.ones(3), torch.ones(3), written=frozenset({0}))
    base = torch.ones(6)
    assert guard.check((torch.ones(3), torch.ones(3)), {}) is not None
    assert guard.check((base[:3], base[2:5]), {}) is None
    assert guard.why_not((base[:3], base[2:5]), {}) == "args[0], which is written, shares memory with args[1]"
    array = numpy.ones(3, dtype=numpy.float32)
    assert guard.check((torch.from_numpy(array), torch.from_numpy(array)), {}) is None


def test_describe_tells_what_must_hold() -> None:
    box = Box(factor=2.0)
    lines = [str(line) for line in trace(lambda x, b: x * b.factor, ONES, box).describe()]
    assert "args[1].factor is 2.0" in lines
    assert "args[1] is a Box" in lines
    assert any(line.startswith("args[0] is a Tensor of float32, shape (2, 3)") for line in lines)


def test_the_fast_path_is_native() -> None:
    layer = Layer()
    guard = trace(layer, ONES)
    guard.check((ONES,), {})
    assert len(guard._tables) == 1
    assert guard._residual == {}
