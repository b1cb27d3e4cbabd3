"""Processes of this machine, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Child:
    """A process that another one started and that has not ended."""

    pid: int
    name: str


def children(parent: int) -> list[Child]:
    """The running child processes of a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = _read(status).partition("(")[2].rpartition(") ")
        except OSError:  # ended meanwhile
            continue
        state, its_parent = rest.split()[:2]
        if int(its_parent) == parent and state not in "ZX":
            found.append(Child(int(status.parent.name), name))
    return found


def siblings() -> list[Child]:
    """Other processes of this one's name that its parent started."""
    own = _read(Path("/proc/self/comm")).strip()
    return [one for one in children(os.getppid()) if one.name == own and one.pid != os.getpid()]


def _read(path: Path) -> str:
    """A name in it is cut at 15 bytes, which may be amid a character."""
    return path.read_text(encoding="utf-8", errors="replace")
