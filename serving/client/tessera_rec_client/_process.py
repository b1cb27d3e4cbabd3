"""What belongs to one process: connections above all, because two processes on one socket read each other's answers."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_ALL: "weakref.WeakSet[PerProcess[Any]]" = weakref.WeakSet()
# Made by the parent and kept alive in the child: to close or to drop a connection there may write to the shared socket.
_INHERITED: list[Any] = []


class PerProcess(Generic[T]):
    """Made at once, and anew on the first use in each process that is forked; may be shared by threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: T | None = make()
        _ALL.add(self)

    def get(self) -> T:
        """This process's own."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def made(self) -> T | None:
        """This process's own, if there is one."""
        return self._made

    def forget(self) -> None:
        """Make another one for the next use; who still uses this one keeps it."""
        with self._lock:
            self._made = None

    def _forked(self) -> None:
        if self._made is not None:
            _INHERITED.append(self._made)
        self._made, self._lock = None, threading.Lock()  # another thread may have held the lock at the fork


def _in_child() -> None:
    for one in list(_ALL):
        one._forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_child)
