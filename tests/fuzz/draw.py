"""Draws random programs: `programs()` is a hypothesis strategy, `numbered_program(seed, number)` needs no hypothesis.

A program is a module or a function with state, whose body is drawn line by line (`tests.fuzz.scope` runs each line
at once), and a sequence of calls, with changes of arguments, sizes, dtypes and attributes in between.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, TypeAlias

import torch
from hypothesis import strategies as st

from dsjit.testing.strategies import LAYOUTS, TensorSpec
from tests.fuzz.grammar import (
    DIFFERENTIABLE,
    FAMILIES,
    NUMBERS,
    TABLE,
    arity,
    exact_row,
    finite_row,
    quotient_row,
    scaling_row,
    sensitive_row,
)
from tests.fuzz.program import FuzzProgram
from tests.fuzz.scope import MOST_ELEMENTS, Scope, Traits

__all__ = ["numbered_program", "programs"]

Pick: TypeAlias = Callable[[Sequence[Any]], Any]
"""Chooses one; the plainest choice comes first."""

SIZES: Final = (3, 2, 1, 5, 4, 0, 9, 17)
DTYPES: Final = (
    torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64,
    torch.int32, torch.bool, torch.uint8, torch.int8, torch.int16,
)  # fmt: skip
NUMBER_TEXTS: Final = ("2", "0.5", "-1", "3", "0.1", "1.0", "0", "-2.5", "7", "float('inf')", "True")
DTYPE_TEXTS: Final = tuple(dict.fromkeys(str(dtype) for dtype in DTYPES))
SMOOTH: Final = (False, False, False, False, False, True)
"""Whether a program is differentiated."""
MOST_LINES: Final = 9
BOUNDED: Final = ("clamp(-1, 2)", "sigmoid", "tanh", "sin()", "cos()", "erf()", "atan")

LOOKS: Final = (
    "({0} > {number}).any()", "{0}.amax() > {number}", "({0} > 0).all()", "{0}.argmax() == 0", "bool({0}.any())",
    "{0}.amin().item() < {number}",
)  # fmt: skip
FACTS: Final = (
    "{0}.numel() > 4", "{0}.shape[0] % 2 == 0", "{0}.dtype == torch.float32", "{0}.is_contiguous()", "{me}.flag",
    "{0}.dim() > 1", "{me}.scale > 2", "{0}.stride(-1) == 1", "{0}.is_floating_point()",
)  # fmt: skip
SMOOTH_FACTS: Final = tuple(fact.replace("dtype == torch.float32", "dtype != torch.bool") for fact in FACTS)
"""The reference of programs that are differentiated runs in double precision, and has to go the same way."""
READS: Final = (
    "{0} * {me}.scale", "{0} + {me}.state", "{me}.state - {0}", "{0} if {me}.flag else {0} * 2", "{me}.helper({0})",
    "{0} + {me}.count", "torch.stack([{0} * k for k in range(3)])", "sum([{0}, {0}], {me}.state)",
    "{me}.table.get('a', {0}) * 1", "{0} * len({me}.log)",
)  # fmt: skip
STATE: Final = (
    "{me}.count += 1", "{me}.last = {0}", "{me}.log.append({0}.shape[-1])", "{me}.scale *= 2",
    "{me}.log = [*{me}.log[-1:], {0}.dim()]", "{me}.flag = not {me}.flag", "{me}.state.add_(1)",
    "{me}.state = {me}.state + 1", "{me}.table['a'] = {0}", "{me}.state.copy_({0}.flatten()[0])",
)  # fmt: skip
HISTORY: Final = 6
"""Those from here on would make the gradients of a call those of earlier ones, too."""
VALUES: Final = (
    "({0} + 0).amax().item()", "int({0}.nan_to_num().clamp(0, 3).amax())", "float(({0} + 0).amin())",
    "bool({0}.any())",
)  # fmt: skip
CHANGES: Final = (
    "thing.scale = 3.0", "thing.flag = not thing.flag", "thing.state.fill_(2)", "thing.state = thing.state * 2",
    "thing.count = 7", "thing.scale = 2", "thing.table = {}", "thing.log.clear()",
)  # fmt: skip
RETURNS: Final = ("({0},)", "({0},)", "[{0}]", "{{'a': [{0}], 'b': ({1},)}}", "{0}, {1}.shape, {me}.count", "{1}")


@dataclass(slots=True)
class Drawer:
    """Draws lines into `lines`, at `indent`. me: what holds the state. smooth: only what can be differentiated."""

    pick: Pick
    scope: Scope
    me: str
    smooth: bool
    lines: list[str] = field(default_factory=list)
    indent: int = 0
    rounded: bool = False
    sensitive: bool = False

    # -- choices ---------------------------------------------------------------------------------------------------

    def operand(self, *, exact: bool = False, tame: bool = False, floating: bool = False, like: str = "") -> str | None:
        """A tensor in scope, the latest first. like: one that broadcasts with it, if there is one."""
        found: list[str] = []
        for name in reversed(self.scope.names):
            traits, tensor = self.scope.traits_of(name), self.scope.tensor(name)
            if (
                (traits.exact or not exact)
                and (traits.tame or not tame)
                and (not floating or tensor.is_floating_point())
            ):
                found.append(name)
        if like:
            shape = self.scope.tensor(like).shape
            found = [name for name in found if _broadcast(shape, self.scope.tensor(name).shape)] or found
        return self.pick(found) if found else None

    def filled(self, template: str, operands: list[str]) -> str:
        rank = max(self.scope.tensor(operands[0]).dim(), 1) if operands else 1
        holes: dict[str, Any] = {"me": self.me}
        for hole, choices in (
            ("dim", range(-1, rank)), ("other", range(-rank, rank)), ("keep", (False, True)),
            ("number", NUMBER_TEXTS), ("size", (2, 1, 3)), ("dtype", DTYPE_TEXTS),
        ):  # fmt: skip
            if f"{{{hole}}}" in template:
                holes[hole] = self.pick(choices)
        return template.format(*operands, **holes)

    # -- lines -----------------------------------------------------------------------------------------------------

    def write(self, text: str) -> None:
        self.lines.append(textwrap.indent(text, "    " * self.indent))

    def assign(self, expression: str, traits: Traits) -> str | None:
        """`v7 = expression`, if torch does it; the name."""
        name = self.scope.new_name()
        text = f"{name} = {expression}"
        if not self.scope.run(text):
            return None
        bounded = any(each in expression for each in BOUNDED)
        if not self.scope.keep(name, replace(traits, tame=traits.tame or bounded)):
            return None
        self.write(text)
        self.rounded |= not traits.exact
        return name

    def block(self, least: int, most: int) -> None:
        for _ in range(self.pick(range(least, most + 1))):
            self.statement()

    def statement(self) -> None:
        kinds = [self.from_family] * 9 + [self.from_table] * (0 if self.smooth else 3) + [self.read] * 2 + [self.state]
        if self.indent < 3:
            kinds += [self.branch, self.loop] + ([] if self.smooth else [self.while_loop, self.value, self.attempt])
        self.pick(kinds)()

    def from_family(self) -> None:
        names = [name for name in FAMILIES if not self.smooth or name in DIFFERENTIABLE]
        family = FAMILIES[self.pick([name for name in names for _ in range(FAMILIES[name].weight)])]
        template = self.pick(family.templates)
        operands = self.operands(arity(template), exact=family.sensitive, tame=family.tame, floating=family.floating)
        if operands is None:
            return
        text = self.filled(template, operands)
        traits = self.scope.traits_of(*operands)
        traits = replace(traits, exact=traits.exact and not family.rounded)
        self.sensitive |= family.sensitive
        if not family.writes:
            self.assign(text, traits)
        elif self.scope.run(text):
            self.write(text)
            self.scope.written(operands[0], traits)
            self.rounded |= not traits.exact

    def operands(self, count: int, **wanted: bool) -> list[str] | None:
        found: list[str] = []
        for _ in range(count):
            name = self.operand(**wanted, like=found[0] if found else "")
            if name is None:
                return None
            found.append(name)
        return found

    def from_table(self) -> None:
        """A call of an overload of the op table, with arguments by its schema."""
        call = self.pick(TABLE)
        sensitive, exact = sensitive_row(call.row), exact_row(call.row)
        arguments: dict[str, str] = {}
        for name in call.tensors:
            first = next(iter(arguments.values()), "")
            operand = self.operand(exact=sensitive or name in call.conditions, tame=not exact, like=first)
            if operand is None:
                return
            arguments[name] = operand
        traits = self.scope.traits_of(*arguments.values())
        for name in call.conditions:
            arguments[name] = f"{arguments[name]}.bool()"
        if finite_row(call.row):
            arguments = {name: f"{text}.nan_to_num().clamp(-4, 99)" for name, text in arguments.items()}
        if quotient_row(call.row):
            small = {"self": ".clamp(-99, 99)", "other": ".trunc()"}
            arguments = {name: text + small[name] for name, text in arguments.items()}
        parameters = self.pick(call.parameters)
        if "alpha" in parameters and scaling_row(call.row):
            arguments = {name: f"{text}.float()" for name, text in arguments.items()}
            exact = False
        arguments |= parameters | {name: str(self.pick(NUMBERS)) for name in call.numbers}
        if any(text in ("inf", "nan") for text in arguments.values()):
            return
        self.sensitive |= sensitive
        self.assign(
            f"{call.text}({', '.join(f'{name}={text}' for name, text in arguments.items())})",
            replace(traits, exact=traits.exact and exact),
        )

    def read(self) -> None:
        template = self.pick(READS)
        operands = self.operands(1)
        if operands is not None:
            self.assign(self.filled(template, operands), self.scope.traits_of(*operands) & Traits(tame=False))

    def state(self) -> None:
        """State holds eager's bits only: what a later call reads of it is a new input."""
        operand = self.operand(exact=True)
        if operand is None:
            return
        text = self.filled(self.pick(STATE[:HISTORY] if self.smooth else STATE), [operand])
        if self.scope.run(text):
            self.write(text)

    def branch(self) -> None:
        operand = self.operand(exact=True)
        if operand is None:
            return
        condition = self.filled(self.pick(SMOOTH_FACTS if self.smooth else (*LOOKS, *FACTS)), [operand])
        if not self.scope.run(f"went = bool({condition})"):
            return
        self.sensitive = True
        taken = self.scope.namespace["went"]
        kept = list(self.scope.names)
        ends: list[str] = []
        for header in (f"if {condition}:", "else:"):
            self.write(header)
            self.indent += 1
            self.block(1, 2)
            end = self.operand()
            assert end is not None
            name = f"v{self.scope.made + 1}"
            self.write(f"{name} = {end}")
            self.indent -= 1
            ends.append(end)
            if len(ends) == 1:
                first, mark = (len(self.lines) - 1, self.indent)
                self.scope.names = list(kept)
        result = self.scope.new_name()
        self.lines[first] = "    " * (mark + 1) + f"{result} = {ends[0]}"
        self.lines[-1] = "    " * (self.indent + 1) + f"{result} = {ends[1]}"
        self.scope.namespace[result] = self.scope.namespace[ends[0 if taken else 1]]
        traits = self.scope.traits_of(*ends)
        self.scope.names = kept
        self.scope.keep(result, traits)

    def loop(self) -> None:
        operand = self.operand()
        if operand is None:
            return
        other = self.operand(like=operand)
        name = self.scope.new_name()
        step = self.pick(
            [f"{name} + {other}", f"{name} * 0.5", f"{name} - row", f"torch.maximum({name} + 0, {other} + 0)"]
        )
        header = self.pick(["for row in range(3):", f"for row in {operand}:", f"for row in {operand}.unbind(-1):"])
        text = f"{name} = {operand}.clone()\n{header}\n    {name} = {step}"
        if self.scope.run(text) and self.scope.keep(name, self.scope.traits_of(operand, other or operand)):
            self.write(text)

    def while_loop(self) -> None:
        operand = self.operand(exact=True)
        if operand is None or self.scope.tensor(operand).dtype is torch.bool:
            return
        name = self.scope.new_name()
        test = self.pick([f"{name}.amax() < 4", f"({name} < 2).any()", f"float({name}.amin()) < 1"])
        text = f"{name} = {operand}.clamp(0, 3)\nwhile {test}:\n    {name} = {name} + 1"
        if not self.scope.tensor(operand).isnan().any() and self.scope.run(text):
            self.sensitive = True
            self.write(text)
            self.scope.keep(name, self.scope.traits_of(operand))

    def value(self) -> None:
        """A number out of a tensor, used in a tensor."""
        number, operand = self.operand(exact=True), self.operand()
        if number is None or operand is None:
            return
        text = self.filled(self.pick(VALUES), [number])
        self.sensitive = True
        use = self.pick(["{0} + {1}", "{0} * {1}", "{0}[..., : int({1} == 1)]", "torch.full_like({0}, {1})"])
        self.assign(use.format(operand, text), self.scope.traits_of(operand, number) & Traits(tame=False))

    def attempt(self) -> None:
        operand = self.operand()
        if operand is None:
            return
        name = self.scope.new_name()
        what = self.pick(["view(-1, 7)", "add(torch.ones(11))", "squeeze(9)", "view(-1)"])
        text = f"try:\n    {name} = {operand}.{what}\nexcept (RuntimeError, IndexError):\n    {name} = {operand}"
        if self.scope.run(text) and self.scope.keep(name, self.scope.traits_of(operand)):
            self.write(text)

    def ends(self) -> None:
        template, count = self.pick(RETURNS), self.pick((5, 3, 8, 1))
        names = self.scope.names[-count:]
        self.write("return " + template.format(", ".join(names), names[-1], me=self.me))


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


