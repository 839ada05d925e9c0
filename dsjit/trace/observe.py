"""Observer: runs around one real call of the user's function and records what the call read and wrote.

What a trace depends on is what its Python read: arguments, attributes, globals, closures, classes, torch's state.
Each read becomes a `Fact` on a path from a root; a changed fact makes the trace stale, and nothing else does.

How reads are seen:

- attributes: the classes of objects met carry wrappers while the trace runs (`trace.reads.patching`);
- globals, closures, class and module attributes: a profile hook sees each code object once, and the names that it
  contains are noted (`trace.reads.scopes`);
- containers: lists, dictionaries and sets are noted whole when they are met, since their own reads cannot be seen.

An object that was not reached from a root through observed reads was born during the trace, and is not guarded.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.effects.accumulators import CANDIDATES, Accumulators
from dsjit.trace.effects.before import MODULE_TABLES
from dsjit.trace.effects.effects import Effect, EffectFinder, EffectKind, Problem, changing_facts, stored_attribute
from dsjit.trace.effects.forbidden import (
    FORBIDDEN_NAMES,
    PASSING,
    RandomStates,
    blame,
    forbidden_builtin,
    forbidden_code,
    is_loading,
)
from dsjit.trace.effects.given_data import GivenData
from dsjit.trace.effects.native_code import foreign_native_module
from dsjit.trace.effects.replay import HELD, Location
from dsjit.trace.guards.guard import Guard
from dsjit.trace.guards.overlap import SharedMemory
from dsjit.trace.numbers.leaks import LeakWatch
from dsjit.trace.numbers.open_places import OpenPlaces
from dsjit.trace.reads.facts import ARGS_SLOT, FUNCTION_SLOT, KWARGS_SLOT, TensorOf
from dsjit.trace.reads.library import is_library_code, is_library_file, is_stdlib_file
from dsjit.trace.reads.lookup import Where, where_stored
from dsjit.trace.reads.notes import Node, Notes, TracedNumbers
from dsjit.trace.reads.patching import PATCHES
from dsjit.trace.reads.paths import (
    ABSENT,
    Asked,
    Attribute,
    Item,
    Keys,
    Path,
    Root,
    Slot,
    Step,
    instance_dict,
    static_lookup,
)
from dsjit.trace.reads.profile_hook import ProfileHook
from dsjit.trace.reads.scopes import Scopes
from dsjit.trace.reads.stored import MODULE_WRITERS, note_module_entry, note_places, note_stored, stored_step
from dsjit.trace.reads.torch_state import TorchState, foreign_modes
from dsjit.trace.reads.uses import may_add
from dsjit.trace.recording.drawn import met_state
from dsjit.trace.shapes.open_shapes import OpenShapes
from dsjit.trace.training.gradients import GradientWatch, runs_backward
from dsjit.trace.training.open_numbers import OpenNumbers

__all__ = ["Effect", "EffectKind", "Observer", "Problem"]


class Observer:
    """Records what `function(*args, **kwargs)` reads and writes while the `with` block runs.

    function: a function, bound method, `functools.partial`, callable object or `nn.Module`.
    open_paths: where numbers are that change from call to call (see `trace.numbers.open_places`).
    Only the thread that enters is observed. Whatever happens inside, everything patched is put back.
    """

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
        open_paths: frozenset[Path] = frozenset(),
    ) -> None:  # fmt: skip
        self._function = function
        self._args = args
        self._kwargs = dict(kwargs)
        self._state = TorchState.current()
        self._scopes = Scopes(self._problem)
        self._notes = self._scopes.notes = Notes(self._scopes, self._state.grad_mode)
        self.before = self._notes.before
        self._accumulators = self._scopes.accumulators = Accumulators(self._notes)
        self.open_places = OpenPlaces(open_paths, self._notes, self._accumulators.has_read)
        self._scopes.open_paths = open_paths
        self.leaks = LeakWatch(self._notes.found, self._scopes.classes)
        self._lookups: dict[tuple[type, str], Where] = {}
        self.seen: set[tuple[int, str]] = set()
        self._writes: dict[tuple[int, str], tuple[Node, Any]] = {}
        self._sources: dict[tuple[int, str], Source] = {}
        self._finder = EffectFinder(self._notes, self._accumulators, self._scopes.classes, self._sources)
        self._hook = ProfileHook(self._on_code, self._on_builtin, self._unobservable)
        self._problems: list[Problem] = []
        self._effects: tuple[Effect, ...] = ()
        self.given_data = GivenData(self._notes)
        self._busy = False
        self._open_numbers = OpenNumbers(self._notes)
        self._gradients = GradientWatch(self._notes, self.refuse)
        self.asks_for_gradients = False
        self._on_import: Callable[[], None] = lambda: None

    def __enter__(self) -> Observer:
        """Raises CaptureError when this thread is being traced already, or under a mode or profiler of others."""
        mode = foreign_modes()
        if mode is not None:
            raise CaptureError(f"cannot trace: {mode}")
        PATCHES.enter(self)
        self._collects = gc.isenabled()
        try:
            self._profiler = sys.getprofile()
            if self._profiler is not None and not callable(self._profiler) and not hasattr(self._profiler, "enable"):
                raise CaptureError("cannot trace: a profiler that cannot be suspended is active")
            self._state = TorchState.current()
            self._random = RandomStates()
            self._notes.meet_call(self._function, self._args, self._kwargs)
            # A collection calls back whoever asked for it (profilers, test tools): that is not the traced code's doing.
            gc.disable()
            self._hook.start()
        except BaseException:
            self._scopes.leave()
            (gc.enable if self._collects else gc.disable)()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as steps:  # each is done whatever happens in the others, the last one first
            if callable(self._profiler):
                steps.callback(sys.setprofile, self._profiler)
            elif self._profiler is not None:
                steps.callback(self._profiler.enable)
            steps.callback(self._scopes.leave)
            if self._collects:
                steps.callback(gc.enable)
            steps.callback(self._hook.stop)
        self._notes.source = UNKNOWN_SOURCE
        self.open_places.restore()
        try:
            self._scopes.note_hooks()
            self._accumulators.finish()
            self._open_numbers.close()
            self._find_effects()
        except Exception as error:
            self._unobservable(error)
        drawn = self._random.why_changed()
        if drawn is not None:
            self._problem(drawn)
        changed = self._state.why_not()
        if changed is not None:
            self._problem(f"changes torch's global state ({changed})")

    # ---------------------------------------------------------------- what the recorder asks
    def tell_again(self) -> None:
        """Ask `leaks` about all code and every built-in function that runs from now on."""
        self._hook.tell_again()

    def pauses(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """To be called before and after work that is not the user's code: none of it is observed."""
        return self._hook.pauses()

    def path_of(self, obj: object) -> Path | None:
        """Where a tensor, or any object that has identity (constants, classes and modules have no path), was met
        first; None when it was born during the trace, or never read."""
        node = self._notes.node_of(obj)
        return None if node is None else node.path

    def existed(self, obj: object) -> bool:
        """Whether the object was there before the call, as far as was seen."""
        return self._notes.node_of(obj) is not None or self._notes.held.get(id(obj)) is obj

    def is_settled(self) -> bool:
        """Whether what existed before the call is now as it was then, as far as what it is can be known."""
        settled = not self._problems and self.given_data.is_empty()
        with self.open_places.withdrawn():
            return settled and bool(self._undisturbed(self._finder.finds_nothing, self._state.grad_mode))

    def locate(self, obj: object) -> Location | None:
        """How a compiled call finds an object that existed before."""
        node = self._notes.node_of(obj)
        if node is None:
            return Location(HELD, obj, ()) if self._notes.held.get(id(obj)) is obj else None
        steps: list[Step] = []
        path = node.path
        while path.parent is not None:
            assert not isinstance(path.step, Root)
            steps.append(path.step)
            path = path.parent
        if node.origin in (ARGS_SLOT, KWARGS_SLOT):
            return Location(node.origin, None, tuple(reversed(steps)))
        root = self._function if node.origin == FUNCTION_SLOT else self._notes.roots[node.origin]
        return Location(HELD, root, tuple(reversed(steps)))

    def listen_to_numbers(self, numbers: TracedNumbers) -> None:
        """numbers: those that the call takes out of tensors."""
        self._notes.numbers = numbers

    def listen_to_modules(self, on_math: Callable[[], None], on_import: Callable[[], None]) -> None:
        """on_math: called when the module `math` is met. on_import: before a module is loaded."""
        self._scopes.on_math, self._on_import = on_math, on_import

    @property
    def sums(self) -> Mapping[int, int]:
        """How often traced numbers were left where something was added, by id; known once the `with` block ended."""
        return Counter(self._accumulators.sums)

    def is_watching(self) -> bool:
        """Whether what runs now is the traced code."""
        return not self._busy

    @property
    def freed(self) -> Set[Any]:
        """Nodes of autograd's graph that a backward in the call has freed."""
        return self._gradients.freed

    def on_grad(self, tensor: torch.Tensor) -> None:
        """The `.grad` of a tensor is about to be read or written."""
        if not self._busy:
            self._quietly(self._gradients.meet, tensor)

    def _quietly(self, note: Callable[..., None], *arguments: Any) -> None:
        """`_undisturbed`, without the modes of the trace either."""
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            self._undisturbed(note, *arguments)

    def refuse(self, reason: str) -> None:
        """The line that is running does what a compiled call could not repeat."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and is_library_file(frame.f_code.co_filename):
            frame = frame.f_back
        self._problem(reason, blame(frame) or UNKNOWN_SOURCE)

    def note_answer(self, owner: Any, label: str, step: Asked | Item) -> None:
        """The call depends on what `owner`, which a guard holds itself, answers."""
        self._undisturbed(lambda: self._notes.note(self._notes.root_node(owner, label), step, step.get(owner)))

    def state_of(self, generator: torch.Generator) -> tuple[torch.Generator, torch.Tensor] | None:
        """See `trace.recording.drawn.StateOf`."""
        found: tuple[torch.Generator, torch.Tensor] | None = self._undisturbed(met_state, self._notes, generator)
        return found

    def number_in(self, container: dict[Any, Any], key: str) -> torch.Tensor | None:
        """See `trace.training.optimizers.GroupReader`."""
        found: torch.Tensor | None = self._undisturbed(self._open_numbers.number_in, container, key)
        return found

    def tensors_met(self) -> tuple[tuple[Path, torch.Tensor, TensorOf], ...]:
        """All tensors met so far, where, and what they were."""
        return tuple([(node.path, node.obj, metadata) for node, metadata in self._notes.metadata])

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the call wrote to Python state that existed before; known once the `with` block ended."""
        return self._effects

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that keeps the call from being captured; complete once the `with` block ended."""
        lost = (Problem(str(effect), effect.source) for effect in self._effects if effect.write is None)
        return (*self._problems, *lost)

    def build_guard(
        self, input_paths: Sequence[Path], written: frozenset[int], *, native: bool = True,
        shapes: OpenShapes | None = None, shared: tuple[SharedMemory, ...] = (),
    ) -> Guard:  # fmt: skip
        """The check that later calls must pass. Call it after the `with` block, in the state of the trace.

        input_paths: from `path_of`, of the tensors that the Graph takes, without duplicates.
        written: which of them (by position) the Graph writes in place.
        native: whether known objects may be checked by native code; the result is the same either way.
        shapes: which shapes the inputs may have, when these are open. shared: memory of which several are parts.
        """
        slots = self._notes.slots_of(input_paths)
        facts = self._notes.guarded_facts(self.asks_for_gradients)
        return Guard(
            function=self._function,
            facts=tuple(facts if shapes is None else shapes.open_facts(facts, input_paths)),
            roots=self._notes.roots,
            slot_count=self._notes.slot_count,
            inputs=tuple(slots[path] for path in input_paths),
            written=written,
            state=self._state,
            native=native,
            first=(self._args, self._kwargs),
            changing=changing_facts(self._notes, self._effects),
            met={node.slot: node.obj for node, _ in self._notes.metadata},
            shapes=shapes,
            shared=shared,
        )

    def let_go(self) -> None:
        """Forget all that was met: the life of the user's objects must not depend on the next collection."""
        for part in (self._notes.before, self._notes, self._scopes.accumulators, self._scopes, self.leaks, self):
            vars(part).clear()

    # ---------------------------------------------------------------- events

    def _on_builtin(self, function: Any, frame: types.FrameType) -> bool:
        """A built-in function is called; True when its calls are of no interest."""
        no_leak = self.leaks.on_builtin(function, frame)
        if (module := foreign_native_module(function)) is not None:
            self.refuse(f"calls native code of {module}, which may do to tensors what cannot be seen")
        if function.__name__ not in FORBIDDEN_NAMES:
            return no_leak
        if (reason := forbidden_builtin(function)) is not None:
            self._forbid(reason, frame)
        return False

    def _on_code(self, frame: types.FrameType) -> bool:
        """A code object begins to run; True when its further runs are of no interest."""
        code, scope = frame.f_code, frame.f_globals
        if not is_library_code(code, scope):
            try:
                self._scopes.on_code(code, scope)
            except Exception as error:
                self._unobservable(error)
        elif runs_backward(code):
            self._quietly(self._gradients.on_backward, code, dict(frame.f_locals))
            return False  # each backward has leaves of its own
        elif is_stdlib_file(code.co_filename):
            module = scope.get("__name__", "")
            if code.co_name == "_find_and_load_unlocked":
                self._on_import()
            if module == "logging" and code.co_qualname == "Logger.isEnabledFor":
                self._on_level(frame.f_locals["self"], frame.f_locals["level"])
                return False
            if module == "os" and code.co_qualname == "_Environ.__getitem__":
                self._on_environ(frame.f_locals["key"])
                return False  # each key is a read of its own
        if (reason := forbidden_code(scope.get("__name__", ""), code)) is not None:
            self._forbid(reason, frame.f_back)
            return False
        return self.leaks.on_code(frame)

    def _on_environ(self, key: str) -> None:
        self.note_answer(os.environ.__dict__["_data"], "os.environ", Item(os.environ.encodekey(key)))

    def _on_level(self, logger: logging.Logger, level: int) -> None:
        self.note_answer(logger, f"logger({logger.name})", Asked("isEnabledFor", type(logger).isEnabledFor, (level,)))

    def on_read(self, obj: object, name: str, value: object) -> bool:
        """An attribute of an instance was found by the default lookup. Returns whether another value is there now."""
        key = (id(obj), name)
        if key in self.seen or self._busy:
            return False
        node = self._notes.nodes.get(id(obj))
        if node is not None:
            optimizes = issubclass(type(obj), torch.optim.Optimizer)
            if optimizes and self._undisturbed(self._open_numbers.on_read, name, sys._getframe(2).f_code):
                self._undisturbed(self._note_read, node, name, value)
                return False
            if type(value) in CANDIDATES or self._notes.numbers.is_traced(value):
                frame = sys._getframe(2)
                if name == "__dict__" and frame.f_code in MODULE_WRITERS:
                    return False
                adds = may_add(frame.f_code, name) and not self.open_places.is_open(node, name)
                if adds and self._undisturbed(self._note_addition, node, name, value, frame):
                    return False
            self.seen.add(key)
            opened = len(self.open_places.opened)
            self._undisturbed(self._note_read, node, name, value)
            return len(self.open_places.opened) > opened
        return False

    def on_missing(self, obj: object, name: str) -> None:
        """The default lookup found nothing (a `__getattr__` may still answer)."""
        self.on_read(obj, name, ABSENT)

    def on_opaque_read(self, obj: object) -> None:
        """The class has a `__getattribute__` of its own: what it reads from the instance cannot be seen."""
        key = (id(obj), "")
        if key in self.seen or self._busy:
            return
        node = self._notes.nodes.get(id(obj))
        if node is not None:
            self.seen.add(key)
            self._undisturbed(self._notes.note_attributes, node)

    def on_module_lookup(self, module: torch.nn.Module, name: str) -> None:
        """`nn.Module.__getattr__` looks `name` up among parameters, buffers and submodules."""
        key = (id(module), "." + name)
        if key in self.seen or self._busy:
            return
        node = self._notes.nodes.get(id(module))
        if node is not None:
            self.seen.add(key)
            self._undisturbed(note_module_entry, self._notes, node, name)

    def on_write(self, obj: object, name: str, value: object) -> None:
        """An attribute of an instance is about to be set, or deleted (`value` is ABSENT)."""
        node = self._notes.nodes.get(id(obj))
        if node is not None and not self._busy:
            self._undisturbed(self._note_write, node, name, value, sys._getframe(2))

    def _undisturbed(self, note: Callable[..., Any], *arguments: Any) -> Any:
        """Call `note` without seeing its own reads and calls."""
        with self.undisturbed():
            self._notes.source = None
            try:
                answer = note(*arguments)
                self.leaks.on_notes()
                return answer
            except Exception as error:
                self._unobservable(error)
                return None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """While it lasts, nothing is seen."""
        before = self._busy
        self._busy = True
        self._hook.muted[0] |= 1
        try:
            yield
        finally:
            self._busy = before
            self._hook.muted[0] = self._hook.muted[0] & ~1 | int(before)

    # ---------------------------------------------------------------- notes of one event

    def _note_read(self, node: Node, name: str, value: object) -> None:
        cls = type(node.obj)
        where = self._lookups.get((cls, name))
        if where is None:
            where = self._lookups[cls, name] = where_stored(static_lookup(cls, name), name)
            if where is not Where.NOWHERE:
                self._scopes.note_class(cls, name, whole=True)
        if where is Where.WHOLE:
            self._notes.note_attributes(node)
        elif where is Where.SLOT:
            self._notes.note(node, Slot(name), value)
        elif where is Where.INSTANCE:
            entries = instance_dict(node.obj)
            self._notes.note(node, Attribute(name), ABSENT if entries is None else entries.get(name, ABSENT))
            if name in MODULE_TABLES:
                table = self._notes.node_of(value)
                if table is not None and Keys() not in table.known:
                    self._notes.note_contents(table)  # only single entries were noted so far

    def _note_addition(self, node: Node, name: str, value: object, frame: types.FrameType) -> bool:
        """The same for a read that may serve only to add to what is there."""
        step = stored_step(node.obj, name)
        return step is not None and self._accumulators.read_attribute(node, step, value, frame)

    def _note_write(self, node: Node, name: str, value: object, frame: types.FrameType) -> None:
        key = id(node.obj), name
        current = self.open_places.original(stored_attribute(node.obj, name))
        step = stored_step(node.obj, name)
        if key not in self._sources:
            self._sources[key] = blame(frame) or UNKNOWN_SOURCE
        if step is not None and self._accumulators.stores(node.obj, step, frame, current, value):
            return
        if key not in self._writes:
            self._writes[key] = node, current
            if isinstance(node.obj, torch.nn.Module):
                note_places(self._notes, node, name)
            elif value is ABSENT and step is not None:
                self._notes.note_presence(node, step, current)
        self.seen.add(key)
        self.seen.add((id(node.obj), "." + name))

    # ---------------------------------------------------------------- problems and effects

    def _problem(self, reason: str, source: Source = UNKNOWN_SOURCE) -> None:
        problem = Problem(reason, source, passing=reason in PASSING)
        if problem not in self._problems:
            self._problems.append(problem)

    def _unobservable(self, error: Exception) -> None:
        """Whatever goes wrong while observing must not reach the user's function, nor leave a guard with holes."""
        self._problem(f"reads state that cannot be observed ({type(error).__name__}: {error})")

    def _forbid(self, reason: str, frame: types.FrameType | None) -> None:
        source = blame(frame)
        if source is not None and not is_loading(frame):
            self._problem(reason, source)

    def _find_effects(self) -> None:
        for (_, name), (node, old) in self._writes.items():
            new = stored_attribute(node.obj, name)
            if old is not ABSENT and self._notes.unchanged(old, new):
                note_stored(self._notes, node, name)
        self._effects = (*self._finder.find(self._state.grad_mode), *self.given_data.effects())
