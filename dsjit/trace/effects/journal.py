"""Journal: keeps what the traced code prints, logs and warns, in order, so that compiled runs tell it again.

The functions and streams by which that is done are replaced by stand-ins while a trace runs. What is told keeps the
content that tensors had at that moment; other objects are told as the text that they were then.
"""

from __future__ import annotations

import builtins
import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import CodeType, FrameType, FunctionType, MethodType, TracebackType
from typing import Any, Final, Protocol

import torch

from dsjit.trace.effects.events import Event, Logged, Printed, Warned, Written, frame_above, place_of
from dsjit.trace.effects.stand_in import StandIn, behind
from dsjit.trace.effects.text import Marks, Text
from dsjit.trace.numbers.tables import plain
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.library import is_library_file, is_own_file
from dsjit.trace.reads.paths import Asked
from dsjit.trace.recording.source import SourceFinder

__all__ = ["Journal", "tells"]

_STREAMS: Final = ("stdout", "stderr")
_MEMORY: Final = (io.StringIO, io.BytesIO)
_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Watched(Protocol):
    """What the journal asks of the Observer."""

    def undisturbed(self) -> AbstractContextManager[None]: ...

    def is_watching(self) -> bool: ...

    def existed(self, obj: object) -> bool: ...

    def refuse(self, reason: str) -> None: ...

    def note_answer(self, owner: Any, label: str, step: Asked) -> None: ...


