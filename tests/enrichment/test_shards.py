"""A catalogue enriched in parts: every item is in one part, and the parts together cost no call more than the whole."""

import itertools
from typing import Any

import numpy as np
import pytest

from tessera.config import EnrichmentSettings, Settings
from tessera.enrichment import stages
from tessera.enrichment.shards import in_shard, items_of
from tessera.errors import InputError
from tessera.schema import read_table

EMBEDDED = Settings(enrichment=EnrichmentSettings(batch_size=3))
SHARDS = ("0/3", "1/3", "2/3")


@pytest.fixture
def shop(catalogue: Any, scene: Any) -> Any:
    scene("beach", (200, 30, 40)).save(catalogue.images / "a.png")
    rows = [{"item_id": f"i{number}", "title": f"Ball {number}"} for number in range(20)]
    rows[7] |= {"image": "a.png", "image_status": "ok"}
    catalogue.write_items(rows)
    return catalogue


def test_every_item_is_in_one_shard_of_any_number_of_them(shop: Any) -> None:
    items = read_table("items", shop.items)
    whole = items["item_id"].to_pylist()
    for count in (1, 3, 7):
        parts = [items_of(items, f"{part}/{count}")["item_id"].to_pylist() for part in range(count)]
        assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert items_of(items, "").equals(items)
    shares = [sum(in_shard(f"user {number}", f"{part}/4") for number in range(2000)) for part in range(4)]
    assert sum(shares) == 2000
    assert min(shares) > 400


@pytest.mark.parametrize("wrong", ["4/4", "1", "-1/2", "0/0", "a/b"])
def test_what_is_no_shard_is_said(shop: Any, wrong: str) -> None:
    with pytest.raises(InputError, match=r"there is no shard .*; write 0/4 to 3/4"):
        items_of(read_table("items", shop.items), wrong)


def test_after_the_shards_the_whole_asks_nothing_and_says_the_same(shop: Any, tmp_path: Any) -> None:
    def chain(name: str, ledger: str, shard: str = "") -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Each stage in the shard reads the whole table of the one before, as in the pipeline."""
        out = {kind: tmp_path / f"{name}-{kind}" for kind in ("captions", "intents", "quality", "embeddings")}
        seen = out if not shard else {kind: tmp_path / f"whole-{kind}" for kind in out}
        more = EMBEDDED, ledger, shard
        stats = [
            stages.run_captions(shop.items, shop.images, out["captions"], *more),
            stages.run_intents(shop.items, seen["captions"], out["intents"], *more),
            stages.run_quality(shop.items, seen["captions"], seen["intents"], out["quality"], *more),
            stages.run_embeddings(shop.items, shop.images, seen["captions"], seen["intents"], out["embeddings"], *more),
        ]
        return stats, {kind: read_table(kind, path) for kind, path in out.items()}

    alone, expected = chain("whole", shop.ledger)
    ledger = f"sqlite:///{tmp_path / 'other.db'}"
    parts = [chain(f"part{number}", ledger, shard) for number, shard in enumerate(SHARDS)]
    for place, kind in enumerate(expected):
        counted = [_calls(stats[place]) for stats, _ in parts]
        assert sum(counted) == _calls(alone[place])
        assert sum(tables[kind].num_rows for _, tables in parts) == 20
    again, collected = chain("collected", ledger)
    assert [_calls(one) for one in again] == [0, 0, 0, 0]
    vectors = collected.pop("embeddings"), expected.pop("embeddings")
    assert all(collected[kind].equals(expected[kind]) for kind in expected)
    # In other batches, so padded otherwise: the last bits of a vector differ.
    text = [np.stack(table["text"].to_pylist()) for table in vectors]
    assert np.allclose(*text, atol=1e-5)


def _calls(stats: dict[str, Any]) -> int:
    calls = stats["model_calls"]
    return sum(calls.values()) if isinstance(calls, dict) else int(calls)
