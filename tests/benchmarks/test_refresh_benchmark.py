"""The source of the refresh benchmark: it lacks the new items, then it has them and what was bought of them."""

from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.refresh import Grown


def test_the_new_items_appear_with_their_purchases(tmp_path: Path) -> None:
    shop = Grown(tmp_path, items=90, new=10, users=80, seed=0)

    def read(name: str) -> list[str]:
        return pq.read_table(shop.source / f"{name}.parquet")["item_id"].to_pylist()

    assert len(set(shop.new)) == 10
    before = read("items"), read("interactions")
    assert len(before[0]) == 90
    assert not {*before[0], *before[1]} & set(shop.new)
    shop.grow()
    after = read("items"), read("interactions")
    assert {*after[0]} - {*before[0]} == set(shop.new)
    assert len(after[1]) > len(before[1])
    assert {*after[1]} <= {*after[0]}
