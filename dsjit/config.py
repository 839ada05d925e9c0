"""Every option of `dsjit.jit` and every environment variable, in two tables.

Validation, `python -m dsjit env` and the documentation are all derived from `OPTION_ROWS` and `VARIABLE_ROWS`.
Nothing here reads `os.environ`: callers pass the mapping that they mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from dsjit.errors import OptionError

__all__ = [
    "CHECK_LEVELS",
    "DEBUG_LEVELS",
    "OPTION_ROWS",
    "STANCE_ROWS",
    "VARIABLE_PREFIX",
    "VARIABLE_ROWS",
    "AtLimit",
    "Autotune",
    "Backend",
    "Environment",
    "Numerics",
    "OptionRow",
    "Options",
    "Stance",
    "StanceRow",
    "VariableRow",
    "checked_stance",
    "defaults",
    "parse_bytes",
]

Numerics: TypeAlias = Literal["eager", "fast"]
Backend: TypeAlias = Literal["auto", "llvm", "triton", "interpreter", "triton-interpret", "eager"]
Autotune: TypeAlias = Literal["off", "model", "measure"]
AtLimit: TypeAlias = Literal["eager", "raise"]
Stance: TypeAlias = Literal["default", "eager", "eager_on_recompile", "fail_on_recompile", "fail_on_eager"]

VARIABLE_PREFIX: Final = "DSJIT_"


@dataclass(frozen=True, slots=True)
class OptionRow:
    """One keyword of `dsjit.jit`: what it accepts, in words and as a predicate, and what it means."""

    name: str
    accepted: str
    accepts: Callable[[object], bool]
    meaning: str


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_bool_or_none(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive_int_or_none(value: object) -> bool:
    return value is None or _is_positive_int(value)


def _one_of(*choices: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in choices


_is_at_limit: Final = _one_of("eager", "raise")

_UNITS: Final = {"B": 1, **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")}}
_UNITS_OF_TEN: Final = {f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("KMGT")}


def parse_bytes(amount: int | str) -> int:
    """A number of bytes, given as such or as text: "6GiB", "1.5 GB", "800 MiB". Raises ValueError."""
    if isinstance(amount, str):
        units = {**_UNITS, **_UNITS_OF_TEN}
        matched = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", amount)
        if matched is None or matched[2] not in units:
            raise ValueError(amount)
        amount = int(float(matched[1]) * units[matched[2]])
    if isinstance(amount, bool) or amount < 1:
        raise ValueError(amount)
    return amount


def _is_bytes_or_none(value: object) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, int | str) and parse_bytes(value) > 0
    except ValueError:
        return False


OPTION_ROWS: Final[tuple[OptionRow, ...]] = (
    OptionRow(
        "dynamic",
        "None, True or False",
        _is_bool_or_none,
        "Whether one program serves many sizes: None for sizes that change between calls, True for all sizes of the "
        "arguments from the first call on, False for none. Sizes of 0 and 1 always have programs of their own.",
    ),
    OptionRow(
        "fullgraph",
        "True or False",
        _is_bool,
        "Raise CaptureError instead of running a call eagerly when it cannot be captured as one static graph.",
    ),
    OptionRow(
        "numerics",
        '"eager" or "fast"',
        _one_of("eager", "fast"),
        '"eager": round where eager rounds, no contraction, no fast-math, eager\'s random stream. '
        '"fast": inside a kernel, bfloat16 and float16 values stay in float32 from op to op, multiply-adds may be '
        "contracted and constants reassociated. NaN and infinities keep their meaning, random streams are eager's.",
    ),
    OptionRow(
        "backend",
        '"auto", "llvm", "triton", "interpreter", "triton-interpret" or "eager"',
        _one_of("auto", "llvm", "triton", "interpreter", "triton-interpret", "eager"),
        '"auto": kernels on CPU tensors are compiled to machine code by LLVM, those on CUDA tensors by Triton; '
        '"triton" is the same. "llvm": ops on CUDA tensors stay library calls. "interpreter": kernels run in the '
        'Python interpreter that defines them, "triton-interpret": they are emitted as for a GPU and run in Triton\'s '
        'interpreter (both slow, for checking). "eager": the captured graph runs op by op, without kernels.',
    ),
    OptionRow(
        "autotune",
        '"off", "model" or "measure"',
        _one_of("off", "model", "measure"),
        'How kernels are chosen where there are several, on a GPU. "off": matrix products are the library\'s. '
        '"model": one that something is fused behind is a kernel, whose tiles a cost model chooses. '
        '"measure": the kernels and the library\'s product are measured, once for each device, sizes and versions, '
        "and the fastest one is kept in a file. So is attention, among the ops of several libraries.",
    ),
    OptionRow(
        "cuda_graphs",
        "True or False",
        _is_bool,
        "Whether calls on a GPU are recorded as CUDA graphs and replayed: for small kernels, whose launches take "
        "longer than they do. Inputs that move from call to call are copied, and so are results. "
        "Calls that draw random numbers or read what is in the host's memory run as always.",
    ),
    OptionRow(
        "disable",
        "True or False",
        _is_bool,
        "Return the callable unchanged in behaviour: every call runs eagerly and nothing is traced.",
    ),
    OptionRow(
        "recompile_limit",
        "None or an int of 1 or more",
        _is_positive_int_or_none,
        "How many programs one jitted object may hold (None: what DSJIT_RECOMPILE_LIMIT says, or 8). What calls do "
        "beyond it that fit none of them, at_recompile_limit says.",
    ),
    OptionRow(
        "at_recompile_limit",
        'None, "eager" or "raise"',
        lambda value: value is None or _is_at_limit(value),
        "What calls do that fit no program when there are recompile_limit programs (None: what "
        'DSJIT_AT_RECOMPILE_LIMIT says, or "eager"). "eager": they run eagerly, with one warning that names what '
        'changed. "raise": they raise RecompileError, which fullgraph does, too.',
    ),
    OptionRow(
        "memory_budget",
        'None, an int of bytes, or text such as "6GiB" or "800 MB"',
        _is_bytes_or_none,
        "The most memory that a call that is differentiated, and its backward, may take beyond the call's arguments: "
        "results, what is kept for the backward, gradients, and what is in between. To keep to it, the backward "
        "computes parts of the forward again. When that does not suffice, MemoryBudgetError names the smallest budget "
        "that works. None: no limit.",
    ),
    OptionRow(
        "offload_dir",
        "None or the name of a directory",
        lambda value: value is None or isinstance(value, str),
        "Where a call that is differentiated puts what it keeps for its backward: each tensor of 1 MiB or "
        "more goes to a file after its last use, and a thread reads it again ahead of the backward. The file has no "
        "name, so nothing is left behind; what is read is checked. A full disk raises OffloadError before anything is "
        "computed. Under memory_budget, only as much is put there as the budget asks for, and only where that is "
        "faster than to compute it again. None: all is kept in memory.",
    ),
    OptionRow(
        "offload_to_host",
        "True or False",
        _is_bool,
        "Whether a call on a GPU that is differentiated puts what it keeps for its backward into the host's memory: "
        "each tensor of 1 MiB or more is copied to pinned memory after its last use, and back ahead of the backward, "
        "on a stream of its own. Takes the place of offload_dir there. Under memory_budget, only as much is put there "
        "as the budget asks for, and only where that is faster than to compute it again. It changes nothing on a CPU.",
    ),
)


@dataclass(frozen=True, slots=True)
class StanceRow:
    """One stance of `dsjit.set_stance`, and what it means."""

    name: Stance
    meaning: str


STANCE_ROWS: Final[tuple[StanceRow, ...]] = (
    StanceRow("default", "Calls that fit no program are traced and compiled."),
    StanceRow("eager", "Every call runs eagerly: nothing is guarded, nothing is traced."),
    StanceRow("eager_on_recompile", "Calls that fit a program run compiled, all others eagerly: nothing is traced."),
    StanceRow(
        "fail_on_recompile",
        "A call that would be traced or compiled, a first one included, raises RecompileError, which names what "
        "changed. What is known to run eagerly still does.",
    ),
    StanceRow(
        "fail_on_eager", "A call that would run eagerly raises CaptureError, as if every object had fullgraph=True."
    ),
)


def checked_stance(name: object) -> Stance:
    """`name` as a Stance. Raises `OptionError`, with the closest name that is one."""
    for row in STANCE_ROWS:
        if row.name == name:
            return row.name
    raise OptionError(f"there is no stance {name!r}{_suggestion(str(name), [row.name for row in STANCE_ROWS])}")


@dataclass(frozen=True, slots=True)
class Options:
    """How one callable is compiled: the keywords of `dsjit.jit`, validated. `OPTION_ROWS` documents each.

    Raises `OptionError`, naming the option and what it accepts, if a value is not accepted.
    """

    dynamic: bool | None = None
    fullgraph: bool = False
    numerics: Numerics = "eager"
    backend: Backend = "auto"
    autotune: Autotune = "off"
    cuda_graphs: bool = False
    disable: bool = False
    recompile_limit: int | None = None
    at_recompile_limit: AtLimit | None = None
    memory_budget: int | str | None = None
    offload_dir: str | None = None
    offload_to_host: bool = False

    def __post_init__(self) -> None:
        for row in OPTION_ROWS:
            value = getattr(self, row.name)
            if not row.accepts(value):
                raise OptionError(f"dsjit.jit: option {row.name}={value!r} is not accepted; use {row.accepted}")

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Options:
        """The Options that `dsjit.jit(**keywords)` asks for.

        Raises `OptionError` for a name that is no option, with the closest name that is, and for a value that
        the option does not accept.
        """
        names = [row.name for row in OPTION_ROWS]
        for name in keywords:
            if name not in names:
                raise OptionError(f"dsjit.jit: there is no option {name!r}{_suggestion(name, names)}")
        return cls(**keywords)

    @property
    def saves_memory(self) -> bool:
        """Whether calls that are differentiated are to take less memory than they might."""
        return self.memory_budget is not None or self.offload_dir is not None or self.offload_to_host

    @property
    def specializes(self) -> bool:
        """Whether a program for exact sizes may be much faster than one for many."""
        return self.uses_gpus and self.dynamic is not True and (self.autotune != "off" or self.cuda_graphs)

    @property
    def uses_gpus(self) -> bool:
        """Whether there are kernels on CUDA tensors."""
        return self.backend in ("auto", "triton")

    @property
    def compiles(self) -> bool:
        """Whether kernels become machine code."""
        return self.uses_gpus or self.backend == "llvm"


DEBUG_LEVELS: Final[tuple[str, ...]] = (
    "nothing",
    "a line per compile: what was compiled and how long each stage took",
    "the Graph after capture and after the passes, too",
    "every Kernel and every reason against a fusion, too",
    "the LLVM IR of every Kernel, too",
)
"""What each level of `DSJIT_DEBUG` prints to standard error."""

CHECK_LEVELS: Final[tuple[str, ...]] = (
    "nothing",
    "the rules of the IR: every Graph after every pass, every Kernel, every memory plan; dead memory is poisoned",
    "what is computed, too: on each call, every Graph on the reference executor, and every step of the Program",
)
"""What each level of `DSJIT_CHECK` checks, beside what the levels below it do."""


@dataclass(frozen=True, slots=True)
class VariableRow:
    """One environment variable: the `Environment` field it sets, what it accepts, and how its text is parsed.

    `parse` raises `ValueError` for text that is not accepted.
    """

    name: str
    field: str
    accepted: str
    parse: Callable[[str], int | bool | str | Path]
    meaning: str


def _parse_switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _parse_level(text: str) -> int:
    level = int(text)
    if not 0 <= level < len(DEBUG_LEVELS):
        raise ValueError(text)
    return level


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _parse_check(text: str) -> int:
    level = int(text)
    if not 0 <= level < len(CHECK_LEVELS):
        raise ValueError(text)
    return level


def _parse_directory(text: str) -> Path:
    directory = Path(text)
    if directory.exists() and not directory.is_dir():
        raise ValueError(text)
    return directory


def _parse_limit(text: str) -> int:
    limit = int(text)
    if limit < 1:
        raise ValueError(text)
    return limit


def _parse_at_limit(text: str) -> str:
    if not _is_at_limit(text):
        raise ValueError(text)
    return text


VARIABLE_ROWS: Final[tuple[VariableRow, ...]] = (
    VariableRow(
        "DSJIT_DEBUG",
        "debug",
        f"0 to {len(DEBUG_LEVELS) - 1}",
        _parse_level,
        f"How much to print to standard error. {'; '.join(f'{i}: {text}' for i, text in enumerate(DEBUG_LEVELS))}.",
    ),
    VariableRow(
        "DSJIT_DUMP",
        "dump",
        "a directory",
        _parse_directory,
        "Write every stage of every compile to numbered files below this directory, which is made if need be.",
    ),
    VariableRow(
        "DSJIT_CHECK",
        "check",
        f"0 to {len(CHECK_LEVELS) - 1}",
        _parse_check,
        "What to check, raising VerificationError. "
        f"{'; '.join(f'{i}: {text}' for i, text in enumerate(CHECK_LEVELS))}.",
    ),
    VariableRow(
        "DSJIT_DISABLE",
        "disable",
        "0 or 1",
        _parse_switch,
        "1: every jitted object runs eagerly, as if its option disable were True.",
    ),
    VariableRow(
        "DSJIT_STANCE",
        "stance",
        ", ".join(row.name for row in STANCE_ROWS),
        checked_stance,
        "The stance of the process until dsjit.set_stance sets another one.",
    ),
    VariableRow(
        "DSJIT_RECOMPILE_LIMIT",
        "recompile_limit",
        "1 or more",
        _parse_limit,
        "The option recompile_limit of objects that do not set it.",
    ),
    VariableRow(
        "DSJIT_AT_RECOMPILE_LIMIT",
        "at_recompile_limit",
        "eager or raise",
        _parse_at_limit,
        "The option at_recompile_limit of objects that do not set it.",
    ),
    VariableRow(
        "DSJIT_FUEL",
        "fuel",
        "an int of 0 or more",
        _parse_count,
        "Do only so many rewrites in the whole process (passes that change a Graph, ops put into kernels, fusions): "
        "what `python -m dsjit bisect` searches with.",
    ),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The `DSJIT_*` environment variables, typed. `VARIABLE_ROWS` documents each; the defaults are those of unset ones.

    `dump` is a directory that may not exist yet.
    """

    debug: int = 0
    dump: Path | None = None
    check: int = 0
    disable: bool = False
    stance: Stance = "default"
    recompile_limit: int = 8
    at_recompile_limit: AtLimit = "eager"
    fuel: int | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Environment:
        """Parse the variables of `environ` (usually `os.environ`); an empty value counts as unset.

        Raises `OptionError` for a value that a variable does not accept, and for a name with the prefix `DSJIT_`
        that is no variable, with the closest name that is.
        """
        rows = {row.name: row for row in VARIABLE_ROWS}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(VARIABLE_PREFIX):
                continue
            row = rows.get(name)
            if row is None:
                raise OptionError(f"there is no environment variable {name}{_suggestion(name, rows)}")
            if not text:
                continue
            try:
                values[row.field] = row.parse(text)
            except ValueError:
                raise OptionError(f"environment variable {name}={text!r} is not accepted; use {row.accepted}") from None
        return cls(**values)


def _suggestion(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(choices)}"


def defaults(options: type[Options] | type[Environment]) -> dict[str, object]:
    """The default of each field of `Options` or `Environment`, by field name."""
    return {field.name: field.default for field in fields(options)}