# -- whole programs --------------------------------------------------------------------------------------------------

STATEFUL: Final = """\
self.scale = 2.0
self.flag = True
self.count = 0
self.log = []
self.table = {}"""

HELPER: Final = "def helper(self, x):\n    return x * self.scale + 1\n"


@st.composite
def programs(draw: st.DrawFn) -> FuzzProgram:
    """Programs that hypothesis makes small when they fail."""
    return _program(lambda choices: draw(st.sampled_from(choices)), draw(st.sampled_from(SMOOTH)))


def numbered_program(seed: int, number: int) -> FuzzProgram:
    """Program `number` of the long run `seed`: always the same."""
    pick = Random(f"{seed} {number}").choice
    return _program(pick, pick(SMOOTH))


def _program(pick: Pick, smooth: bool) -> FuzzProgram:
    sizes = [pick(SIZES) for _ in range(pick(range(1, 4)))]
    while math.prod(sizes) > MOST_ELEMENTS:
        sizes.pop()
    floats = pick((torch.float32, torch.float32, torch.float64))
    pool = (floats,) if smooth else DTYPES
    specs = [_spec(pick, tuple(sizes), pool) for _ in range(pick(range(1, 4)))]
    is_module = pick((False, True))
    has_inner = pick(range(4)) == 3
    body = ["class Thing(torch.nn.Module):" if is_module else "class Thing:"]
    inner, traits = _inner(pick, specs[0], smooth) if has_inner else ([], Traits())
    setup = (["super().__init__()"] if is_module else []) + [*STATEFUL.splitlines(), *_made(specs[0], smooth)]
    setup += ["self.inner = Inner()"] if has_inner else []
    body += _indented(["def __init__(self):", *_indented(setup), "", *HELPER.splitlines()], 1)
    me = "self" if is_module else "thing"

    scope = Scope()
    drawer = Drawer(pick, scope, me, smooth)
    given = [f"x{number}" for number in range(len(specs))]
    with torch.set_grad_enabled(smooth):
        scope.run("\n".join([*inner, *body, f"{me} = Thing()"]))
        for name, spec in zip(given, specs, strict=True):
            scope.namespace[name] = spec.make().requires_grad_(smooth)
            scope.keep(name, Traits(tame=spec.content == "random"))
        if pick(range(10)) == 9 and len(given) > 1:  # one memory under two names
            scope.namespace["x1"] = scope.namespace["x0"]
        if has_inner:
            drawer.assign(f"{me}.inner(x0)", traits)
        drawer.block(2, MOST_LINES)
        drawer.ends()
    lines = [*inner, *body, ""]
    if is_module:
        lines += _indented([f"def forward(self, {', '.join(given)}):", *_indented(drawer.lines)], 1)
        lines += ["thing = Thing()", "function = jit(thing)"]
    else:
        lines += ["thing = Thing()", f"def run({', '.join(given)}):", *_indented(drawer.lines), "function = jit(run)"]
    return FuzzProgram((*lines, *_calls(pick, specs, smooth)), smooth)