class Journal:
    """While it is active, appends to `events` what this thread tells, each with the values to tell it with.

    is_traced: the Value of a number that the call took out of a tensor; None for others. pin_all: makes each of these
        numbers one that every run has to see again. caller: of dsjit's code, what calls the traced function.
    marks: what stands for the text of such numbers.
    """

    def __init__(
        self,
        observer: Watched,
        is_traced: Callable[[object], object],
        pin_all: Callable[[], None] = lambda: None,
        caller: CodeType | None = None,
        marks: Marks | None = None,
    ) -> None:
        self._base = caller
        self._marks = Marks() if marks is None else marks
        self._is_traced = is_traced
        self._pin_all = pin_all
        self.events: list[tuple[Event, list[Any]]] = []
        self._observer = observer
        self._sources = SourceFinder()

    def __enter__(self) -> Journal:
        self._streams = {name: behind(getattr(sys, name)) for name in _STREAMS}
        _REGISTER.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            for name, stream in self._streams.items():
                if behind(getattr(sys, name)) is not stream:
                    self._observer.refuse(f"changes sys.{name}")
        finally:
            _REGISTER.leave()

    # ---------------------------------------------------------------- what is told

    def on_print(self, show: Callable[..., None], values: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        given = behind(options.get("file"))
        file = behind(sys.stdout) if given is None else given
        shown: tuple[Any, ...] | None = None
        with self._shield():
            if self._is_told(file):
                kept = [self._keep(value) for value in values]
                flush = bool(options.get("flush", False))
                source = self._sources.current()
                self.events.append((Printed(options.get("sep"), options.get("end"), flush, given, show, source), kept))
                shown = tuple(map(_shown, kept))
        if shown is None:
            show(*values, **{**options, "file": file})
            return
        with self._unseen():
            show(*shown, **{**options, "file": file})

    def on_write(self, name: str, stream: Any, text: str | None) -> Any:
        kept = self._marks.read(text) if isinstance(text, str) else text
        with self._shield():
            if self._is_told(stream):
                self.events.append((Written(name, text is None, self._sources.current()), [kept]))
        with self._unseen():
            return stream.flush() if text is None else stream.write(str(kept))

    def on_record(self, handle: Callable[..., Any], logger: logging.Logger, record: logging.LogRecord) -> Any:
        kept = False
        with self._shield():
            kept = self._keep_record(logger, record)
        if not kept:
            return handle(logger, record)
        with self._unseen():
            record.msg, record.args = self._readable(record.msg), _shown(self._readable(record.args))
            return handle(logger, record)

    def _keep_record(self, logger: logging.Logger, record: logging.LogRecord) -> bool:
        """Whether a compiled run can log the same."""
        reason = _why_not_logged(logger, record)
        if reason is not None:
            self._observer.refuse(reason)
            return False
        extra = {name: self._keep(value) for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        with self._observer.undisturbed():
            plain = self._is_plain(record.msg) and self._is_plain(record.args)
            message, arguments = (self._copy(record.msg), self._copy(record.args)) if plain else ("", ())
        if not plain:
            if type(record.args) in (tuple, dict):
                record.args = self._readable(record.args)
            record.msg = self._readable(record.msg)
            self._pin_all()  # text is made of them, which asks nobody
            message, arguments = record.getMessage(), ()
        if type(arguments) is dict:
            arguments = (arguments,)  # as the logging call had it
        event = Logged(logger, record.levelno, record.pathname, record.lineno, record.funcName)
        self.events.append((event, [message, arguments, extra or None]))
        return True

    def on_warning(self, message: str | Warning, category: type[Warning], stacklevel: int, frame: FrameType) -> None:
        inside = 0
        current: FrameType | None = frame
        while current is not None and current.f_code is not self._base:
            inside += not is_own_file(current.f_code.co_filename)
            current = current.f_back
        above = stacklevel - inside - 1
        place = place_of(frame_above(frame, max(stacklevel, 1) - 1))
        warned = Warned(message, category, *place, above if above >= 0 else None)
        with self._shield():
            self.events.append((warned, []))
            arguments = (str(warned.message), warned.category, warned.module, warned.line)
            self._observer.note_answer(warnings, "warnings", Asked("raises", _raises, arguments))
        with self._unseen():
            warned.give(*place)

    def _is_told(self, stream: Any) -> bool:
        """Whether a compiled run can tell `stream` the same; what else it could be is refused."""
        if any(stream is own for own in self._streams.values()):
            if _is_known_stream(stream):
                return True
            self._observer.refuse(f"prints to a {type(stream).__qualname__}")
        elif self._observer.existed(stream) or not isinstance(stream, _MEMORY):
            self._observer.refuse("prints to a stream that is neither sys.stdout nor sys.stderr")
        return False

    def _keep(self, value: Any) -> Any:
        """A copy of `value` as it is now: plain containers, numbers, strings and tensors; the text of anything else."""
        with self._observer.undisturbed():
            if self._is_plain(value):
                return self._copy(value)
        return str(value)

    def _is_plain(self, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return type(value) in (torch.Tensor, torch.nn.Parameter)
        if type(value) is dict:
            return all(is_constant(key) and self._is_plain(item) for key, item in value.items())
        if type(value) in (list, tuple):
            return all(map(self._is_plain, value))
        return is_constant(value) or self._is_traced(value) is not None

    def _readable(self, value: Any) -> Any:
        """`value` without marks, as a look at its numbers finds it."""
        if type(value) is str:
            return str(self._marks.read(value))
        if type(value) is dict:
            return {key: self._readable(item) for key, item in value.items()}
        return type(value)(map(self._readable, value)) if type(value) in (list, tuple) else value

    def _copy(self, value: Any) -> Any:
        if type(value) is str:
            return self._marks.read(value)
        if isinstance(value, torch.Tensor):
            if type(value) is torch.Tensor and not value.requires_grad:
                return value.clone(memory_format=torch.preserve_format)
            return value
        if type(value) is dict:
            return {key: self._copy(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self._copy, value))
        return value

    @contextmanager
    def _shield(self) -> Iterator[None]:
        """What fails in it must not reach the user, who is told what the call tells."""
        try:
            yield
        except Exception as error:
            self._observer.refuse(f"the trace failed ({type(error).__name__}: {error})")

    def _unseen(self) -> _Unseen:
        return _Unseen(self._observer)


class _Unseen:
    """What happens is neither observed nor recorded."""

    def __init__(self, observer: Watched) -> None:
        self._guards = (observer.undisturbed(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch())

    def __enter__(self) -> None:
        for guard in self._guards:
            guard.__enter__()

    def __exit__(self, *error: Any) -> None:
        for guard in reversed(self._guards):
            guard.__exit__(*error)


def _shown(value: Any) -> Any:
    """`value` with plain numbers for those that were taken out of tensors."""
    if isinstance(value, float | int) and type(value) is not bool:
        return plain(value)
    if type(value) is dict:
        return {key: _shown(item) for key, item in value.items()}
    if type(value) is Text:
        return str(value)
    return type(value)(map(_shown, value)) if type(value) in (list, tuple) else value


def _is_known_stream(stream: Any) -> bool:
    """Whether writing to `stream` runs no code of the user's."""
    method = type(stream).write
    return not isinstance(method, FunctionType) or _is_installed(method)


def _is_installed(function: Any) -> bool:
    """Whether a function or method is Python's own, or of an installed package."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return True
    file = function.__code__.co_filename
    return is_library_file(file) or "site-packages" in file or "dist-packages" in file


def _why_not_logged(logger: logging.Logger, record: logging.LogRecord) -> str | None:
    """Why a later run could not log the same, or None."""
    if record.exc_info or record.stack_info:
        return "logs an exception or a stack"
    if not all(_is_installed(getattr(type(logger), name)) for name in ("handle", "makeRecord", "callHandlers")):
        return f"logs by a {type(logger).__qualname__}"
    if not _is_installed(logging.getLogRecordFactory()):
        return "logs records of a factory of its own"
    filters: list[Any] = [*logger.filters]
    current: logging.Logger | None = logger
    while current is not None:
        for handler in current.handlers:
            filters += handler.filters
            if not (_is_installed(type(handler).emit) and _is_installed(type(handler).handle)):
                return f"logs to a {type(handler).__qualname__}"
            stream = getattr(handler, "stream", None)
            if stream is not None and not _is_known_stream(stream):
                return f"logs to a {type(stream).__qualname__}"
        current = current.parent if current.propagate else None
    own = next((each for each in filters if not _is_installed(getattr(each, "filter", each))), None)
    return None if own is None else "logs through a filter of its own"


def _raises(module: Any, text: str, category: type[Warning], blamed: str, line: int) -> bool:
    """Whether the filters of `warnings` (`module`) turn a warning into an error (as `warn_explicit` reads them)."""
    for action, message, kind, where, number in module.filters:
        if (
            (message is None or message.match(text))
            and issubclass(category, kind)
            and (where is None or where.match(blamed))
            and number in (0, line)
        ):
            return bool(action == "error")
    return bool(module.defaultaction == "error")


def tells(callee: Any) -> bool:
    """Whether it is the stand-in of `print`, or the `write` of a standard stream's."""
    writes = isinstance(callee, MethodType) and isinstance(callee.__self__, _Stream)
    return isinstance(callee, _Print) or (writes and callee.__func__ is _Stream.write)


# -- stand-ins ---------------------------------------------------------------------------------------------------------


class _Print(StandIn):
    """In place of `builtins.print`."""

    def __call__(self, *values: Any, **options: Any) -> None:
        journal = _REGISTER.active()
        if journal is None or not options.keys() <= {"sep", "end", "file", "flush"}:
            self.original(*values, **options)
        else:
            journal.on_print(self.original, values, options)


class _Warn(StandIn):
    """In place of `warnings.warn`."""

    def __call__(self, message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any) -> None:
        journal = _REGISTER.active()
        if journal is None or args or kwargs:
            self.original(message, category, stacklevel + 1, *args, **kwargs)
        else:
            chosen = type(message) if isinstance(message, Warning) else (category or UserWarning)
            journal.on_warning(message, chosen, stacklevel, sys._getframe(1))


class _Stream(StandIn):
    """In place of `sys.stdout` or `sys.stderr`."""

    def __init__(self, original: Any, name: str) -> None:
        super().__init__(original)
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def write(self, text: str) -> Any:
        journal = _REGISTER.active()
        return self.original.write(text) if journal is None else journal.on_write(self._name, self.original, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> Any:
        journal = _REGISTER.active()
        return self.original.flush() if journal is None else journal.on_write(self._name, self.original, None)


class _Current(threading.local):
    """The journal of each thread."""

    journal: Journal | None = None


class _Register:
    """Installs the stand-ins with the first journal of the process, and takes them away with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._current = _Current()
        self._originals: list[tuple[Any, str, Any, Any]] = []

    def enter(self, journal: Journal) -> None:
        with self._lock:
            try:
                if not self._count:
                    self._install()
            except BaseException:
                self._remove()
                raise
            self._count += 1
        self._current.journal = journal

    def leave(self) -> None:
        self._current.journal = None
        with self._lock:
            self._count -= 1
            if not self._count:
                self._remove()

    def _remove(self) -> None:
        for owner, name, original, stand_in in self._originals:
            if getattr(owner, name) is stand_in:
                setattr(owner, name, original)
        self._originals = []

    def active(self) -> Journal | None:
        """The journal of this thread, unless what runs is not the traced code."""
        journal = self._current.journal
        return journal if journal is not None and journal._observer.is_watching() else None

    def _install(self) -> None:
        handle = logging.Logger.handle

        def handle_and_note(logger: logging.Logger, record: logging.LogRecord) -> Any:
            journal = self.active()
            return handle(logger, record) if journal is None else journal.on_record(handle, logger, record)

        handle_and_note.__dict__["__dsjit_original__"] = handle
        places: list[tuple[Any, str, Any]] = [
            (builtins, "print", _Print(builtins.print)),
            (warnings, "warn", _Warn(warnings.warn)),
            (logging.Logger, "handle", handle_and_note),
            *((sys, name, _Stream(getattr(sys, name), name)) for name in _STREAMS),
        ]
        for owner, name, stand_in in places:
            self._originals.append((owner, name, getattr(owner, name), stand_in))
            setattr(owner, name, stand_in)


_REGISTER: Final = _Register()
"""What is replaced is process-wide, so its bookkeeping is too."""
