"""Releases under traffic: another policy, or only newer SIDs, takes over between two requests or is refused."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.model_repository import newest, releases
from serving.probe import Served, ask
from serving.release import release, take_back
from serving.server import TritonServer
from tessera import bundle
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError, ServiceError
from tests.background import Background

pytestmark = pytest.mark.integration
HISTORIES = [["100"], ["103", "117", "104"], ["tasse-é", "101"]]
K = 58


class Traffic(Background):
    """Threads that keep asking over HTTP and note which release gave which items."""

    def __init__(self, url: str, threads: int = 3) -> None:
        self.answers: list[tuple[Served, int, tuple[str, ...]]] = []
        self.failures: list[object] = []
        self._url, self.callers = f"{url}/v2/models/tessera/infer", range(threads)

    def wait_for(self, answer: Served, count: int = 20) -> None:
        """Until a release has given some answers."""
        deadline, start = time.monotonic() + 30, len(self.answers)
        while sum(one[0] == answer for one in self.answers[start:]) < count:
            assert time.monotonic() < deadline, self.failures[:3]
            time.sleep(0.02)

    def ask(self, caller: int) -> None:
        with httpx.Client(timeout=30) as client:
            while not self.done.is_set():
                try:
                    reply = client.post(self._url, json=question(HISTORIES[caller], k=K))
                    found = {one["name"]: one["data"] for one in reply.raise_for_status().json()["outputs"]}
                    served = Served(found["policy_version"][0], found["index_version"][0])
                    self.answers.append((served, caller, tuple(found["item_ids"])))
                except Exception as error:
                    self.failures.append(error)
                time.sleep(0.01)


def question(history: list[str], **others: Any) -> dict[str, Any]:
    inputs = [{"name": "history", "shape": [1, len(history)], "datatype": "BYTES", "data": history}]
    for name, value in others.items():
        values, datatype = (value, "BYTES") if isinstance(value, list) else ([value], "INT32")
        inputs.append({"name": name, "shape": [1, len(values)], "datatype": datatype, "data": values})
    return {"inputs": inputs}


def processes(server: TritonServer) -> dict[int, int]:
    """Resident bytes of the server and its model processes."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()
            if int(fields[2]) == server.pid:  # the process group
                found[int(status.parent.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return found


def counter(server: TritonServer, name: str) -> float:
    """Of the newest release, whose predecessors' are gone; of all its processes."""
    version = newest(server.repository).number
    lines = httpx.get(server.metrics_url).text.splitlines()
    values = [one.split()[-1] for one in lines if one.startswith(f"{name}{{") and f'version="{version}"' in one]
    assert values
    return sum(map(float, values))


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_until_it_counts(server: TritonServer) -> None:
    """Under traffic."""
    asked = counter(server, "tessera_requests_total")
    wait_until(lambda: counter(server, "tessera_requests_total") > asked)


@pytest.fixture
def settled(triton: TritonServer, policies: tuple[Path, Path]) -> Iterator[TritonServer]:
    """The server; afterwards it serves the first policy over its own SIDs again."""
    yield triton
    release(policies[0], triton.repository, threads=1, prefix_cache_mb=4)


def test_policies_and_indices_swap_under_traffic(
    settled: TritonServer, policies: tuple[Path, Path], grown: Path, engines: dict[str, Recommender]
) -> None:
    """Without a failed or mixed answer, and with the memory that it had before."""
    first, options = newest(settled.repository).answer, {"threads": 1, "prefix_cache_mb": 4}
    before = processes(settled)
    expected = {first: engines[first.policy_version]}
    with Traffic(settled.http_url) as traffic:
        traffic.wait_for(first)
        release(newest(settled.repository).policy, settled.repository, sids=grown, **options)
        larger = newest(settled.repository).answer
        expected[larger] = Recommender.load(policies[0], grown)
        traffic.wait_for(larger)
        release(policies[1], settled.repository, **options)
        other = newest(settled.repository).answer
        expected[other] = engines[other.policy_version]
        traffic.wait_for(other)
        release(policies[0], settled.repository, **options)
        traffic.wait_for(first)
    assert traffic.failures == []
    assert (larger.policy_version, other.index_version) == (first.policy_version, first.index_version)
    assert {one for one, _, _ in traffic.answers} == {first, larger, other}
    lists = {
        (served, number): tuple(one.item_id for one in engine.recommend([HISTORIES[number]], K)[0])
        for served, engine in expected.items()
        for number in range(len(HISTORIES))
    }
    assert lists[first, 0] != lists[larger, 0] != lists[other, 0] != lists[first, 0]
    for served, number, items in traffic.answers:
        assert set(items) == set(lists[served, number])  # in this order but for ties in the last digits
        assert items[:5] == lists[served, number][:5]
    with Traffic(settled.http_url):
        wait_until_it_counts(settled)
    deadline = time.monotonic() + 10  # the processes of the releases before have ended
    while len(now := processes(settled)) > len(before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(now) == len(before)
    assert sum(now.values()) < 1.1 * sum(before.values())


def test_a_release_is_loaded_again_only_if_its_configuration_is_another(
    settled: TritonServer, policies: tuple[Path, Path], models_of: Callable[[int | None], list[int]]
) -> None:
    folder = release(policies[1], settled.repository, threads=1, prefix_cache_mb=4)
    wait_until(lambda: len(models_of(settled.pid)) == 1)
    first = models_of(settled.pid)
    assert release(policies[1], settled.repository, threads=1, prefix_cache_mb=4) == folder
    assert models_of(settled.pid) == first
    assert release(policies[1], settled.repository, threads=1, prefix_cache_mb=5) == folder
    wait_until(lambda: len(models_of(settled.pid)) == 1)
    assert models_of(settled.pid) != first


def test_a_release_that_is_loaded_again_and_again_under_its_number_goes_on_counting(
    settled: TritonServer, policies: tuple[Path, Path], models_of: Callable[[int | None], list[int]]
) -> None:
    """A counter that the process before shared with the one that serves would be freed with it."""
    before, options = settled.pid, {"threads": 1}
    number = release(policies[0], settled.repository, prefix_cache_mb=4, **options)
    with Traffic(settled.http_url) as traffic:
        for size in range(5, 9):
            assert release(policies[0], settled.repository, prefix_cache_mb=size, **options) == number
            wait_until(lambda: len(models_of(settled.pid)) == 1)
            wait_until_it_counts(settled)
    assert traffic.failures == []
    assert settled.pid == before


def test_new_items_can_be_recommended_from_an_index_that_has_them_until_it_is_taken_back(
    triton: TritonServer, policies: tuple[Path, Path], grown: Path
) -> None:
    def answer() -> dict[str, Any]:
        url = f"{triton.http_url}/v2/models/tessera/infer"
        reply: dict[str, Any] = httpx.post(url, json=question(["100"], allow=["new-2"]), timeout=30).json()
        return reply

    before, served = releases(triton.repository), ask(triton.http_url)
    assert "no item of the allow list is in the catalogue" in answer()["error"]
    folder = release(policies[0], triton.repository, sids=grown, threads=1, prefix_cache_mb=4)
    (items,) = [one["data"] for one in answer()["outputs"] if one["name"] == "item_ids"]
    assert items == ["new-2"]
    take_back(triton.repository, int(folder.name))
    assert releases(triton.repository) == before[-2:]  # the one before those was pruned
    assert ask(triton.http_url) == served
    assert "no item of the allow list is in the catalogue" in answer()["error"]


def broken_policy(folder: Path) -> Path:
    def write(staging: Path) -> None:
        (staging / "sids.parquet").write_text("whole by its manifest, but no policy")

    bundle.save(folder, "policy", write, config={}, metrics={}, parent="tok-1")
    return folder


def test_what_does_not_load_is_withdrawn_and_the_old_one_keeps_serving(
    triton: TritonServer, policies: tuple[Path, Path], grown: Path, tmp_path: Path
) -> None:
    before, served = releases(triton.repository), ask(triton.http_url)
    with pytest.raises(ServiceError, match=r"withdrawn, the one before keeps serving: .*policy states levels"):
        release(broken_policy(tmp_path / "bad"), triton.repository)
    table = pq.read_table(grown)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "twins.parquet")
    with pytest.raises(ServiceError, match=r"withdrawn, the one before keeps serving: .*belong to two items"):
        release(policies[0], triton.repository, sids=tmp_path / "twins.parquet")
    with pytest.raises(BundleError, match="cannot be the index of policy"):
        release(policies[0], triton.repository, sids=tmp_path / "none.parquet")
    assert releases(triton.repository) == before
    assert ask(triton.http_url) == served == newest(triton.repository).answer
