"""The data of a profile. `docs/profiler.md` documents the dictionary that `Profile.to_dict` makes of it.

Times are in nanoseconds, sizes in bytes, rates in bytes or operations a second. Steps, programs and findings refer to
each other by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal, TypeAlias

from dsjit.profiler.machine import Machine

__all__ = [
    "SCHEMA",
    "AliveValue",
    "CallProfile",
    "CompilerProfile",
    "EagerReason",
    "Finding",
    "GuardProfile",
    "LineProfile",
    "MemoryProfile",
    "NodeProfile",
    "ObjectProfile",
    "OpShare",
    "Phase",
    "ProfileData",
    "ProgramProfile",
    "SampledLine",
    "ScopeProfile",
    "SourceText",
    "SpanProfile",
    "StepProfile",
    "TimePart",
    "WayProfile",
]

SCHEMA: Final = "dsjit-profile-2"

Phase: TypeAlias = Literal["forward", "backward"]
StepKind: TypeAlias = Literal["kernel", "native", "library"]
Bound: TypeAlias = Literal["memory", "compute", "nothing"]


@dataclass(frozen=True, slots=True)
class TimePart:
    """Where the time went, in words; the parts add up to the whole."""

    name: str
    ns: float
    share: float
    meaning: str


@dataclass(frozen=True, slots=True)
class OpShare:
    """An op of a step, its line of the user's, and its share of the step's time (0 to 1, by the cost model of
    `profiler.attribution`)."""

    op: str
    file: str
    line: int
    function: str
    scope: str
    share: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """A fused op (kind "kernel"), a product or convolution that runs without Python ("native"), or a library call.

    program, position: which Program, and the how-manieth step of it. count: runs. total_ns, min_ns, median_ns: of the
    step alone. launch_ns: sum of the time since the step before it (making views, Python). share: of the profile.
    bytes_read, bytes_written, flops: of one run. dtype: that it computes in.
    attainable_bandwidth, attainable_flop_rate: of this machine, for so many bytes and this dtype.
    bound, bound_ns: what limits one run, and how long it takes at the attainable rates.
    reasons: why its ops were not fused with others. kernel, llvm, triton, graph: texts; empty where there are none.
    device: "cpu" or "gpu". What a GPU attains is not measured: its steps have no bound.
    """

    number: int
    program: int
    position: int
    kind: StepKind
    name: str
    count: int
    total_ns: float
    min_ns: float
    median_ns: float
    launch_ns: float
    share: float
    bytes_read: int
    bytes_written: int
    flops: int
    dtype: str
    bandwidth: float
    attainable_bandwidth: float
    flop_rate: float
    attainable_flop_rate: float
    bound: Bound
    bound_ns: float
    ops: tuple[OpShare, ...]
    reasons: tuple[str, ...]
    kernel: str
    llvm: str
    triton: str
    graph: str
    device: str


@dataclass(frozen=True, slots=True)
class AliveValue:
    """A tensor in memory at the peak. role: "arena", "library", "output", "input" or "constant"."""

    role: str
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Of one run of a Program, by its plan.

    live: bytes alive during each step, without inputs and constants. resident: bytes of these. peak_step, peak_bytes:
    where `live` is largest. alive: what is alive there, largest first. arena_bytes: of the arena; intermediate_bytes:
    sum of the buffers that share it. fused_bytes: of what eager would have stored, and fusion keeps in registers.
    saved: what the forward keeps for the backward. recomputed: ops that the backward does again, as "op at file:line".
    """

    live: tuple[int, ...]
    resident: int
    peak_step: int
    peak_bytes: int
    alive: tuple[AliveValue, ...]
    arena_bytes: int
    intermediate_bytes: int
    fused_bytes: int
    saved: tuple[AliveValue, ...]
    recomputed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProgramProfile:
    """One Program. before_ns, after_ns: sums of the time before its first step (results are allocated, addresses
    written) and after its last one (copies into what the caller sees). steps: their numbers."""

    number: int
    name: str
    phase: Phase
    runs: int
    total_ns: float
    min_ns: float
    median_ns: float
    before_ns: float
    after_ns: float
    steps: tuple[int, ...]
    source: str
    captured: str
    optimized: str
    memory: MemoryProfile


@dataclass(frozen=True, slots=True)
class LineProfile:
    """A line of the user's. steps: that have ops of it."""

    file: str
    line: int
    function: str
    text: str
    ns: float
    share: float
    forward_ns: float
    backward_ns: float
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScopeProfile:
    """A module by its path; "" is what runs in no submodule. Times are without the modules inside it."""

    path: str
    ns: float
    share: float
    forward_ns: float
    backward_ns: float


