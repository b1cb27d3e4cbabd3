"""A real Triton that hangs, is flooded and is killed beside a real feature server: what its clients get, and when."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from feature_repo import publish
from feature_repo.server import FeatureServer
from serving.model_repository import export
from serving.server import TritonServer
from tessera.decoding.recommender import Recommender as Engine
from tessera.files import read_key
from tessera_rec_client import (
    AsyncFeatures,
    AsyncRecommender,
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Recommendations,
    Recommender,
    ServerUnavailable,
)
from tessera_rec_client._http import _TRITON, _body, answer_of
from tessera_rec_client._query import query

pytestmark = pytest.mark.integration
PROTOCOLS = ("grpc", "http")
HISTORY, K, QUEUE, BATCH = ["103", "117", "104"], 20, 4, 2
# Seconds a request: short beside a server that never answers, long beside a machine that is busy.
TIME = 1.5
Models = Callable[[int | None], list[int]]


@pytest.fixture(scope="module")
def dan(features: FeatureServer, policies: tuple[Path, Path]) -> Engine:
    """User dan, with a list that the first policy has just decoded; the engine that did."""
    engine = Engine.load(policies[0])
    publish.push_history(features.home, "dan", HISTORY)
    moment = publish.moment(features.home)
    (found,) = engine.recommend([HISTORY], K)
    publish.publish_topk(
        features.home,
        pa.table({
            "user_id": ["dan"], "item_ids": [[one.item_id for one in found]], "sids": [[one.sid for one in found]],
            "scores": [[one.score for one in found]], "policy_version": [engine.policy_version],
            "tokenizer_version": [engine.tokenizer_version], "computed_at": [moment],
        }),
        partial=True,
    )  # fmt: skip
    return engine


@pytest.fixture(scope="module")
def small(
    policies: tuple[Path, Path], features: FeatureServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A Triton of these tests alone, with a short queue; each test leaves it well."""
    repository = tmp_path_factory.mktemp("small") / "models"
    export(policies[0], repository, threads=1, max_queue=QUEUE, max_batch=BATCH)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository, feature_server=features.url, **ports) as server:
        yield server


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """Processes that hang, as on a machine that swaps or behind a network that swallows packets."""
    assert processes
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def url(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def within(seconds: float, call: Callable[..., Recommendations], *given: Any, **more: Any) -> Recommendations:
    started = time.monotonic()
    answer = call(*given, **more)
    assert time.monotonic() - started < seconds
    return answer


def asking_within(seconds: float, client: AsyncRecommender, *given: Any, **more: Any) -> Recommendations:
    async def ask() -> Recommendations:
        async with client:
            started = time.monotonic()
            answer = await client.recommend(*given, **more)
            assert time.monotonic() - started < seconds
            return answer

    return asyncio.run(ask())


def assert_cached(answer: Recommendations, engine: Engine, k: int) -> None:
    """What the policy says of dan's history, from the cache."""
    expected = [one.item_id for one in engine.recommend([HISTORY], k)[0]]
    assert [one.item_id for one in answer.items] == expected
    assert (answer.source, answer.stale) == ("cache", False)
    assert answer.age_s is not None
    assert 0 <= answer.age_s < 600
    assert (answer.policy_version, answer.tokenizer_version) == (engine.policy_version, engine.tokenizer_version)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_hangs(protocol: Any, small: TritonServer, features: FeatureServer, dan: Engine) -> None:
    place = url(small, protocol)
    with Recommender(place, protocol, TIME, features.url, failures=2, pause=0.5) as client:
        answer = client.recommend(user="dan", k=5)
        assert (answer.source, answer.age_s) == ("policy", None)
        with stopped(small.pid):
            assert_cached(within(TIME, client.recommend, user="dan", k=5), dan, 5)
            more = within(TIME, client.recommend, ["150"], user="dan", k=30, exclude=[answer.items[0].item_id])
            assert more.source == "cache"
            assert {"150", *HISTORY, answer.items[0].item_id}.isdisjoint(one.item_id for one in more.items)
            assert K - 2 <= len(more.items) < K
            # Two failures in a row: now the list comes at once, and the server is not waited for.
            assert_cached(within(TIME / 3, client.recommend, user="dan", k=5), dan, 5)
            with pytest.raises(InvalidRequest, match="k is 0"):
                client.recommend(user="dan", k=0)
            with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.3 s"):
                client.recommend(HISTORY, timeout=0.3)  # no user, no list
        deadline = time.monotonic() + 20
        while client.recommend(user="dan", k=5).source == "cache":  # closes with the first try that succeeds
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.recommend(user="dan", k=5) == answer
    with stopped(small.pid):
        client = AsyncRecommender(place, protocol, TIME, features.url)
        assert_cached(asking_within(TIME, client, user="dan", k=5), dan, 5)
        without = Recommender(place, protocol, 0.5, features.url, fallback=False)
        with without, pytest.raises(DeadlineExceeded):
            without.recommend(user="dan")


def test_a_full_queue_is_busy_at_once_and_a_user_is_answered_from_the_cache(
    small: TritonServer, features: FeatureServer, dan: Engine
) -> None:
    def flood(**asked: Any) -> list[Any]:
        async def ask() -> list[Any]:
            async with AsyncRecommender(small.grpc_url, timeout=30, features_url=features.url) as client:
                requests = (client.recommend(k=5, **asked) for _ in range(15 * QUEUE))
                return await asyncio.gather(*requests, return_exceptions=True)

        return asyncio.run(ask())

    expected = [one.item_id for one in dan.recommend([HISTORY], 5)[0]]
    answers = flood(history=HISTORY)
    accepted = [one for one in answers if isinstance(one, Recommendations)]
    refused = [one for one in answers if isinstance(one, Busy)]
    assert len(accepted) + len(refused) == 15 * QUEUE
    assert min(len(accepted), len(refused)) >= QUEUE
    assert re.search("is busy, its queue is full", str(refused[0]))
    answers = flood(history=HISTORY, user="dan")
    assert {one.source for one in answers} == {"policy", "cache"}
    for answer in (*accepted, *answers):
        assert [one.item_id for one in answer.items] == expected


def test_a_request_whose_time_ran_out_in_the_queue_is_not_decoded(small: TritonServer) -> None:
    """The client's deadline travels with the request; here a caller that waits longer hears what became of it."""
    place = f"{small.http_url}/v2/models/tessera/infer"
    body = _body(query(HISTORY, None, 5, (), None, False, "interactive"), 1e-6, "late")
    with pytest.raises(DeadlineExceeded, match="did not get to the request in its time"):
        answer_of(httpx.post(place, json=body, timeout=30), place, _TRITON)


def test_batch_traffic_waits_until_nobody_else_does(small: TritonServer) -> None:
    """QUEUE requests of each kind fit, whatever the other kind sends: the priority did reach the server's queue."""

    async def ask() -> list[Any]:
        async with AsyncRecommender(small.grpc_url, timeout=30) as client:
            batch = [client.recommend(HISTORY, k=5, priority="batch") for _ in range(15 * QUEUE)]
            people = [client.recommend(HISTORY, k=5) for _ in range(QUEUE)]
            return await asyncio.gather(*batch, *people, return_exceptions=True)

    answers = asyncio.run(ask())
    assert any(isinstance(one, Busy) for one in answers[: 15 * QUEUE])
    assert all(isinstance(one, Recommendations) for one in answers[15 * QUEUE :])


def test_a_dead_stub_and_a_dead_server(
    small: TritonServer, features: FeatureServer, dan: Engine, models_of: Models
) -> None:
    """kill -9 of each; the answers come within the deadline, and from the policy again when the server is back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    clients = {
        protocol: Recommender(url(small, protocol), protocol, TIME, features.url, failures=1, pause=0.3)
        for protocol in PROTOCOLS
    }
    for process in models_of(small.pid):
        os.kill(process, signal.SIGKILL)
    for client in clients.values():
        assert_cached(within(TIME, client.recommend, user="dan", k=5), dan, 5)
    assert small.pid is not None
    os.kill(small.pid, signal.SIGKILL)
    time.sleep(0.4)  # so that the server is tried once more
    for protocol, client in clients.items():
        assert_cached(within(TIME, client.recommend, user="dan", k=5), dan, 5)
        apart = AsyncRecommender(url(small, protocol), protocol, TIME, features.url)
        assert_cached(asking_within(TIME, apart, HISTORY, user="dan", k=5), dan, 5)
        for other in (features.url, nobody):
            alone = Recommender(url(small, protocol), protocol, TIME, other)
            message = "^no server answers at .*; nor " + (
                "could the user be looked up: no server answers at" if other == nobody
                else "is there a cached list: user 'bob' has none; run `tessera precompute`"
            )  # fmt: skip
            with alone, pytest.raises(ServerUnavailable, match=message):
                alone.recommend(user="bob")
    small.stop()
    small.start()
    for client in clients.values():
        deadline = time.monotonic() + 20
        while client.recommend(user="dan", k=5).source == "cache":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        client.close()


def test_lookups_at_once_share_requests_and_fail_alone(features: FeatureServer, dan: Engine) -> None:
    async def ask() -> tuple[list[Any], int]:
        async with AsyncFeatures(features.url) as client:
            sent: list[int] = []

            async def note(request: httpx.Request) -> None:
                sent.append(len(json.loads(request.content)["entities"]["user_id"]))

            client._client.get().event_hooks["request"].append(note)
            users = ["dan", "nobody", "dan", *(f"nobody {i}" for i in range(150))]
            return await asyncio.gather(*map(client.user, users), return_exceptions=True), len(sent)

    (one, none, same, *others), requests = asyncio.run(ask())
    assert one.history == tuple(HISTORY)
    assert one.top_k.policy_version == dan.policy_version
    assert same == one
    assert [type(error) for error in (none, *others)] == [NotFound] * 151
    assert str(others[3]).startswith("user 'nobody 3' has no published history")
    assert requests < 6  # 64 users a request


def test_a_purchase_makes_the_answer_of_the_cache_stale(features: FeatureServer, dan: Engine) -> None:
    """Pushed as another service does it, over HTTP and online only; what was bought does not come out again."""
    with Recommender("127.0.0.1:9", "http", TIME, features.url) as client:
        before = client.recommend(user="dan", k=5)
        assert_cached(before, dan, 5)
        bought = [*HISTORY, before.items[0].item_id]
        now = publish.moment(features.home).isoformat()
        frame = {"user_id": ["dan"], "item_ids": [bought], "event_timestamp": [now]}
        body = {"push_source_name": "user_history_push", "df": frame, "to": "online"}
        writer = {"Authorization": f"Bearer {read_key(features.key_file)}"}
        assert httpx.post(f"{features.url}/push", json=body, headers=writer, timeout=30).is_success
        after = client.recommend(user="dan", k=4)
    assert after.stale
    assert after.items == before.items[1:]
