"""A service's own code is called through here: it ends, and leaves what it is given as it was.

Code that does not gets an error in its place, as if it had raised one. So it parks its stream with
the reason, and all other streams go on; a query has this error for its answer.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast
from weakref import WeakSet

import msgspec
from msgspec import inspect, structs

F = TypeVar("F", bound=Callable[..., Any])

_encode = msgspec.msgpack.Encoder().encode

#: A call that is still the same one at so many looks, one a second, does not end. Looks and not
#: seconds: a process that was stopped for a while has not been calculating all that time.
LOOKS = 10
#: Who calls a service's code.
OURS = ("labkit.service.", "labkit.read.", "labkit.process.")


class Misbehaved(Exception):
    """A rule or a query does not end, or a rule changes what it was given."""


class _Stop(BaseException):
    """Raised inside a call that does not end, past any ``except Exception`` of its own."""


class _Slot:
    """What one thread calls: ``running`` is the number of the call, 0 between two calls."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.running = self.seen = self.looks = 0
        self.stopped = False


def guarded(function: F, *takes: Any) -> F:
    """``function``, raising :class:`Misbehaved` where it does not end, or changes an argument.

    ``takes`` are the types of its arguments, as far as they are to be looked at; what was changed
    is mended.
    """
    lent = [number for number, type in enumerate(takes) if changeable(type)]

    @wraps(function)
    def ended(*given: Any) -> Any:
        try:
            slot = _slots.mine
        except AttributeError:
            slot = _new_slot()
        if slot.running:  # called by guarded code, which is looked at already
            return function(*given)
        try:
            slot.running = next(_numbers)
            try:
                return function(*given)
            finally:
                slot.running = 0
                if slot.stopped:
                    _forget(slot)
        except _Stop as stop:
            slot.stopped = False
            name = _culprit(stop) or _name(function)
            raise Misbehaved(f"{name} was stopped: it had not ended after {LOOKS} s") from None

    @wraps(function)
    def unchanged(*given: Any) -> Any:
        before = [(given[number], _encode(given[number])) for number in lent]
        try:
            return ended(*given)
        finally:
            for value, kept in before:
                given_back(value, kept, function)

    return cast(F, unchanged if lent else ended)


def lend(value: Any) -> bytes:
    """What ``given_back`` compares with."""
    return _encode(value)


def given_back(value: Any, kept: bytes, by: Callable[..., Any]) -> None:
    """Mend a struct that was changed, and raise :class:`Misbehaved`."""
    if _encode(value) == kept:
        return
    was = msgspec.msgpack.decode(kept, type=type(value))
    for field in type(value).__struct_fields__:
        structs.force_setattr(value, field, getattr(was, field))
    raise Misbehaved(
        f"{_name(by)} changed the {type(value).__name__} that it was given; "
        "return a new one: structs.replace(state, ...)"
    )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _culprit(stop: _Stop) -> str:
    """The outermost function of a service that had not ended; empty if it was none."""
    for frame, _ in traceback.walk_tb(stop.__traceback__):
        if not str(frame.f_globals.get("__name__")).startswith(OURS):
            return frame.f_code.co_qualname
    return ""


@cache
def changeable(type: Any) -> bool:
    """Whether a value of this type can be changed in place."""
    seen: set[Any] = set()

    def look(info: inspect.Type) -> bool:
        match info:
            case inspect.Metadata():
                return look(info.type)
            case inspect.UnionType():
                return any(look(member) for member in info.types)
            case inspect.VarTupleType() | inspect.FrozenSetType():
                return look(info.item_type)
            case inspect.TupleType():
                return any(look(item) for item in info.item_types)
            case inspect.StructType():
                if info.cls in seen:
                    return False
                seen.add(info.cls)
                frozen = info.cls.__struct_config__.frozen
                return not frozen or any(look(field.type) for field in info.fields)
        return isinstance(
            info,
            inspect.AnyType
            | inspect.ListType
            | inspect.SetType
            | inspect.DictType
            | inspect.ByteArrayType
            | inspect.CustomType
            | inspect.DataclassType
            | inspect.TypedDictType,
        )

    return look(inspect.type_info(type))


# --- the thread that looks

_lock = threading.Lock()
_slots = threading.local()
_watched: WeakSet[_Slot] = WeakSet()
_numbers = itertools.count(1)
_watching: threading.Thread | None = None


def _new_slot() -> _Slot:
    """The slot of this thread; with the first one the thread that looks begins."""
    global _watching
    slot = _slots.mine = _Slot()
    with _lock:
        _watched.add(slot)
        if _watching is None:
            _watching = threading.Thread(target=_watch, name="labkit-guard", daemon=True)
            _watching.start()
    return slot


def _watch() -> None:
    while True:
        time.sleep(1.0)
        with _lock:
            for slot in list(_watched):
                _look(slot)


def _look(slot: _Slot) -> None:
    if not slot.running or slot.running != slot.seen:
        slot.seen, slot.looks = slot.running, 0
    elif not _debugged(slot.thread):
        slot.looks += 1
    if slot.looks < LOOKS:
        return
    slot.looks = 0
    # In this order: a call that ends meanwhile sees that it was stopped, waits for the lock, and
    # forgets it; or it has ended before, and is not stopped.
    slot.stopped = True
    if slot.running == slot.seen:
        _raise_in(slot.thread, _Stop)


def _forget(slot: _Slot) -> None:
    with _lock:
        slot.stopped = False
        _raise_in(slot.thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise ``error`` in a thread at its next step; ``None`` takes back what is still to come."""
    raised = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


def _debugged(thread: int) -> bool:
    """Whether somebody steps through it by hand, which may take as long as they like."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_trace is not None:
            return True
        frame = frame.f_back
    return False


def _after_fork() -> None:
    """A new process has one thread, which begins anew."""
    global _lock, _watched, _watching
    _lock, _watched, _watching = threading.Lock(), WeakSet(), None
    _slots.__dict__.clear()


os.register_at_fork(after_in_child=_after_fork)
