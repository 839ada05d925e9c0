"""The object that `dsjit.jit` returns, and the path of a call through it."""

from __future__ import annotations

import functools
import gc
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from dsjit.api.checking import checked_program
from dsjit.api.compile import Compilation, StageTimer, compile_graph, compile_template
from dsjit.api.open_calls import OpenCalls
from dsjit.api.parts import outermost_callables
from dsjit.api.session import Session
from dsjit.api.stats import Counters
from dsjit.api.trace_tree import Leaf, Miss, Step, TraceTree, TreeFull, plant
from dsjit.codegen.interpret import InterpretedProgram
from dsjit.codegen.sized_program import SizeSource
from dsjit.config import Options
from dsjit.dump import open_dump
from dsjit.errors import BackendError, CaptureError, DsjitWarning, VerificationError
from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Source
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import Mismatch, fill
from dsjit.passes.reference import run_reference
from dsjit.trace.capture import Capture, capture
from dsjit.trace.guards import Guard
from dsjit.trace.recorder import Untraceable
from dsjit.trace.rehearsal import Rehearsal
from dsjit.trace.replay import Returned
from dsjit.trace.segments import Segment
from dsjit.trace.source import SourceFinder

__all__ = ["EagerVerdict", "Jitted"]

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
    """

    def __init__(self, target: Callable[..., Any], options: Options, session: Session, name: str) -> None:
        functools.update_wrapper(self, target, updated=())
        self._target = target
        self._options = options
        self._session = session
        self._name = name
        self._trees: list[TraceTree] = []
        self._verdicts: list[EagerVerdict] = []
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._retries = 0
        self._parts: list[torch.nn.Module] = []
        self._open_calls = OpenCalls(options.dynamic, session.marks)
        self.counters: Counters = session.registry.register(name)

    def __repr__(self) -> str:
        return f"<dsjit.jit of {self._name}: {len(self.compilations)} programs>"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rejit, (self._target, self._options))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        missed = None
        for tree in self._trees:
            inputs = tree.guard.check(args, kwargs)
            if inputs is not None:
                leaf = tree.leaf
                try:
                    if leaf is not None:
                        outputs = leaf.run(inputs)
                    else:
                        found = tree.walk(inputs, args, kwargs)
                        if type(found) is Miss:
                            missed = missed or (tree, found)
                            continue
                        leaf, inputs, outputs = found
                except VerificationError:
                    raise
                except Exception:
                    break
                counters = self.counters
                counters.calls_compiled += 1
                counters.cache_hits += 1
                return leaf.finish(inputs, outputs, (args, kwargs))
        else:
            return self._miss(args, kwargs, missed)
        # Eager raises the same, from the user's line. Nothing that anybody could see has happened yet.
        return self._eagerly("the compiled program raised an exception", args, kwargs)

    # -- the slow path -------------------------------------------------------------------------------------------

    def _miss(self, args: tuple[Any, ...], kwargs: dict[str, Any], missed: tuple[TraceTree, Miss] | None) -> Any:
        session = self._session
        if session.is_tracing():
            # Inside another trace: the ops belong to the outer Graph.
            return self._target(*args, **kwargs)
        if self._options.disable or session.environment.disable:
            return self._eagerly("compilation is disabled", args, kwargs)
        for verdict in self._verdicts:
            if verdict.guard is None or verdict.guard.check(args, kwargs) is not None:
                return self._refuse(verdict.problems, args, kwargs)
        limit = self._options.recompile_limit
        if (missed is None or missed[0].full) and len(self._trees) + len(self._verdicts) >= limit:
            return self._over_limit(args, kwargs)
        with self._lock:
            return self._trace(args, kwargs, missed)

    def _eagerly(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.counters.calls_eager += 1
        self.counters.eager_reasons[reason] += 1
        return self._target(*args, **kwargs)

    def _refuse(self, problems: tuple[Untraceable, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._options.fullgraph:
            raise CaptureError(self._describe(problems))
        return self._eagerly(problems[0].reason, args, kwargs)

    def _describe(self, problems: tuple[Untraceable, ...]) -> str:
        first = problems[0]
        return f"{self._name} cannot be captured as one graph: {first.reason} (at {_known(first.source)})"

    def _over_limit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = self._trees[0].guard.why_not(args, kwargs) if self._trees else None
        reason = f"the limit of {self._options.recompile_limit} programs is reached (option recompile_limit)"
        detail = f"; against the newest program: {changed}" if changed else ""
        if self._open_calls.reasons:
            detail += f"; one program for all sizes was not possible: {self._open_calls.reasons[-1]}"
        self._warn(f"{self._name} runs eagerly from now on when no program fits: {reason}{detail}", "limit")
        return self._eagerly(reason, args, kwargs)

    def _warn(self, text: str, key: str, source: Source = UNKNOWN_SOURCE) -> None:
        """Warn once about `key`, at the user's line `source`, or at the line of theirs that made the call."""
        if key not in self._warned:
            self._warned.add(key)
            where = _known(source)
            warnings.warn_explicit(text, DsjitWarning, where.file, where.line)

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any], missed: tuple[TraceTree, Miss] | None) -> Any:
        timer = StageTimer()
        self.counters.traces += 1
        with timer.stage("trace"), self._session.tracing():
            captured = capture(self._target, args, kwargs, self._name)
        if not captured.segments:
            self._note_problems(captured)
            return captured.result
        self.counters.calls_traced += 1
        try:
            if missed is not None or not self._compile_open(captured, timer, args, kwargs):
                self._compile(captured, timer, missed)
        except BackendError as error:
            sources = [node.source for segment in captured.segments for node in segment.graph.nodes]
            problem = Untraceable(f"code generation failed: {error}", sources[0])
            self._verdicts.append(EagerVerdict(captured.guard, (problem,)))
            if self._options.fullgraph:
                raise
            self._warn(f"{self._name} runs eagerly: code generation failed: {error}", "backend")
        except TreeFull as full:
            assert missed is not None
            self._trees.remove(missed[0])
            self._verdicts.append(EagerVerdict(missed[0].guard, (Untraceable(full.reason, full.source),)))
            self._warn(f"{self._name} runs eagerly from now on: {full.reason} (at {full.source})", "full", full.source)
            if not full.by_shape:  # modules whose sizes depend on data would be compiled for each size
                self._compile_parts()
        finally:
            if captured.observer is not None:
                captured.observer.let_go()
        return captured.result

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

    def _note_problems(self, captured: Capture) -> None:
        self.counters.calls_eager += 1
        self.counters.eager_reasons[captured.problems[0].reason] += 1
        passing = all(problem.passing for problem in captured.problems)
        if not passing or self._retries >= RETRIES:
            reason = captured.problems[0].reason
            again = sum(verdict.problems[0].reason == reason for verdict in self._verdicts) >= RETRIES
            # What keeps a call from being captured, however its guard varies, will keep the next one from it too.
            self._verdicts.append(EagerVerdict(None if again else captured.guard, captured.problems))
        elif captured.guard is not None:
            self._retries += 1
        text = self._describe(captured.problems)
        if self._options.fullgraph:
            raise CaptureError(text)
        self._warn(f"{text}; it runs eagerly", text, captured.problems[0].source)

    def _compile(self, captured: Capture, timer: StageTimer, missed: tuple[TraceTree, Miss] | None) -> None:
        assert captured.guard is not None
        guard, inputs, segments = captured.guard, captured.inputs, captured.segments
        finish = _finisher(captured)

        def build(segment: Segment) -> Step:
            return self._build(segment, timer)

        with _no_collection():
            if missed is not None:
                tree, miss = missed
                if tree.grow(miss, guard, inputs, segments, build, finish):
                    return
                if len(self._trees) + len(self._verdicts) >= self._options.recompile_limit:
                    tree.full = True
                    return
            self._trees.insert(0, TraceTree(plant(guard, inputs, segments, build, finish)))

    def _compile_open(
        self, captured: Capture, timer: StageTimer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Compile the call for many sizes, if it is one."""
        if self._options.backend != "llvm":
            return False
        with _no_collection():
            with timer.stage("rehearsal"), self._session.tracing():
                found = self._open_calls.open(captured, self._target, args, kwargs, self._name)
            if found is None:
                return False
            try:
                compilation = self._compile_template(found, timer)
            except Mismatch as stop:
                self._open_calls.reasons.append(str(stop))
                return False
        step = Step(Segment(found.template.example, None), compilation, compilation.program)
        leaf = Leaf(found.guard, found.inputs, None, step, step.run, _open_finisher(found))
        self._trees.insert(0, TraceTree(leaf))
        return True

    def _compile_template(self, found: Rehearsal, timer: StageTimer) -> Compilation:
        session = self._session
        canonical = [found.template.at([base + number for number in range(len(found.sources))]) for base in (911, 2011)]
        structure = (self._options.numerics, found.sources, *map(graph_structure, canonical))
        compilation = session.programs.get(structure)
        if compilation is None:
            dump = open_dump(session.environment.dump, self._name) if session.environment.dump else None
            self.counters.compiles += 1
            sources = tuple([SizeSource(*source) for source in found.sources])
            compilation = compile_template(
                found.template,
                sources,
                found.typical,
                self._options.numerics,
                session.environment,
                session.kernels,
                timer,
                dump,
                session.fuel,
            )
            session.programs[structure] = compilation
            self.counters.kernels_generated += compilation.generated
            self.counters.kernels_reused += compilation.reused
        else:
            self.counters.programs_reused += 1
            self.counters.kernels_reused += len(compilation.kernels)
        self._count_ops(compilation)
        return compilation

    def _build(self, segment: Segment, timer: StageTimer) -> Step:
        """Compile a segment, or find that an equal one was compiled before."""
        session, counters = self._session, self.counters
        structure = (self._options.numerics, graph_structure(segment.graph))
        compilation = session.programs.get(structure)
        if compilation is None:
            dump = open_dump(session.environment.dump, self._name) if session.environment.dump else None
            counters.compiles += 1
            compilation = compile_graph(
                segment.graph, self._options.numerics, session.environment, session.kernels, timer, dump, session.fuel
            )
            session.programs[structure] = compilation
            counters.kernels_generated += compilation.generated
            counters.kernels_reused += compilation.reused
        else:
            counters.programs_reused += 1
            counters.kernels_reused += len(compilation.kernels)
        self._count_ops(compilation)
        run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]] = compilation.program
        if self._options.backend == "eager":
            run = functools.partial(_run_eagerly, compilation.captured)
        elif self._options.backend == "interpreter":
            run = InterpretedProgram(compilation.optimized, compilation.steps, compilation.plan.views)
        elif compilation.stages:
            run = checked_program(compilation, self._options.numerics, session.kernels)
        return Step(segment, compilation, run)

    def _count_ops(self, compilation: Compilation) -> None:
        self.counters.ops_in_kernels += sum(len(kernel.nodes) for kernel in compilation.kernels)
        self.counters.ops_in_library += len(compilation.steps) - len(compilation.kernels)

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
        return tuple(self._trees)

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """Every program, once, those of the newest tree first."""
        found = [compilation for tree in self._trees for compilation in tree.compilations]
        return tuple({id(compilation): compilation for compilation in found}.values())

    @property
    def verdicts(self) -> tuple[EagerVerdict, ...]:
        """What is known to run eagerly."""
        return tuple(self._verdicts)

    def clear(self) -> None:
        """Forget every program: the next call traces anew."""
        self._trees = []
        self._verdicts = []
        self._warned = set()
        self._retries = 0
        self._open_calls = OpenCalls(self._options.dynamic, self._session.marks)


def _known(source: Source) -> Source:
    """`source`, or the user's line that is running when it is unknown."""
    return SourceFinder().current(2) if source is UNKNOWN_SOURCE else source


@contextmanager
def _no_collection() -> Iterator[None]:
    """Tracing and compiling make many small objects that all live on: looking for cycles among them costs a third of
    the time, and would run finalizers and callbacks that are no part of the traced code."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_eagerly(graph: Graph, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list(run_reference(graph, inputs))


def _rejit(target: Callable[..., Any], options: Options) -> Any:
    raise TypeError("a jitted function cannot be unpickled: pickle the original function and jit it again")


def _finisher(captured: Capture) -> Callable[[Any, Any, Any], Any]:
    """From input and output tensors, and the call's arguments, to the function's result (and its effects)."""
    recipe = captured.recipe
    assert recipe is not None
    if recipe.first_output:
        return lambda inputs, outputs, call: outputs[0]
    return recipe.finish if recipe.events or recipe.writes else recipe.make


def _open_finisher(found: Rehearsal) -> Callable[[Any, Any, Any], Any]:
    """The same for a call of many sizes."""
    template, polynomials, sources = found.returned, found.sizes, found.sources
    typical: tuple[Returned, ...] = fill(template, [polynomial.at(found.typical) for polynomial in polynomials])
    recipe = found.description.recipe(typical)
    if recipe.first_output:
        return lambda inputs, outputs, call: outputs[0]
    if not polynomials:
        return recipe.finish

    def finish(inputs: Any, outputs: Any, call: Any) -> Any:
        point = [inputs[number].shape[dim] for number, dim in sources]
        returned = fill(template, [polynomial.at(point) for polynomial in polynomials])
        return replace(recipe, returned=returned).finish(inputs, outputs, call)

    return finish
