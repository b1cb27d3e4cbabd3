"""A circuit breaker: a server that failed a few times in a row is left alone for a short while."""

import threading
import time
from collections.abc import Callable


class Breaker:
    """Counts failures in a row; may be shared by threads.

    Closed, it lets everything through. After `failures` failures in a row it is open and lets one request through every
    `pause` seconds (half-open); the first success closes it.

    Args:
        clock: seconds from any fixed start.
    """

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause, self._clock = failures, pause, clock
        self._lock = threading.Lock()
        self._failures, self._retry_at = 0, 0.0

    def allows(self, seconds: float) -> bool:
        """Whether a request may go to the server now; one let through an open breaker keeps others away for `seconds`.

        So a request that never reports back, because its thread or task was ended, cannot keep the breaker open.
        """
        with self._lock:
            if self._failures < self._limit:
                return True
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + max(self._pause, seconds)
            return True

    def succeeded(self) -> None:
        """The server answered: close."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """The server did not answer; enough of these in a row open."""
        with self._lock:
            self._failures += 1
            self._retry_at = self._clock() + self._pause
