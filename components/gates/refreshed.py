"""A gate over a whole catalogue's tables, also where a refresh made only some of their rows."""

import tempfile
from pathlib import Path
from typing import Any

from components.refresh.merging import merge
from validation.gate import run as hold
from validation.suites import Suite


def run(suite: Suite, tables: dict[str, Path], docs: Path, published: Path | None) -> dict[str, Any]:
    """Hold tables to a suite, those of a refresh as they will be published.

    Limits are shares of a catalogue: of one new item a share says nothing, and items that training left failed, within
    its limits, are most of what a quiet night's refresh asks about.

    Args:
        published: folder of the tables published so far; None where `tables` are whole.

    Returns, raises: as `validation.gate.run`.
    """
    if published is None:
        return hold(suite, tables, docs)
    with tempfile.TemporaryDirectory() as folder:
        return hold(suite, merge(tables, tables, published, Path(folder)), docs)
