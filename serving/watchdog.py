"""Keeps a server serving: a real check every second or so, and a restart when it fails, with growing pauses."""

import time
from collections.abc import Callable
from typing import Protocol

from tessera.errors import ServiceError, TesseraError

INTERVAL_S = 1.0
"""Between two checks."""
FAILURES = 2
"""Checks that must fail in a row: one may meet a machine that is busy for a moment."""
LONGEST_PAUSE_S, STEADY_S = 30.0, 60.0
"""Pauses between restarts double up to the first; after the second without a failure they begin anew."""


class Server(Protocol):
    """What can be watched."""

    def check(self) -> None:
        """Raise ServiceError where it does not work."""

    def restart(self) -> None:
        """End what is left of it and start it again; raise ServiceError where that fails."""


class Watchdog:
    """Watches one server; call `look` every `INTERVAL_S`. It blocks while it checks or restarts.

    Args:
        name: of the server, in what is said.
        say: where restarts are reported.
        clock: seconds that only grow.
    """

    def __init__(
        self, name: str, server: Server, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.restarts = 0
        self._name, self._server, self._say, self._clock = name, server, say, clock
        self._failures, self._pause, self._not_before = 0, 0.0, 0.0

    def look(self) -> None:
        """Check the server once; restart it if it has failed often enough and the last restart is long enough ago."""
        if self._failures < FAILURES:
            try:
                self._server.check()
            except ServiceError as error:
                self._failures += 1
                if self._failures < FAILURES:
                    return
                self._say(f"{self._name} failed: {error}")
            else:
                self._failures = 0
                if self._clock() > self._not_before + STEADY_S:
                    self._pause = 0.0
                return
        if self._clock() >= self._not_before:
            self._restart()

    def _restart(self) -> None:
        self._say(f"{self._name}: restarting …")
        started = self._clock()
        self._pause = min(max(1.0, 2 * self._pause), LONGEST_PAUSE_S)
        try:
            self._server.restart()
        except (TesseraError, OSError) as error:
            self._say(f"{self._name} did not start: {error} Trying again in {self._pause:.0f} s.")
        else:
            self.restarts += 1
            self._failures = 0
            self._say(f"{self._name} serves again after {self._clock() - started:.1f} s.")
        self._not_before = self._clock() + self._pause