def _indented(lines: list[str], depth: int = 1) -> list[str]:
    return textwrap.indent("\n".join(lines), "    " * depth).splitlines()


def _spec(pick: Pick, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> TensorSpec:
    """Of an argument: `shape`, or one that broadcasts with it."""
    kind = pick(range(6))
    if kind == 4:
        shape = shape[1:]
    elif kind == 5:
        shape = (1, *shape[1:])
    dtype = pick(dtypes)
    layout = pick(LAYOUTS) if shape else "contiguous"
    special = len(dtypes) > 1 and pick(range(4)) == 3
    return TensorSpec(shape, dtype, layout, "special" if special else "random", pick(range(100)))


def _made(spec: TensorSpec, smooth: bool) -> list[str]:
    """The tensor of the state: one element, so that it broadcasts with anything."""
    dtype = spec.dtype if spec.dtype.is_floating_point else torch.float32
    made = f"{TensorSpec((1,), dtype, seed=5)!r}.make()"
    return [f"self.state = {made}" + (".requires_grad_()" if smooth else "")]


def _inner(pick: Pick, spec: TensorSpec, smooth: bool) -> tuple[list[str], Traits]:
    """A module that another one makes and calls; the traits of what it returns for a tensor like `spec`."""
    scope = Scope()
    drawer = Drawer(pick, scope, "self", smooth)
    plain = ["class Inner(torch.nn.Module):"]
    setup = ["super().__init__()", *STATEFUL.splitlines(), *_made(spec, False)]
    plain += _indented(["def __init__(self):", *_indented(setup), "", *HELPER.splitlines()], 1)
    with torch.set_grad_enabled(smooth):
        scope.run("\n".join([*plain, "self = Inner()"]))
        scope.namespace["x"] = spec.make()
        scope.keep("x", Traits(tame=spec.content == "random"))
        drawer.block(1, 3)
    end = drawer.operand()
    assert end is not None
    lines = [*drawer.lines, f"return {end}"]
    return [*plain, "", *_indented(["def forward(self, x):", *_indented(lines)], 1), ""], scope.traits_of(end)


def _calls(pick: Pick, specs: list[TensorSpec], smooth: bool) -> list[str]:
    """The calls: first as drawn, then with other contents, and now and then with changes."""
    lines: list[str] = []
    given = ", ".join(f"a{number}" for number in range(len(specs)))
    for number in range(pick((2, 3, 4))):
        kind = pick(range(14)) if number else 0
        if kind == 9:
            specs = [replace(spec, shape=_resized(spec.shape)) for spec in specs]
        elif kind == 8 and not smooth:
            specs = [replace(specs[0], dtype=pick(DTYPES)), *specs[1:]]
        elif kind == 7:
            specs = [replace(spec, layout=pick(LAYOUTS) if spec.shape else "contiguous") for spec in specs]
        elif kind == 6:
            lines.append(pick(CHANGES) if not smooth else "thing.flag = not thing.flag")
        if kind != 5:  # else the same tensors once more
            for position, spec in enumerate(specs):
                made = f"{replace(spec, seed=spec.seed + number)!r}.make()" + (".requires_grad_()" if smooth else "")
                lines.append(f"a{position} = {made}")
            if kind == 4 and len(specs) > 1:
                lines.append("a1 = a0")
            if kind == 3 and len(specs) > 1 and specs[0].shape:
                lines.append("a0, a1 = a0[1:], a0[:-1]")
        lines.append(f"yield function, ({given},)")
    return lines


def _resized(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size + 2 if size > 1 else size for size in shape)
