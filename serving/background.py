"""Loading a release beside the one that serves: it must not take the processor from requests."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.processes import siblings

T = TypeVar("T")
NICE = 19
"""The lowest: what requests leave of the processor, and a seventieth of what an ordinary thread gets where they leave
nothing. At 10, swaps under a load of 80% filled the queue; the price is a release that waits until a flood is over.
"""


def in_background(call: Callable[[], T]) -> T:
    """Make a call on a thread of its own, of low priority where another model process serves; its result.

    Linux gives each thread a priority of its own, which what it starts inherits and which an ordinary user cannot
    raise again: so the thread ends with the call, and those that will serve come from elsewhere.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_stepping_back, call).result()


def _stepping_back(call: Callable[[], T]) -> T:
    if siblings():  # the model process of the release before
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    return call()
