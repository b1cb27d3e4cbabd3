"""Which times are too late to be true."""

import time

TOLERANCE_S = 300
"""How far the clocks of two machines may differ, in seconds."""


def ahead(seconds: float) -> bool:
    """Whether a time, in seconds since 1970, lies in the future by more than clocks may differ."""
    return seconds > time.time() + TOLERANCE_S
