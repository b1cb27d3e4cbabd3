"""Processes that end with the one that they belong to, and signals that end a command in good order.

Run as a script, this file becomes another program, which is killed when its parent dies: see `start`.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

RUNNER = "_TESSERA_RUNNER_PID"
"""Environment variable with the id of the process that runs a step; it means nothing in a container and is not passed
to one, as variables are that begin with TESSERA_."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own; it and its workers end with this process, however that ends (on Linux).

    Args:
        command: the program, as an absolute path, and its arguments.
        options: further arguments of `subprocess.Popen`.
    """
    launcher = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    return subprocess.Popen([*launcher, *command], stdin=subprocess.DEVNULL, start_new_session=True, **options)


def end_with_runner() -> None:
    """Let this process be killed as soon as the process that RUNNER names is gone; without that, nothing happens.

    To be called by a step, which others start: a shell is between it and the command that runs it.
    """
    runner = os.environ.get(RUNNER)
    if not runner or not hasattr(os, "pidfd_open"):
        return
    try:
        handle = os.pidfd_open(int(runner))
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
    except OSError:  # a system without this call
        return

    def watch() -> None:
        select.select([handle], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-runner", daemon=True).start()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP end this command as an exception does, with 128 + the signal's number.

    Its child processes get SIGTERM, but those in sessions of their own, which are servers, are left to whoever started
    them and stops them on the way out. Further signals are ignored meanwhile. A SIGHUP that is ignored, as under nohup,
    stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
        _end_children()
        raise SystemExit(128 + number)

    before = {one: signal.getsignal(one) for one in _ENDING}
    for one in _ENDING:
        if before[one] is not signal.SIG_IGN:
            signal.signal(one, end)
    try:
        yield
    finally:
        for one in _ENDING:
            signal.signal(one, before[one])


def listener(port: int) -> str:
    """Which process holds a TCP port of this machine, in words."""
    import psutil

    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port:
                if found.pid is None:
                    return "a process of another user holds it"
                return f"process {found.pid} ({psutil.Process(found.pid).name()}) holds it"
    except psutil.Error:  # ended meanwhile, or the system tells nobody
        pass
    return "which process holds it is not to be seen"


def _end_children() -> None:
    import psutil

    session = os.getsid(0)
    for child in psutil.Process().children(recursive=True):
        try:
            if os.getsid(child.pid) == session:
                child.terminate()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def _become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`; its group is killed when `parent` ends, and what is left of it when it ends.

    The system's own signal of a parent's death (PR_SET_PDEATHSIG) would reach neither the workers of a server nor one
    whose starting thread has ended alone.
    """
    ends: list[int] = []
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):  # a system without this call
            ends = [os.pidfd_open(parent), os.pidfd_open(os.getpid())]
    if os.getppid() != parent:
        return  # it died just before
    if ends:
        _guard(ends)
    os.execv(command[0], command)


def _guard(ends: list[int]) -> None:
    """Fork a process that belongs to nobody, and kills this one's group when one of `ends` is readable."""
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            select.select(ends, [], [])
            os.killpg(0, signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
