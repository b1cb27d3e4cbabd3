"""Workers that fill one ledger at once, each a process, with a model behind real HTTP: every item is asked once."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.catalog.claims import claimed
from tessera.catalog.engine import open_engine
from tessera.schema import read_table

pytestmark = pytest.mark.integration
ITEMS, BATCH = 40, 4
WORKER = """
import sys
from pathlib import Path
from tessera.config import EnrichmentSettings, ModelSettings, Settings
from tessera.enrichment.stages import run_intents
items, out, endpoint, ledger, batch = sys.argv[1:]
model = ModelSettings("openai", "m")
chosen = EnrichmentSettings(intents=model, base_url=endpoint, use_captions=False, batch_size=int(batch))
print("ready", flush=True)
sys.stdin.readline()
print(run_intents(Path(items), Path(items), Path(out), Settings(enrichment=chosen), ledger)["model_calls"])
"""
INTENTS = {"surface": ["ball"], "motives": ["play"], "descriptors": [{"text": "beach games", "confidence": 0.5}]}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("new_database")()


@pytest.fixture
def endpoint(serve: Callable[..., Any]) -> Any:
    """A model that thinks for a while."""
    choice = {"message": {"role": "assistant", "content": json.dumps(INTENTS)}, "finish_reason": "stop"}
    answer = json.dumps({"choices": [choice]}).encode()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.1)
        return 200, {}, answer

    return serve(reply)


@pytest.fixture
def workers(catalogue: Any, endpoint: Any, url: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two workers over the same items that have imported what they need and wait to be released."""
    catalogue.write_items([{"item_id": f"i{n:02d}", "title": f"Ball number {n:02d}"} for n in range(ITEMS)])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(catalogue.items), str(catalogue.path(f"intents-{name}")), endpoint.url,
             url, str(BATCH)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def release(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()


def wait_for(endpoint: Any, requests: int) -> None:
    deadline = time.monotonic() + 60
    while len(endpoint.requests) < requests:
        assert time.monotonic() < deadline, f"the model was asked {len(endpoint.requests)} times only"
        time.sleep(0.01)


def asked(endpoint: Any) -> Counter[str]:
    """How often the model was asked about each item."""
    said = [json.dumps(body) for body in list(endpoint.requests)]
    return Counter(title for one in said for title in set(re.findall(r"Ball number \d\d", one)))


def answered(path: Path) -> int:
    table = read_table("intents", path)
    return table["status"].to_pylist().count("ok")


def test_each_item_is_asked_once_and_each_worker_has_all(catalogue: Any, endpoint: Any, workers: Any) -> None:
    for worker in workers:
        release(worker)
    calls = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sum(calls) == ITEMS
    assert min(calls) >= BATCH  # both had a share
    assert asked(endpoint) == {f"Ball number {n:02d}": 1 for n in range(ITEMS)}
    assert [answered(catalogue.path(f"intents-{name}")) for name in "ab"] == [ITEMS, ITEMS]


def test_what_a_killed_worker_held_is_asked_by_the_other(catalogue: Any, endpoint: Any, workers: Any) -> None:
    release(workers[0])
    wait_for(endpoint, 2 * BATCH)  # its first batch is recorded
    release(workers[1])
    wait_for(endpoint, 3 * BATCH)
    workers[0].kill()
    calls = int(workers[1].communicate(timeout=120)[0])
    assert answered(catalogue.path("intents-b")) == ITEMS
    assert calls < ITEMS  # what the killed one had recorded was not paid for again
    counts = asked(endpoint)
    assert len(counts) == ITEMS
    assert sum(counts.values()) <= ITEMS + BATCH  # the batch in flight, at most, was asked twice


def test_claims_end_with_their_block_and_leave_others_alone(url: str) -> None:
    """A second process sees what this one holds; the first one's claims on other kinds do not matter to it."""
    code = (
        "import sys; from tessera.catalog.claims import claimed; from tessera.catalog.engine import open_engine\n"
        "with claimed(open_engine(sys.argv[1]), {i: (sys.argv[2], i) for i in 'abc'}) as mine: print(*mine)"
    )

    def other(kind: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", code, url, kind], capture_output=True, text=True, check=True)
        return done.stdout.split()

    engine = open_engine(url)
    with claimed(engine, {i: ("caption", i) for i in "bx"}) as mine:
        assert mine == ["b", "x"]
        assert other("caption") == ["a", "c"]
        assert other("intents") == ["a", "b", "c"]
    assert other("caption") == ["a", "b", "c"]
    engine.dispose()
