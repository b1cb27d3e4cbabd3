"""Clients that a process uses and then forks: no child, and not the parent, is given an answer of another user."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.shop import publish_features
from feature_repo.server import FeatureServer
from serving.model_repository import export
from serving.server import TritonServer
from serving.user_history import UserHistories
from tessera.errors import ServiceError
from tessera.schema import read_table
from tessera_rec_client import AsyncFeatures, AsyncRecommender, Features, Recommender, WrongAnswer

USERS = 40
# As gunicorn does with preloading: made and used by the parent, then used by workers that it forks, and by itself.
PRELOADED = """
import asyncio, json, multiprocessing, sys
from tessera_rec_client import AsyncFeatures, AsyncRecommender, Features, Recommender

triton, feast, protocol, users, each = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
concurrent = sys.argv[6] == "async"
recommender = (AsyncRecommender if concurrent else Recommender)(triton, protocol, timeout=60)
features = (AsyncFeatures if concurrent else Features)(feast, timeout=60)
HISTORY = lambda user: [f"item-{(user + step) % users}" for step in range(3)]


def recommend(user):  # all but one item are refused, another one for each user
    return recommender.recommend(HISTORY(user), allow=[f"item-{(user + 3) % users}"])


def right(user, answer, found):
    items = [one.item_id for one in answer.items]
    return [items == [f"item-{(user + 3) % users}"], list(found.history) == HISTORY(user)]


def ask(user):
    return right(user, recommend(user), features.user(f"user-{user}"))


async def ask_async(user):
    return right(user, *await asyncio.gather(recommend(user), features.user(f"user-{user}")))


async def ask_all(asked):
    return [sum(await asyncio.gather(*map(ask_async, asked[n : n + 5])), []) for n in range(0, len(asked), 5)]


def use(asked):
    return sum(asyncio.run(ask_all(asked)) if concurrent else map(ask, asked), [])


def work(number, results):
    try:
        results.put(use([(number * 10 + one) % users for one in range(each)]))
    except Exception as error:
        results.put(repr(error))


fork = multiprocessing.get_context("fork")
before, results = use([0]), fork.Queue()
workers = [fork.Process(target=work, args=(number, results)) for number in range(4)]
for one in workers:
    one.start()
after = [] if concurrent else use([one % users for one in range(each)])  # the asynchronous one was for one event loop
found = [results.get(timeout=120) for _ in workers]
for one in workers:
    one.join()
print(json.dumps([before + after, *found]))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def servers(policy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, str]]:
    """Triton with a policy over 40 items, and the address of a feature server with 40 users."""
    folder = tmp_path_factory.mktemp("forked")
    histories = {f"user-{n}": [f"item-{(n + step) % USERS}" for step in range(3)] for n in range(USERS)}
    publish_features(folder / "home", read_table("sids", policy_bundle / "sids.parquet"), histories, "policy", 0)
    export(policy_bundle, folder / "models", threads=1)
    with (
        FeatureServer(folder / "home", port=free_port(), start_timeout_s=240) as features,
        TritonServer(folder / "models", http_port=0, grpc_port=0, metrics_port=0) as triton,
    ):
        yield triton, features.url


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_four_forked_workers_get_their_own_users_answers(
    protocol: str, kind: str, servers: tuple[TritonServer, str]
) -> None:
    triton, feast = servers
    url = triton.grpc_url if protocol == "grpc" else triton.http_url
    command = [sys.executable, "-c", PRELOADED, url, feast, protocol, str(USERS), "50", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    parent, *workers = json.loads(done.stdout)
    assert parent.count(False) == 0
    for answers in workers:
        assert answers == [True] * 100


class Mixed(BaseHTTPRequestHandler):
    """Answers as Feast and as Triton do, but what somebody else has asked."""

    protocol_version = "HTTP/1.1"
    connections: set[Any]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.connections.add(self.client_address)
        answer = self.triton() if "infer" in self.path else self.feast(asked["entities"])
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def triton(self) -> dict[str, Any]:
        columns = {"item_ids": "a", "sids": "1", "scores": 0.5, "policy_version": "p", "tokenizer_version": "t"}
        return {"id": "another", "outputs": [{"name": name, "data": [value]} for name, value in columns.items()]}

    def feast(self, entities: dict[str, list[str]]) -> dict[str, Any]:
        ((key, values),) = entities.items()
        features = {"user_history__item_ids": ["a"], "item_enrichment__title": "t", "sid_items__item_ids": ["a"]}
        columns: dict[str, list[Any]] = {name: [one] * len(values) for name, one in features.items()}
        columns[key] = [f"{value}0" for value in values]
        return {"metadata": {"feature_names": list(columns)}, "results": [{"values": one} for one in columns.values()]}

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def mixed() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Mixed,), {"connections": set()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class MixedGrpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers what somebody else has asked."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return service_pb2.ModelInferResponse(model_name="tessera", id="another")


@pytest.fixture
def mixed_grpc() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(MixedGrpc(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_an_answer_to_another_lookup_is_an_error_and_its_connection_is_given_up(mixed: ThreadingHTTPServer) -> None:
    url = f"127.0.0.1:{mixed.server_port}"

    async def ask() -> None:
        async with AsyncFeatures(url) as features:
            for lookup in (features.user("1"), features.item("1"), features.sid("1")):
                with pytest.raises(WrongAnswer, match="answered for another"):
                    await lookup

    asyncio.run(ask())
    with Features(url) as features:
        for look_up in (features.user, features.item, features.sid):
            with pytest.raises(WrongAnswer, match="answered for another"):
                look_up("1")
    assert len(mixed.RequestHandlerClass.connections) == 6  # type: ignore[attr-defined]


def test_an_answer_to_another_recommendation_is_an_error(mixed: ThreadingHTTPServer, mixed_grpc: str) -> None:
    async def ask(url: str, protocol: Any) -> None:
        async with AsyncRecommender(url, protocol) as recommender:
            await recommender.recommend(["a"])

    for url, protocol in ((f"127.0.0.1:{mixed.server_port}", "http"), (mixed_grpc, "grpc")):
        with Recommender(url, protocol) as recommender:  # type: ignore[arg-type]
            for _ in range(2):
                with pytest.raises(WrongAnswer, match="answered another request than this one"):
                    recommender.recommend(["a"])
        with pytest.raises(WrongAnswer):
            asyncio.run(ask(url, protocol))
    assert len(mixed.RequestHandlerClass.connections) == 3  # type: ignore[attr-defined]


def test_the_served_model_takes_no_history_of_another_user(mixed: ThreadingHTTPServer) -> None:
    histories = UserHistories(f"http://127.0.0.1:{mixed.server_port}")
    for _ in range(2):
        with pytest.raises(ServiceError, match="answered for other users"):
            histories(["ann", "bob"])
    assert len(mixed.RequestHandlerClass.connections) == 2  # type: ignore[attr-defined]
