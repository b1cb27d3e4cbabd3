"""Clients that keep asking while a test does something to the servers."""

import threading
from collections.abc import Iterable
from typing import Any


class Background:
    """Within the block, a thread for each of `callers` runs `ask`, which returns when `done` is set."""

    callers: Iterable[Any]
    done: threading.Event

    def ask(self, caller: Any) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self.done = threading.Event()
        self._threads = [threading.Thread(target=self.ask, args=(caller,)) for caller in self.callers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join()
