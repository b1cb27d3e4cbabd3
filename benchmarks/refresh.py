"""A refresh of a trained platform: items that are new in the source become lookups and recommendations.

    python -m benchmarks.refresh

Trains a small policy on a shop that lacks its last items, starts Triton and the feature server, lets the items appear
in the source with their purchases, and runs `tessera run refresh` beside the servers. Says what each step took, how
many published SIDs moved, how often models were asked, how many of the new items are looked up and are recommended when
nothing else may be, and how many stand in the lists of new items that a buyer of each new item gets.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from benchmarks.machine import hardware
from feature_repo import lookup
from feature_repo.store import open_store
from pipelines.serve import servers
from tessera.catalog import ingest
from tessera.config import CatalogueSettings, PlatformSettings, Settings, ShopSettings
from tessera.files import read_json
from tessera_rec_client import Recommender

ANY_PORT = PlatformSettings(http_port=0, grpc_port=0, metrics_port=0, features_port=0)
LISTED = 20
"""Items of a list."""


class Grown:
    """A shop in `folder`, whose source lacks its last `new` items until `grow`."""

    def __init__(self, folder: Path, items: int, new: int, users: int, seed: int) -> None:
        self.folder, self.source, self.home, self.out = folder, folder / "source", folder / "home", folder / "run"
        shop = ShopSettings(items=items + new, users=users)
        settings = Settings(shop=shop, seed=seed, catalogue=CatalogueSettings(k_core=0))
        ingest.run(settings, f"sqlite:///{folder / 'shop.db'}", self.source)
        self.whole = {name: pq.read_table(self.source / f"{name}.parquet") for name in ("items", "interactions")}
        # A third is without photo: of so many, the embedded provider's captions would be too much alike for the gate.
        pictured = pa.array(np.random.default_rng(seed).random(items + new) > 1 / 3)
        photos = pc.if_else(pictured, self.whole["items"]["image"], None)
        column = self.whole["items"].schema.get_field_index("image")
        self.whole["items"] = self.whole["items"].set_column(column, "image", photos)
        # The shop numbers near twins one after the other: taken from all over it, every family has most of its items.
        ids = self.whole["items"]["item_id"]
        self.new = ids.to_pylist()[:: (items + new) // new][:new]
        self._write(pc.invert(pc.is_in(ids, value_set=pa.array(self.new))))

    def grow(self) -> None:
        """Let the new items be in the source, with what was bought of them."""
        self._write(None)

    def _write(self, kept: Any) -> None:
        items, bought = self.whole["items"], self.whole["interactions"].select(["user_id", "item_id", "timestamp"])
        if kept is not None:
            items = items.filter(kept)
            bought = bought.filter(pc.is_in(bought["item_id"], value_set=items["item_id"].combine_chunks()))
        pq.write_table(items, self.source / "items.parquet")
        pq.write_table(bought, self.source / "interactions.parquet")

    def run(self, pipeline: str, *arguments: str) -> float:
        """Run a pipeline as a user does; returns its seconds."""
        started = time.monotonic()
        command = "import sys; from pipelines.cli import main; main(sys.argv[1:])"
        where = [f"--path={self.source}", f"--out={self.out}", f"--platform.home={self.home}"]
        subprocess.run(
            [sys.executable, "-c", command, "run", pipeline, "--source=parquet", "--preset=demo", *where, *arguments],
            check=True,
        )
        return time.monotonic() - started

    def said(self) -> dict[str, dict[str, Any]]:
        """What each step of the newest run said."""
        newest = max((self.out / "artifacts").iterdir(), key=lambda path: path.stat().st_mtime)
        return {path.parent.name: read_json(path) for path in newest.rglob("stats")}


def main(
    items: int = 5000, new: int = 100, users: int = 4000, epochs: int = 4, seed: int = 0, folder: Path | None = None
) -> None:
    """Measure a refresh and print what was found as JSON.

    Args:
        items: of the catalogue that is trained on.
        new: items that appear.
        epochs: of the policy; what it recommends is not judged here.
        folder: kept; else a temporary one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        shop = Grown(folder or Path(temporary), items, new, users, seed)
        train = shop.run("training", "--catalogue.k-core=0", "--tokenizer.codebook-size=256",
                         "--tokenizer.epochs=30", f"--policy.epochs={epochs}", "--policy.layers=2")  # fmt: skip
        with servers(shop.home, ANY_PORT) as (triton, _), Recommender(triton.grpc_url, timeout=60) as client:
            before = lookup_sids(shop)
            shop.grow()
            seconds = shop.run("refresh")
            after = lookup_sids(shop)
            # What a user has bought is left out of the answer, so another item is the history.
            others = [*shop.new[1:], shop.new[0]]
            pairs = zip(others, shop.new, strict=True)
            alone = [client.recommend(history=[other], k=1, allow=[item]) for other, item in pairs]
            lists = [client.recommend(history=[item], k=LISTED, allow=shop.new) for item in shop.new]
        said = shop.said()
        found = {
            "items": len(before), "new": len(after) - len(before), "seconds": round(seconds, 1),
            "training_seconds": round(train, 1),
            "moved_sids": sum(after[item] != sid for item, sid in before.items()),
            "model_calls": {step: one["model_calls"] for step, one in said.items() if "model_calls" in one},
            "looked_up": sum(item in after for item in shop.new),
            "recommended": len({one.item_id for answer in alone for one in answer.items}),
            "in_lists": len({one.item_id for answer in lists for one in answer.items}),
            "steps": {step: round(one["seconds"], 1) for step, one in said.items() if "seconds" in one},
        }  # fmt: skip
        print(json.dumps(found | {"hardware": hardware(), "seed": seed}, indent=1))
    if found["moved_sids"] or min(found["looked_up"], found["recommended"]) < new:
        raise SystemExit("a published SID moved, or a new item cannot be had.")


def lookup_sids(shop: Grown) -> dict[str, str]:
    """SID by item, for the items that the feature store knows."""
    ids = shop.whole["items"]["item_id"].to_pylist()
    parts = (lookup.items(open_store(shop.home), ids[start : start + 500]) for start in range(0, len(ids), 500))
    return {one.item_id: one.sid for part in parts for one in part if one is not None and one.sid is not None}


if __name__ == "__main__":
    tyro.cli(main)