@dataclass(frozen=True, slots=True)
class SampledLine:
    """A line of the user's that ran, or called what ran, while no Program did; found by sampling (`profiler.sampling`).

    part: the name of the TimePart that it belongs to. what: "optimizer", "Python and eager ops", ...
    ns: its share of the samples of that part, of the part's measured time. samples: how many that were.
    """

    part: str
    what: str
    file: str
    line: int
    function: str
    text: str
    ns: float
    share: float
    samples: int


@dataclass(frozen=True, slots=True)
class SourceText:
    """Lines of a file, from number `start` on, around those that cost time."""

    file: str
    start: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallProfile:
    """Calls of one jitted object that went one way ("compiled", "traced", "eager").

    own_ns: without Programs and nested calls. before_ns: guards and dispatch; between_ns: looks at data; after_ns:
    making the result, effects.
    """

    name: str
    kind: str
    count: int
    total_ns: float
    min_ns: float
    median_ns: float
    own_ns: float
    before_ns: float
    between_ns: float
    after_ns: float


@dataclass(frozen=True, slots=True)
class GuardProfile:
    """The conditions under which one program of an object is used. check_ns: least time of a check, 0 if unknown.

    lines: how many conditions come from each "file:line", most first, with their share of the check.
    """

    conditions: int
    check_ns: float
    lines: tuple[tuple[str, int, float], ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WayProfile:
    """What a look saw. count: how often, in compiled calls, while the profile ran. to: numbers of the nodes that come
    next; several when it depends on more Python state which."""

    outcome: str
    count: int
    to: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """A node of the tree of ways that calls take: a program, and what was looked at after it.

    number: within the tree; the root is 0. program: number of its ProgramProfile, -1 if it did not run.
    look: what was looked at ("the truth of a tensor"), at file and line; "" at the end of a way, which has no ways on.
    """

    number: int
    program: int
    look: str
    file: str
    line: int
    ways: tuple[WayProfile, ...]


@dataclass(frozen=True, slots=True)
class EagerReason:
    """Why `count` calls ran eagerly. file, line: of the user's where the reason is, or "" and 0."""

    reason: str
    count: int
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class ObjectProfile:
    """One jitted object. counters: since the profile began. recompiles: (what changed, what to do).
    trees: for each kind of call in which Python looked at data, the ways that calls take, from the root on.
    eager: why calls ran eagerly, most frequent first."""

    name: str
    counters: Mapping[str, int]
    guards: tuple[GuardProfile, ...]
    recompiles: tuple[tuple[str, str], ...]
    trees: tuple[tuple[NodeProfile, ...], ...]
    eager: tuple[EagerReason, ...]
    not_fused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompilerProfile:
    """stages: seconds by stage, of what was compiled while the profile ran. kernels_generated, kernels_reused: machine
    code made, and found in the cache. programs_compiled, programs_reused: the same of whole Programs."""

    stages: Mapping[str, float]
    kernels_generated: int
    kernels_reused: int
    programs_compiled: int
    programs_reused: int
    objects: tuple[ObjectProfile, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at. kind: a word for programs. saves_ns: what could be saved at most, of the whole profile.
    title: one sentence; text: why, and what to do. file, line: of the user's, or "" and 0. steps: that it is about."""

    kind: str
    title: str
    text: str
    saves_ns: float
    file: str
    line: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpanProfile:
    """For the timeline: ns since the profile began. kind: of a call, "program" or "step". step: its number, or -1."""

    name: str
    kind: str
    begin_ns: int
    end_ns: int
    thread: int
    step: int


@dataclass(frozen=True, slots=True)
class ProfileData:
    """Everything. span_ns: from the begin to the end of the profile. compiled_ns: in Programs. attributed_ns: of that,
    what lands on a line of the user's. parts: of `span_ns`. sampled: lines of the parts that are no compiled calls.
    process_memory: (ns since the profile began, bytes that the process held), as it was sampled; empty where the system
    does not tell."""

    title: str
    span_ns: float
    compiled_ns: float
    attributed_ns: float
    machine: Machine
    parts: tuple[TimePart, ...]
    findings: tuple[Finding, ...]
    steps: tuple[StepProfile, ...]
    programs: tuple[ProgramProfile, ...]
    lines: tuple[LineProfile, ...]
    scopes: tuple[ScopeProfile, ...]
    sampled: tuple[SampledLine, ...]
    sources: tuple[SourceText, ...]
    calls: tuple[CallProfile, ...]
    compiler: CompilerProfile
    spans: tuple[SpanProfile, ...]
    process_memory: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it in dictionaries, lists, strings and numbers, as `json.dumps` takes it."""
        return {"schema": SCHEMA, **_plain(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Machine):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
