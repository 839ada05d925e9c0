"""The object that `dsjit.jit` returns, and the path of a call through it."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback, set_eval_frame

from dsjit.api.builder import Builder, no_collection
from dsjit.api.changing_numbers import ChangingNumbers
from dsjit.api.compile import Compilation, StageTimer
from dsjit.api.finishers import finisher, open_finisher
from dsjit.api.open_calls import OpenCalls
from dsjit.api.parts import outermost_callables
from dsjit.api.planting import Trace
from dsjit.api.recompiles import Cause, describe_refusal, find_cause
from dsjit.api.session import Session
from dsjit.api.stats import Counters
from dsjit.api.trace_nodes import Runner, Step, without_history
from dsjit.api.trace_tree import Miss, TraceTree, TreeFull
from dsjit.config import Options
from dsjit.errors import (
    BackendError,
    CaptureError,
    DsjitWarning,
    MemoryBudgetError,
    OffloadError,
    RecompileError,
    VerificationError,
)
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.ir.joint_graph import JointTemplate
from dsjit.ir.template import Mismatch
from dsjit.trace.capture import Capture, capture
from dsjit.trace.guards.guard import Guard
from dsjit.trace.looks.segments import Segment
from dsjit.trace.recording.source import SourceFinder
from dsjit.trace.recording.untraceable import Untraceable

__all__ = ["EagerVerdict", "Jitted"]

SECONDS_TO_WAIT: Final = 1.0
"""For another thread that traces the same function, before the call runs eagerly."""

RETRIES: Final = 2
"""How often a call that did something which the next one may not do again (it logged) is traced anew."""


@dataclass(slots=True, eq=False)
class EagerVerdict:
    """Calls that are known to run eagerly, and why. Without a guard the verdict holds for every call."""

    guard: Guard | None
    problems: tuple[Untraceable, ...]


class Jitted:
    """A compiled callable: call it as the original. `__wrapped__` is the original.

    target: what is called and traced. name: how messages and counters call it.
    raised: what the latest compiled program raised where eager did not, as text.
    """

    def __init__(self, target: Callable[..., Any], options: Options, session: Session, name: str) -> None:
        functools.update_wrapper(self, target, updated=())
        self._target = target
        self._options = options
        self._session = session
        self._name = name
        self._stances = session.stances
        # Replaced, never changed in place: a call sees by identity that another thread was faster.
        self._trees: tuple[TraceTree, ...] = ()
        self._verdicts: tuple[EagerVerdict, ...] = ()
        self._recompiles: tuple[Cause, ...] = ()
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._retries = 0
        self.raised = ""
        self._parts: list[torch.nn.Module] = []
        self._open_calls = OpenCalls(options.dynamic, session.marks)
        self._changing_numbers = ChangingNumbers()
        self.counters: Counters = session.registry.register(name)
        self._builder = Builder(options, session, name, self.counters)

    def __repr__(self) -> str:
        return f"<dsjit.jit of {self._name}: {len(self.compilations)} programs>"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rejit, (self._target, self._options))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if get_eval_frame_callback() is not None:
            return self._hidden(args, kwargs)
        if self._stances.eager and self._stances.current() == "eager":
            return self._eagerly("the stance is eager", args, kwargs)
        missed = None
        trees = self._trees
        for tree in trees:
            try:
                inputs = tree.guard.check(args, kwargs)
                if inputs is None:
                    continue
                leaf = tree.leaf
                if leaf is not None:
                    outputs = leaf.run(inputs)
                else:
                    found = tree.walk(inputs, args, kwargs)
                    if type(found) is Miss:
                        missed = missed or (tree, found)
                        continue
                    leaf, inputs, outputs = found
            except (OffloadError, VerificationError):
                raise  # eager would take the memory that offload_dir is to save
            except Exception as error:
                failure = error
                break
            counters = self.counters
            counters.calls_compiled += 1
            counters.cache_hits += 1
            return leaf.finish(inputs, outputs, (args, kwargs))
        else:
            return self._miss(args, kwargs, trees, missed)
        # Eager raises the same, from the user's line. Nothing that anybody could see has happened yet.
        result = self._eagerly("the compiled program raised an exception", args, kwargs)
        self.raised = repr(failure)
        self._warn(f"the compiled program of {self._name} raised where eager does not: {self.raised}", self.raised)
        return result

    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, inside a function that torch.compile runs, which would look into dsjit's own code."""
        watcher = set_eval_frame(None)
        try:
            return self(*args, **kwargs)
        finally:
            set_eval_frame(watcher)

    # -- the slow path -------------------------------------------------------------------------------------------

    def _miss(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        trees: tuple[TraceTree, ...],
        missed: tuple[TraceTree, Miss] | None,
    ) -> Any:
        """The call fits none of `trees`."""
        session = self._session
        if session.is_tracing():
            # Inside another trace: the ops belong to the outer Graph.
            return self._target(*args, **kwargs)
        if self._options.disable or session.environment.disable:
            return self._eagerly("compilation is disabled", args, kwargs)
        verdicts = self._verdicts
        for verdict in verdicts:
            if verdict.guard is None or verdict.guard.check(args, kwargs) is not None:
                return self._refuse(verdict.problems, args, kwargs)
        stance = self._stances.current()
        if stance == "eager_on_recompile":
            return self._eagerly("no program fits, and the stance is eager_on_recompile", args, kwargs)
        if stance == "fail_on_recompile":
            cause = find_cause(trees, missed, args, kwargs)
            raise RecompileError(describe_refusal(self._name, cause, SourceFinder().current()))
        if (missed is None or missed[0].full) and len(trees) + len(verdicts) >= self._limit:
            return self._over_limit(trees, missed, args, kwargs)
        if missed is not None and not self._forbids_eager():
            tree, miss = missed
            try:
                if tree.waits_after(miss):
                    return self._eagerly(
                        "tensors led a new way, and too few of the ways before it came again", args, kwargs
                    )
            except TreeFull as full:
                self._give_up(tree, full)
                return self._eagerly(full.reason, args, kwargs)
        # The thread that traces may wait for this one, in the user's code: then waiting for it would be for ever.
        if not self._lock.acquire(timeout=SECONDS_TO_WAIT):
            return self._eagerly("another thread is tracing the function", args, kwargs)
        try:
            grown = missed is not None and len(missed[0].leaves) != missed[1].leaves
            if self._trees is trees and self._verdicts is verdicts and not grown:
                return self._trace(args, kwargs, missed)
        finally:
            self._lock.release()
        return self(*args, **kwargs)

    @property
    def _limit(self) -> int:
        return self._options.recompile_limit or self._session.environment.recompile_limit

    def _forbids_eager(self) -> bool:
        return self._options.fullgraph or self._stances.current() == "fail_on_eager"

    def _eagerly(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.counters.calls_eager += 1
        self.counters.eager_reasons[reason] += 1
        return self._target(*args, **kwargs)

    def _refuse(self, problems: tuple[Untraceable, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._forbids_eager():
            raise CaptureError(self._describe(problems))
        return self._eagerly(problems[0].reason, args, kwargs)

    def _describe(self, problems: tuple[Untraceable, ...]) -> str:
        first = problems[0]
        return f"{self._name} cannot be captured as one graph: {first.reason} (at {_known(first.source)})"

    def _over_limit(
        self,
        trees: tuple[TraceTree, ...],
        missed: tuple[TraceTree, Miss] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        limit = f"the limit of {self._limit} programs is reached (option recompile_limit)"
        at_limit = self._options.at_recompile_limit or self._session.environment.at_recompile_limit
        raises = at_limit == "raise" or self._forbids_eager()
        if raises or "limit" not in self._warned:
            detail = self._describe_change(find_cause(trees, missed, args, kwargs))
            if raises:
                call = SourceFinder().current(1)
                raise RecompileError(f"{self._name}, called at {call}, fits no program: {limit}{detail}")
            self._warn(f"{self._name} runs eagerly from now on when no program fits: {limit}{detail}", "limit")
        return self._eagerly(limit, args, kwargs)

    def _describe_change(self, cause: Cause | None) -> str:
        if cause is None:
            return ""
        against = "against the newest program: " if cause.change else ""
        reasons = self._open_calls.reasons
        exact = f"; one program for all sizes was not possible: {reasons[-1]}" if reasons else ""
        return f"; {against}{cause}{exact}; {cause.advice}, or raise recompile_limit"

    def _warn(self, text: str, key: str, source: Source = UNKNOWN_SOURCE) -> None:
        """Warn once about `key`, at the user's line `source`, or at the line of theirs that made the call."""
        if key not in self._warned:
            self._warned.add(key)
            where = _known(source)
            warnings.warn_explicit(text, DsjitWarning, where.file, where.line)

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any], missed: tuple[TraceTree, Miss] | None) -> Any:
        with no_collection():
            return self._trace_now(args, kwargs, missed)

    def _trace_now(self, args: tuple[Any, ...], kwargs: dict[str, Any], missed: tuple[TraceTree, Miss] | None) -> Any:
        timer = StageTimer()
        cause = find_cause(self._trees, missed, args, kwargs)  # before the call changes what it was made with
        self.counters.traces += 1
        open_paths = self._changing_numbers.open_paths(self._trees, missed, cause, args, kwargs)
        if cause is not None:
            self.counters.recompiles += 1
            self.counters.recompile_causes[str(cause)] += 1
            self._recompiles = (*self._recompiles, cause)
        with timer.stage("trace"), self._session.tracing():
            captured = capture(self._target, args, kwargs, self._name, open_paths)
        self._changing_numbers.learn(captured)
        if not captured.segments:
            if captured.opened:
                self._note_reason(captured)  # without open numbers, the next such call may well be captured
            else:
                self._note_problems(captured)
            return captured.result
        self.counters.calls_traced += 1
        try:
            grafted = missed is not None and self._graft(captured, timer, *missed)
            if not grafted and not self._compile_open(captured, timer, missed, args, kwargs):
                self._compile(captured, timer, missed)
        except TreeFull as full:
            assert missed is not None
            self._give_up(missed[0], full)
        except (VerificationError, MemoryBudgetError):
            raise  # DSJIT_CHECK=1 asks for the one, the option memory_budget for the other
        except Exception as error:  # the call has run: its result is the user's, whatever goes wrong here
            self._note_failure(error, captured)
        finally:
            if captured.observer is not None:
                captured.observer.let_go()
        return captured.result

    def _give_up(self, given: TraceTree, full: TreeFull) -> None:
        """Calls that fit this tree's guard run eagerly from now on."""
        self._trees = tuple([tree for tree in self._trees if tree is not given])
        self._verdicts = (*self._verdicts, EagerVerdict(given.guard, (Untraceable(full.reason, full.source),)))
        self._warn(f"{self._name} runs eagerly from now on: {full.reason} (at {full.source})", "full", full.source)
        if not full.by_shape:  # modules whose sizes depend on data would be compiled for each size
            self._compile_parts()

    def _note_failure(self, error: Exception, captured: Capture) -> None:
        """A traced call could not be compiled."""
        if self._forbids_eager():
            raise error
        what = "code generation failed" if isinstance(error, BackendError) else f"{type(error).__name__} in compiling"
        if not isinstance(error, MemoryError):  # there may be more memory at the next call
            sources = [node.source for segment in captured.segments for node in segment.graph.nodes]
            problem = Untraceable(f"{what}: {error}", sources[0] if sources else UNKNOWN_SOURCE)
            self._verdicts = (*self._verdicts, EagerVerdict(captured.guard, (problem,)))
        self._warn(f"{self._name} runs eagerly: {what}: {error}", "failure")

    def _compile_parts(self) -> None:
        """Compile the modules that a jitted module calls, in place, unless they are compiled already."""
        module = getattr(self._target, "__self__", None)
        for part in outermost_callables(module) if isinstance(module, torch.nn.Module) else ():
            if part._compiled_call_impl is None:
                part._compiled_call_impl = Jitted(part._call_impl, self._options, self._session, type(part).__name__)
                self._parts.append(part)

    def release_parts(self) -> None:
        """Put back to eager what was compiled in place because this object runs eagerly."""
        for part in self._parts:
            part._compiled_call_impl = None
        self._parts = []

    def _note_reason(self, captured: Capture) -> None:
        self.counters.calls_eager += 1
        self.counters.eager_reasons[captured.problems[0].reason] += 1

    def _note_problems(self, captured: Capture) -> None:
        self._note_reason(captured)
        passing = all(problem.passing for problem in captured.problems)
        if not passing or self._retries >= RETRIES:
            reason = captured.problems[0].reason
            again = sum(verdict.problems[0].reason == reason for verdict in self._verdicts) >= RETRIES
            # What keeps a call from being captured, however its guard varies, will keep the next one from it too.
            verdict = EagerVerdict(None if again else captured.guard, captured.problems)
            self._verdicts = (*self._verdicts, verdict)
        elif captured.guard is not None:
            self._retries += 1
        text = self._describe(captured.problems)
        if self._forbids_eager():
            raise CaptureError(text)
        self._warn(f"{text}; it runs eagerly", text, captured.problems[0].source)

    def _graft(self, captured: Capture, timer: StageTimer, tree: TraceTree, miss: Miss) -> bool:
        """Whether the way that the call took joins one that is there, whatever sizes are open."""
        if captured.joint is not None or captured.opened - captured.closed:
            return False
        return tree.graft(miss, _trace_of(captured), self._build(captured, timer))

    def _compile(self, captured: Capture, timer: StageTimer, missed: tuple[TraceTree, Miss] | None) -> None:
        self._plant(_trace_of(captured), captured, timer, missed)

    def _build(
        self, captured: Capture, timer: StageTimer, open_joint: JointTemplate | None = None
    ) -> Callable[[Segment], Step]:
        def build(segment: Segment) -> Step:
            if open_joint is not None and segment.sizes is not None:
                return self._builder.open_training(segment.sizes, open_joint, timer)
            if captured.joint is not None and segment.look is None:
                if self._options.memory_budget is not None and len(captured.segments) > 1:
                    raise CaptureError("memory_budget bounds no call in which Python looks at what tensors hold")
                return self._builder.training(captured.joint, timer)
            step = self._builder.segment(segment, timer)
            return replace(step, run=_hidden_from_autograd(step.run, captured))

        return build

    def _plant(
        self,
        trace: Trace,
        captured: Capture,
        timer: StageTimer,
        missed: tuple[TraceTree, Miss] | None,
        open_joint: JointTemplate | None = None,
    ) -> None:
        build = self._build(captured, timer, open_joint)
        if missed is not None:
            tree, miss = missed
            if tree.grow(miss, trace, build):
                return
            if len(self._trees) + len(self._verdicts) >= self._limit:
                tree.full = True
                return
        self._trees = (TraceTree.planted(trace, build), *self._trees)

    def _compile_open(
        self,
        captured: Capture,
        timer: StageTimer,
        missed: tuple[TraceTree, Miss] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bool:
        """Compile the call for many sizes, if it is one."""
        exact = captured.joint is not None and self._options.saves_memory
        if not self._options.compiles or exact or captured.opened - captured.closed:
            return False
        if self._options.specializes and len(self._trees) < self._limit // 2:
            self._open_calls.note(captured)
            return False
        with timer.stage("rehearsal"), self._session.tracing():
            found = self._open_calls.open(captured, self._target, args, kwargs, self._name)
        if found is None:
            return False
        inputs = tuple(zip(found.inputs, found.places, strict=True))
        trace = Trace(found.guard, inputs, found.segments, open_finisher(found), captured.effects)
        try:
            self._plant(trace, captured, timer, missed, found.joint)
        except Mismatch as stop:
            self._open_calls.reasons.append(str(stop))
            return False
        return True

    @property
    def name(self) -> str:
        """How messages and counters call it."""
        return self._name

    # -- for explain and tests -----------------------------------------------------------------------------------

    @property
    def target(self) -> Callable[..., Any]:
        """The original callable."""
        return self._target

    @property
    def options(self) -> Options:
        """How it is compiled."""
        return self._options

    @property
    def trees(self) -> tuple[TraceTree, ...]:
        """What was compiled, newest first: one tree for each kind of call."""
        return self._trees

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """Every program, once, those of the newest tree first."""
        found = [compilation for tree in self._trees for compilation in tree.compilations]
        return tuple({id(compilation): compilation for compilation in found}.values())

    @property
    def verdicts(self) -> tuple[EagerVerdict, ...]:
        """What is known to run eagerly."""
        return self._verdicts

    @property
    def recompiles(self) -> tuple[Cause, ...]:
        """Why it was traced again, in order."""
        return self._recompiles

    def clear(self) -> None:
        """Forget every program: the next call traces anew."""
        self._trees = ()
        self._verdicts = ()
        self._recompiles = ()
        self._warned = set()
        self._retries = 0
        self._open_calls = OpenCalls(self._options.dynamic, self._session.marks)
        self._changing_numbers = ChangingNumbers()


def _trace_of(captured: Capture) -> Trace:
    """A call for exact sizes."""
    assert captured.guard is not None
    inputs = tuple(zip(captured.inputs, captured.places, strict=True))
    return Trace(captured.guard, inputs, captured.segments, finisher(captured), captured.effects)


def _known(source: Source) -> Source:
    """`source`, or the user's line that is running when it is unknown."""
    return SourceFinder().current(2) if source is UNKNOWN_SOURCE else source


def _hidden_from_autograd(run: Runner, captured: Capture) -> Runner:
    """`run`, which works on tensors that require gradients, while what it does is not to be differentiated."""
    seen = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in captured.given)
    return without_history(run) if seen else run


def _rejit(target: Callable[..., Any], options: Options) -> Any:
    raise TypeError("a jitted function cannot be unpickled: pickle the original function and jit it again")
