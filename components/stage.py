"""What every component does around its stage: logging, timing, one sentence for an expected failure, a stats file."""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tessera.errors import TesseraError
from tessera.files import write_json
from tessera.processes import end_with_runner
from tessera.proxies import spare_loopback
from tessera.secrets import hidden
from tessera.troubles import sentence

FAILED = "stage failed: "
EXIT_CODE = 2


def run_stage(name: str, stats: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a stage's function and write `{"stage", "seconds", ...its result}` to the file `stats`.

    An expected failure, or a trouble of the machine, ends the process with its one sentence; anything else keeps its
    traceback, without secrets.
    """
    end_with_runner()
    for noisy in ("httpx", "alembic", "great_expectations", "feast", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    spare_loopback()
    started = time.monotonic()
    try:
        with _speaking_as(name):
            result = function(*args, **kwargs)
        details = result if isinstance(result, dict) else {}
        write_json(stats, {**details, "stage": name, "seconds": round(time.monotonic() - started, 3)})
    except TesseraError as error:
        # Every line is marked: a gate says several, and a reader must tell them from other output.
        print("\n".join(f"{FAILED}{line}" for line in hidden(str(error)).splitlines()), file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None
    except Exception as error:
        if trouble := sentence(error):
            print(f"{FAILED}{hidden(trouble)}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_CODE) from None
        told = traceback.format_exc()
        if hidden(told) == told:
            raise
        print(hidden(told), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    return result


@contextmanager
def _speaking_as(name: str) -> Iterator[None]:
    """Let this project's own messages, and nobody else's, stand out by the stage's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    ours = [logging.getLogger(package) for package in ("tessera", "components", "serving", "feature_repo")]
    for logger in ours:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeHandler(handler)
