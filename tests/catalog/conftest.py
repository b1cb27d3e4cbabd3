from pathlib import Path

import pyarrow as pa
import pytest

from tessera.schema import SCHEMAS


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'catalogue.db'}"


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
