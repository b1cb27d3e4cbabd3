"""What the service keeps to under load: memory over minutes, hot swaps, kill -9, and five times too many requests."""

import asyncio
import os
import shutil
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pyarrow as pa

from benchmarks.load import Ask, Run, Sample, open_loop, percentiles, read_grpc
from benchmarks.service import OPTIONS, Service
from benchmarks.shop import publish_features
from feature_repo import publish
from feature_repo.server import FeatureServer
from serving.model_repository import newest
from serving.probe import Served, ask
from serving.release import release
from serving.server import TritonServer
from serving.watchdog import INTERVAL_S, Watchdog
from tessera import bundle
from tessera.decoding.recommender import Recommendation, Recommender
from tessera.errors import BundleError, ServiceError
from tessera.schema import read_table
from tessera_rec_client import AsyncRecommender

LOAD, FLOOD = 0.8, 5.0
"""Share of the capacity that is sent."""
DEADLINE_S = 1.0
SETTLE_S = 5.0
"""A release that was replaced ends within so many seconds."""
TIE = 1e-3
"""Scores nearer than this may swap places: they depend in the last digits on who shares the batch."""
BUSY, LATE = "Exceeds maximum queue size", "Request timeout expired"


async def soak(service: Service, capacity: float, minutes: float) -> dict[str, Any]:
    """Errors, and the resident memory of all the server's processes minute by minute."""
    memory: list[list[float]] = []

    async def watch() -> None:
        started = time.perf_counter()
        while (minute := (time.perf_counter() - started) / 60) < minutes:
            memory.extend([] for _ in range(int(minute) + 1 - len(memory)))
            memory[-1].append(_resident_mb(service.server))
            await asyncio.sleep(min(1.0, minutes * 60 / 4))

    async with service.raw("grpc") as send:
        run = await open_loop(send, LOAD * capacity, service.seed, watch())
    per_minute = [round(statistics.median(one), 1) for one in memory]
    settled = per_minute[min(1, len(per_minute) - 1)]
    growth = {"memory_mb": per_minute, "memory_growth": round(per_minute[-1] / settled - 1, 4)}
    return _said("soak", run.summary() | growth)


async def swaps(service: Service, rate: float, count: int) -> dict[str, Any]:
    """Releases of another policy and of a newer index in turn, then two broken ones."""
    repository, policies, grown = service.server.repository, service.shop.policies, service.shop.grown
    variants = [(policies[0], None), (policies[0], grown), (policies[1], None), (policies[1], grown)]
    lists = [_lists(service, policy, sids) for policy, sids in variants]
    expected = {newest(repository).answer: lists[0]}
    before, took = _resident_mb(service.server), list[float]()

    def swap() -> list[str]:
        for number in range(1, count + 1):
            time.sleep(0.5)
            policy, sids = variants[number % len(variants)]
            started = time.perf_counter()
            release(policy, repository, sids=sids, threads=service.threads, **OPTIONS)
            took.append(time.perf_counter() - started)
            expected[newest(repository).answer] = lists[number % len(variants)]
        return _refusals(service)

    swapping = asyncio.ensure_future(asyncio.to_thread(swap))
    async with service.raw("grpc") as send:
        run = await open_loop(send, rate, service.seed, swapping, keep=True)
    await asyncio.sleep(SETTLE_S)
    mixed = sum(not _agrees(one, expected) for one in run.answered)
    return _said("swaps", run.summary() | {
        "sent_per_s": round(rate, 1),
        "swaps": count, "policies_and_indices": len(expected), "swap_p50_s": round(statistics.median(took), 2),
        "failed": len(run.samples) - len(run.answered), "mixed": mixed,
        "broken_refused": swapping.result(), "memory_mb": [before, _resident_mb(service.server)],
    })  # fmt: skip


def _lists(service: Service, policy: Path, sids: Path | None) -> list[list[Recommendation]]:
    """What a policy over an index answers to each history."""
    engine = Recommender.load(policy, sids)
    return [engine.recommend([history], service.k)[0] for history in service.shop.histories]


def _agrees(sample: Sample, expected: dict[Served, list[list[Recommendation]]]) -> bool:
    """Whether an answer's items are those of the version that it names."""
    found = read_grpc(sample.answer)
    lists = expected[Served(found["policy_version"][0], found["index_version"][0])]
    wanted = {one.item_id: one.score for one in lists[sample.number % len(lists)]}
    given = dict(zip(found["item_ids"], found["scores"], strict=True))
    return _sure(wanted) <= given.keys() and _sure(given) <= wanted.keys()


def _sure(scores: dict[str, float]) -> set[str]:
    """Items that are clear of the end of their list."""
    return {item for item, score in scores.items() if score > min(scores.values()) + TIE}


