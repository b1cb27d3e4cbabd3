"""What the world says of an item, in words and as vectors."""

import numpy as np
import pytest

from tessera.config import Settings
from tessera.enrichment import embedding
from tessera.schema import read_table


@pytest.fixture
def known(catalogue):
    """Two items of which the world says the same and one of which it says something else."""
    ball = {"title": "Nova Ball", "description": "Round.", "brand": "Nova", "categories": ["Sports"]}
    kettle = {"title": "Steel Kettle", "brand": "Hob", "categories": ["Kitchen"]}
    orb = ball | {"title": "Orb"}
    catalogue.write_items([{"item_id": "a"} | ball, {"item_id": "b"} | orb, {"item_id": "c"} | kettle])
    tags = [("beach games", 0.9), ("holiday", None)]
    catalogue.write_intents({"a": tags, "b": tags, "c": []})
    return catalogue


def test_knowledge_says_nothing_of_the_title(known) -> None:
    items, intents = read_table("items", known.items), read_table("intents", known.path("intents"))
    said = "Sports. Nova. beach games, holiday"
    assert embedding.knowledge_texts(items, intents) == {"a": said, "b": said, "c": "Kitchen. Hob"}


def test_its_vectors_are_kept_in_the_ledger(known) -> None:
    arguments = (known.items, known.path("intents"), known.path("knowledge"), Settings(), known.ledger)
    first = embedding.run_knowledge(*arguments)
    assert (first["model_calls"], first["reused"], first["failed"]) == (3, 0, 0)
    rows = read_table("embeddings", known.path("knowledge")).to_pylist()
    assert [row["item_id"] for row in rows] == ["a", "b", "c"]
    a, b, c = (np.array(row["text"]) for row in rows)
    assert np.allclose(a, b)
    assert a @ c < 0.9 * np.linalg.norm(a) * np.linalg.norm(c)
    assert all(row["image"] is None for row in rows)
    assert embedding.run_knowledge(*arguments)["model_calls"] == 0
