"""The machine's ordinary troubles, each told in one sentence at the edge of a command and of a step."""

import errno
import os
import re
import sqlite3
import sys

_FULL = "the disk is full at {where}; free some space there and give the same command again."
_READ_ONLY = "{where} is on a read-only file system; choose another folder or mount it for writing."
_DENIED = "{where} may not be used by this user (permission denied); change its owner or its permissions."
_FILES = "too many files are open, the last was {where}; raise the limit with `ulimit -n` and give the command again."
_MEMORY = "the memory is not enough; end other programs, or choose a smaller model or a smaller batch."
_LOCKED = "the database {where} is locked by another process; try again when that has ended."
_READ_ONLY_DATABASE = "the database {where} is read-only; make it and its folder writable."
_UNOPENED = "the database {where} cannot be opened; check that its folder exists and that this user may write there."
_BROKEN_DISK = "the disk fails at the database {where} (input or output error); check the disk."
_NUMBERS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
}
_DATABASE = {
    "database is locked": _LOCKED,
    "database table is locked": _LOCKED,
    "readonly database": _READ_ONLY_DATABASE,
    "database or disk is full": _FULL,
    "unable to open database file": _UNOPENED,
    "disk i/o error": _BROKEN_DISK,
}
_ALLOCATION = re.compile(r"can't allocate memory|out of memory|malloc of size", re.IGNORECASE)


def sentence(error: BaseException, database: str = "") -> str | None:
    """What is wrong and what to do, where the machine is the reason; None for any other error.

    The errors that it was raised from are looked at too: libraries wrap what the machine said.

    Args:
        database: what to call the database, as SQLite does not name its file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if told := _one(cause, database):
            return told
        cause = cause.__cause__
    return None


def leave_quietly() -> int:
    """The exit status after the reader of standard output has gone, as other tools have it; nothing more is written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + 13  # SIGPIPE


def _one(error: BaseException, database: str) -> str | None:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _ALLOCATION.search(str(error))):
        return _MEMORY
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return _NUMBERS[error.errno].format(where=_where(error))
    said = str(error).lower()
    if isinstance(error, sqlite3.Error) or "sqlite3." in said:  # MLflow keeps SQLAlchemy's words alone
        for words, told in _DATABASE.items():
            if words in said:
                return told.format(where=database or "that this command uses")
    return None


def _where(error: OSError) -> str:
    return str(error.filename2 or error.filename or "a place that the system does not name")
