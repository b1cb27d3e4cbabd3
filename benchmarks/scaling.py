"""What grows with the items of a catalogue: seconds and memory of each part of the chain at growing sizes.

    python -m benchmarks.scaling --items 10000 100000 1000000

Every part runs in a process of its own, so that its peak of memory is its own. Items are random: texts of the usual
lengths, vectors in clusters as encoders make them. What models cost a single item, and what depends on the policy
alone, is measured elsewhere (benchmarks.decoding, benchmarks.serving).
"""

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from tqdm import tqdm

from benchmarks.machine import hardware
from benchmarks.shop import item_id
from feature_repo.publish import run as publish
from tessera.catalog import ingest
from tessera.catalog.ledger import Entry, Ledger
from tessera.config import CatalogueSettings, Settings, TokenizerSettings
from tessera.decoding.index import CatalogueIndex
from tessera.schema import SCHEMAS, read_table, write_table
from tessera.tokenizer import fit
from tessera.tokenizer.bundle import Tokenizer

TEXT_DIM, CLUSTERS, HISTORY = 384, 2000, 8
TOKENIZER = TokenizerSettings(method="rqkmeans", use_images=False)
CATALOGUE = CatalogueSettings(k_core=0)
_MADE = {"provider": "random", "model": "none", "prompt_version": "v1", "status": "ok"}
_WORDS = ["light", "warm", "small", "round", "garden", "kitchen", "gift", "travel", "soft", "steel", "blue", "quiet"]


def source(folder: Path, items: int) -> None:
    """Write a source: as many users as items have a history each. Not measured."""
    rng = np.random.default_rng(0)
    ids = [item_id(number) for number in range(items)]
    words = np.array(_WORDS)[rng.integers(0, len(_WORDS), (items, 12))].tolist()
    texts = [" ".join(row) for row in words]
    (folder / "source").mkdir()
    pq.write_table(
        pa.table({
            "item_id": ids, "title": [f"{text} {number}" for number, text in enumerate(texts)], "description": texts,
            "brand": [row[0] for row in words], "categories": [row[1:3] for row in words],
        }),
        folder / "source" / "items.parquet",
    )  # fmt: skip
    bought = [[ids[one] for one in row] for row in rng.integers(0, items, (items, HISTORY)).tolist()]
    users = pa.table({"user_id": [f"u{number}" for number in range(items)], "item_ids": bought})
    pq.write_table(users, folder / "source" / "sequences.parquet")
    centres = rng.standard_normal((CLUSTERS, TEXT_DIM), np.float32)
    vectors = centres[rng.integers(0, CLUSTERS, items)] + 0.5 * rng.standard_normal((items, TEXT_DIM), np.float32)
    offsets = np.arange(0, items * TEXT_DIM + 1, TEXT_DIM)
    column = pa.LargeListArray.from_arrays(offsets, vectors.reshape(-1)).cast(SCHEMAS["embeddings"].field("text").type)
    table = pa.table({"item_id": ids, "text": column, "image": pa.nulls(items, column.type)})
    write_table("embeddings", table, folder / "embeddings.parquet")


def read_source(folder: Path) -> None:
    """`ingest`: tables, split and the SQL catalogue."""
    settings = Settings(source="parquet", path=folder / "source", catalogue=CATALOGUE)
    out, url = folder / "catalogue", f"sqlite:///{folder / 'catalogue.db'}"
    ingest.run(settings, url, out)
    ingest.fill(out, url)


def remember(folder: Path) -> None:
    """The ledger takes an answer for every item."""
    table = read_table("items", folder / "catalogue" / "items.parquet")
    payload = json.dumps({"caption": "light warm small " * 6}).encode()
    Ledger(f"sqlite:///{folder / 'catalogue.db'}").record(
        Entry(one, one, "caption", "random", "none", "v1", "ok", payload) for one in table["item_id"].to_pylist()
    )


