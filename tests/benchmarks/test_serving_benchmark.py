"""The serving benchmark at a tiny size, as it is run, and the measures that it counts faults with."""

import asyncio
import json
import runpy
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from benchmarks.decoding import Case
from benchmarks.faults import BUSY, _agrees
from benchmarks.load import Sample, closed_loop, open_loop, read_grpc
from benchmarks.service import Service, serving
from serving.probe import Served
from tessera.decoding.recommender import Recommendation

# As small as it can be while this process can send five times as many requests as it answers.
TINY = Case(items=300, hidden=128, codebook=16, history=10)
FLAGS = [*(f"--case.{name}={value}" for name, value in asdict(TINY).items()), "--threads=1"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One server for all runs: a start takes longer than what is measured of it."""
    with serving(tmp_path_factory.mktemp("service"), TINY, threads=1, seed=0) as started:
        yield started


@pytest.fixture
def run(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The benchmark with some flags; the JSON object that it prints last."""
    monkeypatch.setattr("benchmarks.service.serving", lambda *_: nullcontext(service))

    def start(*flags: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["serving", *FLAGS, *flags])
        runpy.run_module("benchmarks.serving", run_name="__main__")
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return start


@pytest.mark.integration
def test_load_table_and_overhead(run: Run) -> None:
    found = run("--rounds=1", "--seconds=0.1")
    assert found["items"] == TINY.items
    assert {"hardware", "threads", "engine", "overhead_ms", "load"} <= found.keys()
    assert set(found["overhead_ms"]) == {"grpc", "http", "grpc_client", "http_client"}
    for protocol in ("grpc", "http"):
        table = found["load"][protocol]
        rows = ["1 clients", "4 clients", "16 clients", "64 clients", "open, 50%", "open, 80%"]
        assert set(table) == {*rows, "capacity", "throughput_ratio_16"}
        for row in rows:
            assert table[row]["errors"] == {}
            assert 0 < table[row]["p50_ms"] <= table[row]["p95_ms"] <= table[row]["p99_ms"]
            assert table[row]["throughput"] > 0


@pytest.mark.integration
def test_soak_and_flood(run: Run) -> None:
    found = run("--seconds=0.2", "--soak", "--soak-minutes=0.02", "--flood", "--flood-seconds=0.5")
    # What a fifth of a second tells of the capacity is no more than a guess.
    assert set(found["soak"]["errors"]) <= {BUSY}
    assert found["soak"]["memory_mb"][0] > 50
    assert found["flood"]["other_errors"] == 0
    assert found["flood"]["times_capacity"] > 2
    assert "load" not in found


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A server that stands still for 0.2 s is seen by all that were due meanwhile; a closed loop sees it once."""
    held = time.perf_counter() + 0.3

    async def ask(number: int) -> int:
        if 0 < held - time.perf_counter() < 0.2:
            await asyncio.sleep(held - time.perf_counter())
        if number == 7:
            raise RuntimeError("no")
        return number

    run = asyncio.run(open_loop(ask, 200, 0, asyncio.sleep(0.6), keep=True))
    assert 80 < len(run.samples) < 160
    assert [one.error for one in run.samples if one.error] == ["no"]
    assert [one.answer for one in run.answered] == [one.number for one in run.answered]
    assert 20 < sum(one.seconds > 0.02 for one in run.samples) < 70
    assert run.summary()["errors"] == {"no": 1}


def test_a_closed_loop_waits_for_its_answers() -> None:
    active = most = 0

    @asynccontextmanager
    async def connect() -> Any:
        async def ask(_: int) -> None:
            nonlocal active, most
            active += 1
            most = max(most, active)
            await asyncio.sleep(0.01)
            active -= 1

        yield ask

    run = asyncio.run(closed_loop(connect, 3, 0.2))
    assert most == 3
    assert 30 <= len(run.samples) <= 63
    assert len({one.number for one in run.samples}) == len(run.samples)


def answer(items: list[str], scores: list[float], policy: str) -> bytes:
    response = service_pb2.ModelInferResponse()
    columns = [("item_ids", items), ("policy_version", [policy]), ("index_version", ["x"])]
    for name, values in columns:
        response.outputs.add(name=name, datatype="BYTES")
        encoded = serialize_byte_tensor(np.array([one.encode() for one in values], dtype=object))
        response.raw_output_contents.append(encoded.item())
    response.outputs.add(name="scores", datatype="FP32")
    response.raw_output_contents.append(np.array(scores, dtype=np.float32).tobytes())
    return bytes(response.SerializeToString())


def test_a_mixed_answer_is_told_from_one_whose_tail_is_a_tie() -> None:
    def listed(*items: str) -> list[list[Recommendation]]:
        return [[Recommendation(item, "", -1.0 - min(place, 2)) for place, item in enumerate(items)]]

    expected = {Served("p", "x"): listed("a", "é", "c"), Served("q", "x"): listed("d", "e", "f")}

    def agrees(items: list[str], policy: str) -> bool:
        sent = answer(items, [-1.0, -2.0, -3.0], policy)
        assert read_grpc(sent)["item_ids"] == items
        return _agrees(Sample(0, 0.0, 0.1, "", sent), expected)

    assert agrees(["a", "é", "c"], "p")
    assert agrees(["a", "é", "tied with c"], "p")
    assert not agrees(["a", "x", "c"], "p")
    assert not agrees(["d", "e", "f"], "p")
    assert agrees(["d", "e", "f"], "q")
