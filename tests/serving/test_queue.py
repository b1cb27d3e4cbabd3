"""The queue before a policy that takes its time: busy, too late, interactive first, and a flood."""

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from serving.model_repository import export
from serving.probe import ask as probe
from serving.server import TritonServer
from tessera.config import PolicySettings
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy

pytestmark = pytest.mark.integration
MAX_BATCH, MAX_QUEUE = 4, 8
DEADLINE_S = 1.0
BUSY = "StatusCode.UNAVAILABLE: Exceeds maximum queue size"
LATE = "StatusCode.UNAVAILABLE: Request timeout expired"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, sids: pa.Table) -> Iterator[TritonServer]:
    """A server with a policy of a real one's size and a short queue, so that one process can flood it."""
    folder = tmp_path_factory.mktemp("slow")
    torch.manual_seed(0)
    backbone = build(PolicySettings(hidden=256, layers=6, heads=4, text_vocabulary=300), ["a"], 3, 8, 0)
    save_policy(folder / "policy", backbone, sids, codebook_size=8, max_history=20, config={}, metrics={})
    export(folder / "policy", folder / "models", threads=1, max_batch=MAX_BATCH, max_queue=MAX_QUEUE)
    with TritonServer(folder / "models", http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


Ask = Callable[..., Awaitable[tuple[str, float]]]


@asynccontextmanager
async def asking(server: TritonServer, more: Iterable[Any] = ()) -> Any:
    """Ask for 50 items, which widens the search: (what came back, seconds)."""
    inputs = []
    history, k = ("history", "BYTES", np.array([[b"100"]], object)), ("k", "INT32", np.array([[50]], np.int32))
    for name, datatype, value in (history, k, *more):
        one = InferInput(name, [1, 1], datatype)
        one.set_data_from_numpy(value)
        inputs.append(one)
    client = triton_aio.InferenceServerClient(server.grpc_url)

    async def ask(**schedule: Any) -> tuple[str, float]:
        started = time.perf_counter()
        try:
            await client.infer("tessera", inputs, **schedule)
            said = "answered"
        except InferenceServerException as error:
            said = f"{error.status()}: {error.message().split('] ')[-1]}"
        return said, time.perf_counter() - started

    try:
        yield ask
    finally:
        await client.close()


def ask_many(server: TritonServer, schedules: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """All at once."""

    async def gather() -> list[tuple[str, float]]:
        async with asking(server) as ask:
            return list(await asyncio.gather(*(ask(**schedule) for schedule in schedules)))

    return asyncio.run(gather())


def test_a_full_queue_refuses_at_once_and_what_it_took_is_answered(slow: TritonServer) -> None:
    found = ask_many(slow, [{}] * 60)
    counts = Counter(said for said, _ in found)
    assert set(counts) == {"answered", BUSY}
    # What waits and what is decoded; and those that came while it was.
    assert MAX_QUEUE <= counts["answered"] <= 60 - MAX_QUEUE
    fastest_answer = min(seconds for said, seconds in found if said == "answered")
    refusals = sorted(seconds for said, seconds in found if said == BUSY)
    assert refusals[len(refusals) // 2] < fastest_answer + 0.1  # they wait for no decode
    assert ask_many(slow, [{}])[0][0] == "answered"
    body = {"inputs": [{"name": "probe", "shape": [1, 1], "datatype": "BOOL", "data": [True]}]}
    assert httpx.post(f"{slow.http_url}/v2/models/tessera/infer", json=body, timeout=30).status_code == 200


def test_a_request_that_waited_longer_than_it_said_is_not_decoded(slow: TritonServer) -> None:
    patient, hasty = [{}] * 5, [{"timeout": 2_000}] * 3  # together they fit into the queue
    refused: set[str] = set()
    for _ in range(10):  # the hasty ones may come first, and are answered then
        found = ask_many(slow, patient + hasty)
        assert {said for said, _ in found[:5]} == {"answered"}
        refused |= {said for said, _ in found[5:]} - {"answered"}
        if refused:
            break
    assert refused  # as busy, where it was plain from the start that the time would not do
    assert refused <= {LATE, BUSY}
    assert ask_many(slow, [{"timeout": 30_000_000}])[0][0] == "answered"


def test_interactive_requests_overtake_batch_traffic(slow: TritonServer) -> None:
    batch, interactive = [{"parameters": {"traffic": "batch"}}] * MAX_QUEUE, [{"parameters": {"traffic": "x"}}, {}]
    found = ask_many(slow, batch + interactive)
    assert {said for said, _ in found} == {"answered"}
    last_of_batch = max(seconds for _, seconds in found[:MAX_QUEUE])
    assert all(seconds < last_of_batch for _, seconds in found[MAX_QUEUE:])
    overtaken = sum(max(s for _, s in found[MAX_QUEUE:]) < seconds for _, seconds in found[:MAX_QUEUE])
    assert overtaken >= MAX_QUEUE // 4
    # Each priority has a queue of its own: batch traffic cannot make the server busy for people.
    found = ask_many(slow, batch * 5 + interactive)
    assert BUSY in {said for said, _ in found[:40]}
    assert [said for said, _ in found[40:]] == ["answered", "answered"]


def test_counters_reach_the_metrics_endpoint(slow: TritonServer) -> None:
    def metrics() -> dict[str, float]:
        lines = httpx.get(slow.metrics_url, timeout=10).text.splitlines()
        found = (re.fullmatch(r"((?:tessera|nv)_\w+)\{.*\} (\S+)", line) for line in lines)
        return {one[1]: float(one[2]) for one in found if one}

    time.sleep(1.5)  # counters are published every second
    before = metrics()
    assert [said for said, _ in ask_many(slow, [{}] * 6)] == ["answered"] * 6
    deadline = time.monotonic() + 10
    while metrics()["tessera_requests_total"] < before["tessera_requests_total"] + 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    added = {name: value - before[name] for name, value in metrics().items()}
    assert added["tessera_requests_total"] == 6
    assert 1 <= added["tessera_decodes_total"] < 6
    assert added["tessera_beams_total"] == 6 * 50
    assert 0 < added["tessera_decode_seconds_total"] < 30
    assert metrics()["tessera_invalid_items_total"] == 0
    assert 0 < added["tessera_queue_seconds_total"] < 30
    assert added["nv_inference_request_success"] == 6
    assert before["tessera_busy_total"] > 50
    assert "tessera_late_total" in before


def test_a_flood_leaves_the_accepted_quick_and_is_forgotten(slow: TritonServer) -> None:
    async def flood() -> tuple[float, list[tuple[str, float]]]:
        async with asking(slow) as ask:

            async def closed_loop(until: float) -> int:
                answered = 0
                while time.perf_counter() < until:
                    answered += (await ask())[0] == "answered"
                return answered

            until = time.perf_counter() + 1.5
            capacity = sum(await asyncio.gather(*(closed_loop(until) for _ in range(MAX_QUEUE)))) / 1.5
            pending, started = [], time.perf_counter()
            while (now := time.perf_counter() - started) < 3:
                while len(pending) < 5 * capacity * now:
                    pending.append(asyncio.create_task(ask(timeout=int(DEADLINE_S * 1e6))))
                await asyncio.sleep(0.002)
            return capacity, list(await asyncio.gather(*pending))

    capacity, found = asyncio.run(flood())
    answered = sorted(seconds for said, seconds in found if said == "answered")
    refused = sorted(seconds for said, seconds in found if said != "answered")
    assert len(found) > 13 * capacity  # this process did send the five times
    assert len(answered) > 0.5 * 3 * capacity  # and the server did not spend its time on refusals
    assert answered[int(0.99 * len(answered))] < 2 * DEADLINE_S
    assert Counter(said for said, _ in found)[BUSY] > 0.9 * len(refused)
    assert refused[len(refused) // 2] < 0.1
    assert ask_many(slow, [{}])[0][1] < DEADLINE_S


@pytest.mark.parametrize("more", [[], [("probe", "BOOL", np.array([[False]]))]], ids=["plain", "with a probe of false"])
def test_a_probe_overtakes_a_crowd(slow: TritonServer, more: list[Any]) -> None:
    async def while_busy() -> Counter[str]:
        async with asking(slow, more) as ask:
            done = asyncio.Event()

            async def keep_asking() -> list[str]:
                said = []
                while not done.is_set():
                    said.append((await ask())[0])
                return said

            crowd = [asyncio.create_task(keep_asking()) for _ in range(60)]
            await asyncio.sleep(0.3)
            for _ in range(5):
                await asyncio.to_thread(probe, slow.http_url, 2)
            done.set()
            return Counter(itertools.chain.from_iterable(await asyncio.gather(*crowd)))

    seen = asyncio.run(while_busy())
    assert seen[BUSY] > seen["answered"] > 0  # it was busy all the time