def recall(folder: Path) -> None:
    """The ledger is asked for all of them: what an enrichment costs where nothing is new."""
    ids = read_table("items", folder / "catalogue" / "items.parquet")["item_id"].to_pylist()
    found = Ledger(f"sqlite:///{folder / 'catalogue.db'}").lookup(
        "caption", "random", "none", "v1", {one: one for one in ids}
    )
    assert len(found) == len(ids)


def tokenize(folder: Path) -> None:
    """Fit RQ-KMeans on all items, give each a SID, move those that collide."""
    fit.run(folder / "embeddings.parquet", folder / "tokenizer", folder / "sids.parquet", TOKENIZER, 0, folder / "work")


def append(folder: Path) -> None:
    """A thousand new items under the frozen tokenizer."""
    table = read_table("embeddings", folder / "embeddings.parquet").slice(0, 1000)
    renamed = table.set_column(0, "item_id", pa.array([f"new-{one}" for one in range(table.num_rows)]))
    Tokenizer.load(folder / "tokenizer").append(renamed, read_table("sids", folder / "sids.parquet"))


def index(folder: Path) -> None:
    """The decoder's index of all SIDs."""
    codes = np.array(read_table("sids", folder / "sids.parquet")["codes"].to_pylist())
    CatalogueIndex.build(codes, TOKENIZER.codebook_size)


def features(folder: Path) -> None:
    """Items, enrichments, SIDs and histories into Feast's embedded stores."""
    ids = read_table("items", folder / "catalogue" / "items.parquet")["item_id"].to_pylist()
    own = [{"item_id": one} for one in ids]
    text, said = "light warm small " * 6, [{"text": "light warm small gift", "confidence": 0.5}] * 4
    tables = {
        "captions": [_MADE | one | {"caption": text} for one in own],
        "intents": [_MADE | one | {"surface": ["light"], "motives": ["warm"], "descriptors": said} for one in own],
        "quality": [_MADE | one | {"labels": [1, 0, 1, 1], "score": 0.75} for one in own],
    }
    for name, rows in tables.items():
        write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    paths = {name: folder / f"{name}.parquet" for name in (*tables, "sids")}
    paths |= {name: folder / "catalogue" / f"{name}.parquet" for name in ("items", "splits")}
    publish(folder / "home", **paths, policy_version="random")


PARTS: dict[str, Callable[[Path], None]] = {
    "ingest": read_source, "ledger_write": remember, "ledger_read": recall, "tokenize": tokenize, "append": append,
    "index": index, "features": features,
}  # fmt: skip


def measured(part: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds of a part and GB of memory at its peak, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_measure, args=(part, folder, its))
    process.start()
    its.close()
    try:
        found: tuple[float, float] = mine.recv()
    except EOFError:
        raise SystemExit(f"{part.__name__} ended without a result; see above.") from None
    finally:
        process.join()
    return found


def _measure(part: Callable[[Path], None], folder: Path, told: Any) -> None:
    started = time.monotonic()
    part(folder)
    seconds = time.monotonic() - started
    # Not ru_maxrss: that of a new process begins with what its parent has in memory.
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert peak is not None
    told.send((seconds, int(peak[1]) / 1e6))


def main(items: tuple[int, ...] = (10_000, 100_000), features_up_to: int = 100_000) -> None:
    """Measure each part at each size and print the numbers as JSON.

    Args:
        items: sizes of the catalogue.
        features_up_to: most items that are published to the embedded feature store.
    """
    rows = []
    for count in items:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            source(folder, count)
            parts = {name: part for name, part in PARTS.items() if name != "features" or count <= features_up_to}
            for name, part in (bar := tqdm(parts.items(), desc=f"{count:,} items", unit="part")):
                bar.set_postfix_str(name)
                seconds, memory = measured(part, folder)
                rows.append({"items": count, "part": name, "seconds": round(seconds, 2), "peak_gb": round(memory, 2)})
    print(json.dumps({"rows": rows, "hardware": hardware()}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
