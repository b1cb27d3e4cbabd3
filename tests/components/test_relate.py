"""The step before the tokenizer: what it passes on, and under whose name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kfp.dsl import Artifact, Dataset, Model

from components.relate.component import relate_items
from tessera.files import read_json
from tessera.schema import SCHEMAS, read_table, write_table


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Dataset]:
    """Four items, two of which were bought."""
    vectors = [{"item_id": item, "text": [1.0, float(n)], "image": [0.5]} for n, item in enumerate("abcd")]
    users = [{"user_id": user, "train": ["a", "b"], "validation": None, "test": None} for user in "uv"]
    for name, rows in {"items": [], "intents": [], "embeddings": vectors, "splits": users}.items():
        write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), tmp_path / name)
    return {name: Dataset(uri=str(tmp_path / name)) for name in ("items", "intents", "splits", "embeddings")}


def relate(tables: dict[str, Dataset], folder: Path, settings: dict[str, Any]) -> tuple[Dataset, Model, dict[str, Any]]:
    related, grounding = Dataset(uri=str(folder / "related")), Model(uri=str(folder / "grounding"))
    stats = Artifact(uri=str(folder / "stats"))
    relate_items.python_func(
        **tables, settings=json.dumps(settings), home=str(folder), related=related, grounding=grounding, stats=stats
    )
    return related, grounding, read_json(folder / "stats")


def test_the_embeddings_pass_as_they_are(tables: dict[str, Dataset], tmp_path: Path) -> None:
    related, grounding, said = relate(tables, tmp_path, {})
    assert related.uri == tables["embeddings"].uri
    assert Path(grounding.path).is_file()  # the cache looks for a file at each output
    assert (said["stage"], said["relation"]) == ("relate-items", "none")


def test_collaborative_vectors_are_a_table_of_their_own(tables: dict[str, Dataset], tmp_path: Path) -> None:
    related, grounding, said = relate(tables, tmp_path, {"tokenizer": {"method": "aligned"}})
    assert related.uri != tables["embeddings"].uri
    images = read_table("embeddings", related.path)["image"].to_pylist()
    assert [image is not None for image in images] == [True, True, False, False]
    assert Path(grounding.path).is_file()
    assert (said["relation"], said["bought"]) == ("collaborative", 2)