def _refusals(service: Service) -> list[str]:
    """Release a damaged bundle and one that cannot be loaded: why each was refused, the old one going on."""
    said, repository = [], service.server.repository
    serving = ask(service.server.http_url)
    with tempfile.TemporaryDirectory() as scratch:
        damaged = Path(shutil.copytree(service.shop.policies[0], Path(scratch) / "damaged"))
        weights = next(damaged.rglob("*.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        hollow = Path(scratch) / "hollow"  # whole by its manifest
        bundle.save(hollow, "policy", lambda new: (new / "sids.parquet").touch(), config={}, metrics={}, parent="none")
        for broken in (damaged, hollow):
            try:
                release(broken, repository)
            except (BundleError, ServiceError) as error:
                said.append(type(error).__name__)
            if ask(service.server.http_url) != serving:
                said.append("but another policy serves")
    return said


async def flood(service: Service, capacity: float, seconds: float) -> dict[str, Any]:
    """Requests that wait at most the deadline, five times as many as can be answered."""
    async with service.raw("grpc", DEADLINE_S) as send:
        idle = statistics.median([await _seconds(send) for _ in range(20)])
        run = await open_loop(send, FLOOD * capacity, service.seed, asyncio.sleep(seconds))
        while await _seconds(send) > 2 * idle:
            pass
        recovered = time.perf_counter() - run.start - seconds
    sent = len(run.samples) / seconds
    busy, late = ([one.seconds for one in run.samples if reason in one.error] for reason in (BUSY, LATE))
    return _said("flood", {
        "deadline_s": DEADLINE_S, "sent_per_s": round(sent, 1), "times_capacity": round(sent / capacity, 2),
        "accepted": percentiles([one.seconds for one in run.answered]),
        "accepted_per_s": round(len(run.answered) / run.elapsed, 1),
        "busy_share": round(len(busy) / len(run.samples), 4), "busy": percentiles(busy),
        "late_share": round(len(late) / len(run.samples), 4), "late": percentiles(late),
        "other_errors": len(run.samples) - len(run.answered) - len(busy) - len(late),
        "recovered_after_s": round(recovered, 3),
    })  # fmt: skip


async def kill(service: Service, rate: float) -> dict[str, Any]:
    """kill -9 of the model's process, then of the server, watched as by `tessera serve`; clients have cached lists."""
    kills: dict[str, float] = {}

    def kill_both(watchdog: Watchdog) -> None:
        for number, name in enumerate(("model", "server")):
            time.sleep(3)
            process = psutil.Process(service.server.pid)
            victim = process if name == "server" else next(p for p in process.children() if "stub" in p.name())
            kills[name] = time.perf_counter()
            os.kill(victim.pid, signal.SIGKILL)
            while watchdog.restarts == number and time.perf_counter() < kills[name] + 60:
                time.sleep(0.05)
        time.sleep(3)

    with tempfile.TemporaryDirectory() as home, _cache(service, Path(home) / "home") as features:
        async with _with_cache(service, features.url) as send:
            with _watched(service.server) as watchdog:
                during = asyncio.to_thread(kill_both, watchdog)
                run = await open_loop(send, rate, service.seed, during, keep=True)
    sources = [one.answer.source for one in run.answered]
    return _said("kill", run.summary() | {
        "deadline_s": DEADLINE_S, "sent_per_s": round(rate, 1),
        "from_policy": sources.count("policy"), "from_cache": sources.count("cache"),
        "slowest_s": round(max(one.seconds for one in run.samples), 3),
        "served_again_after_s": _outages(run, list(kills.values())),
    })  # fmt: skip


def _outages(run: Run, kills: Sequence[float]) -> list[float]:
    """Seconds from each kill to the last request that the policy did not answer."""
    found = []
    for moment, end in zip(kills, (*kills[1:], float("inf")), strict=True):
        done = [run.start + one.due + one.seconds for one in run.samples if one.error or one.answer.source == "cache"]
        found.append(round(max((one - moment for one in done if moment <= one < end), default=0.0), 2))
    return found


@asynccontextmanager
async def _with_cache(service: Service, features_url: str) -> AsyncIterator[Ask]:
    """tessera-rec-client with each history's user, whose cached list answers where the server does not."""
    histories = service.shop.histories
    async with AsyncRecommender(service.server.grpc_url, "grpc", DEADLINE_S, features_url) as recommender:

        async def send(number: int) -> Any:
            number %= len(histories)
            return await recommender.recommend(histories[number], user=f"u{number}", k=service.k)

        yield send


@contextmanager
def _cache(service: Service, home: Path) -> Iterator[FeatureServer]:
    """A feature server with a list of the served policy for each history."""
    users = {f"u{number}": history for number, history in enumerate(service.shop.histories)}
    policy = newest(service.server.repository)
    lists = _lists(service, policy.policy, None)
    some = read_table("sids", policy.policy / "sids.parquet").slice(0, 100)
    publish_features(home, some, users, policy.policy_version, 0)
    publish.publish_topk(home, pa.table({
        "user_id": list(users), "item_ids": [[one.item_id for one in row] for row in lists],
        "sids": [[one.sid for one in row] for row in lists], "scores": [[one.score for one in row] for row in lists],
        "policy_version": [policy.policy_version] * len(users),
        "tokenizer_version": [policy.tokenizer_version] * len(users),
        "computed_at": [publish.moment(home)] * len(users),
    }))  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FeatureServer(home, port=port) as server:
        yield server


@contextmanager
def _watched(server: TritonServer) -> Iterator[Watchdog]:
    watchdog, ended = Watchdog("Triton", server, lambda said: print(f"    {said}", flush=True)), threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            watchdog.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield watchdog
    finally:
        ended.set()
        thread.join()


async def _seconds(send: Ask) -> float:
    """How long an answer takes; for ever where there is none."""
    started = time.perf_counter()
    try:
        await send(0)
    except grpc.aio.AioRpcError:
        return float("inf")
    return time.perf_counter() - started


def _resident_mb(server: TritonServer) -> float:
    """Of the server and its model processes; one that ends meanwhile counts nothing."""
    total, parent = 0, psutil.Process(server.pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return round(total / 1e6, 1)


def _said(title: str, found: dict[str, Any]) -> dict[str, Any]:
    print(f"{title}:")
    for name, value in found.items():
        print(f"    {name:<24}{value}", flush=True)
    return found
