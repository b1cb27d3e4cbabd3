"""The client without a server, or with one that misbehaves: what it refuses, and which error says what."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tessera_rec_client import (
    AsyncFeatures,
    AsyncRecommender,
    Busy,
    DeadlineExceeded,
    Features,
    InvalidRequest,
    NotFound,
    Recommender,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
)

PROTOCOLS = ("grpc", "http")


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


class Scripted(BaseHTTPRequestHandler):
    """Answers every POST with what the test put into the server."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a history, a user, or both"),
        ({"history": [], "user": "u"}, "the history is empty"),
        ({"history": ["a"], "priority": "urgent"}, "priority is 'urgent'; choose 'interactive' or 'batch'"),
        ({"history": []}, "the history is empty"),
        ({"history": "abc"}, "history is 'abc'; give a list"),
        ({"history": {"a", "b"}}, "give a list"),
        ({"history": [7]}, "history holds 7; ids are non-empty strings"),
        ({"history": ["a", ""]}, "history holds ''"),
        ({"user": ""}, "user holds ''"),
        ({"history": ["a"], "k": 0}, "k is 0"),
        ({"history": ["a"], "k": -1}, "k is -1"),
        ({"history": ["a"], "k": 2.0}, "k is 2.0"),
        ({"history": ["a"], "k": True}, "k is True"),
        ({"history": ["a"], "allow": []}, "the allow list is empty"),
        ({"history": ["a"], "exclude": "b"}, "exclude is 'b'"),
        ({"history": ["a"], "exclude": [None]}, "exclude holds None"),
        ({"history": ["a"], "timeout": 0}, "timeout is 0"),
        ({"history": ["a"], "diversity": 1.5}, "diversity is 1.5; give a number between 0 and 1"),
        ({"history": ["a"], "diversity": "much"}, "diversity is 'much'"),
        ({"history": ["a"], "diversity": float("nan")}, "diversity is nan"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_request_is_refused_before_it_is_sent(
    arguments: Any, message: str, protocol: Any, nobody: str
) -> None:
    with Recommender(nobody, protocol) as client, pytest.raises(InvalidRequest, match=message):
        client.recommend(**arguments)


@pytest.mark.parametrize("url", ["", "http://", "ftp://host:1", "host:port", "a b:1", "http://host:1/path", "h:123456"])
@pytest.mark.parametrize("make", [lambda url: Recommender(url, "http"), Recommender, Features])
def test_addresses_are_checked(url: str, make: Any) -> None:
    with pytest.raises(InvalidRequest, match="is no address; write host:port or"):
        make(url)


def test_other_arguments_of_the_clients_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="choose 'grpc' or 'http'"):
        Recommender("127.0.0.1:1", "rest")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="timeout is -1"):
        AsyncRecommender("127.0.0.1:1", timeout=-1)
    with pytest.raises(InvalidRequest, match="timeout is inf"):
        Features("127.0.0.1:1", timeout=float("inf"))
    with pytest.raises(InvalidRequest, match="failures is 0; give a whole number"):
        Recommender("127.0.0.1:1", failures=0)
    with pytest.raises(InvalidRequest, match="pause is 0; give a number of seconds above 0"):
        AsyncRecommender("127.0.0.1:1", pause=0)
    with Features("127.0.0.1:1") as features:
        for wrong in ("", "1-2", "1__2", "a_b"):
            with pytest.raises(InvalidRequest, match="is not a semantic ID; write its codes joined by '_'"):
                features.sid(wrong)
        with pytest.raises(InvalidRequest, match="item_id holds ''"):
            features.item("")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_not_up(protocol: Any, nobody: str) -> None:
    message = f"no server answers at .*{nobody}"
    with Recommender(nobody, protocol) as client, pytest.raises(ServerUnavailable, match=message):
        client.recommend(["a"])

    async def ask() -> None:
        async with AsyncRecommender(nobody, protocol) as client:
            await client.recommend(["a"])

    with pytest.raises(ServerUnavailable, match=message):
        asyncio.run(ask())


class Counting(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Counts and refuses."""

    asked = 0

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002
        self.asked += 1
        context.abort(grpc.StatusCode.NOT_FOUND, "the user is not known.")


@pytest.mark.skipif(not has_ipv6(), reason="the name localhost has one address here, for want of IPv6")
def test_grpc_spreads_over_all_servers_behind_a_name() -> None:
    """Here those of the name localhost, at its two addresses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = {address: (grpc.server(ThreadPoolExecutor(2)), Counting()) for address in ("127.0.0.1", "[::1]")}
    for address, (server, counting) in servers.items():
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(counting, server)
        assert server.add_insecure_port(f"{address}:{port}") == port
        server.start()
    with Recommender(f"localhost:{port}", timeout=30) as client:
        for _ in range(100):
            with pytest.raises(NotFound):
                client.recommend(["a"])
    for server, _ in servers.values():
        server.stop(None)
    counts = [counting.asked for _, counting in servers.values()]
    assert sum(counts) == 100
    assert min(counts) >= 30, counts


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_does_not_answer(protocol: Any, silent: str) -> None:
    with Recommender(silent, protocol, timeout=0.3) as client, pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        client.recommend(["a"])

    async def ask() -> None:
        async with AsyncRecommender(silent, protocol) as client:
            await client.recommend(["a"], timeout=0.2)

    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        asyncio.run(ask())


def test_features_that_are_not_up_or_silent(nobody: str, silent: str) -> None:
    with Features(nobody) as features, pytest.raises(ServerUnavailable, match="no server answers at"):
        features.item("a")

    async def ask() -> None:
        async with AsyncFeatures(silent, timeout=0.2) as features:
            await features.user("u")

    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        asyncio.run(ask())
    # The client looks the user up itself, so the same errors come out of a recommendation.
    with Recommender(nobody, features_url=nobody) as client, pytest.raises(ServerUnavailable):
        client.recommend(user="u")


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (200, b"<html>", ServerError, "answered with status 200"),
        (200, b"[]", ServerError, "is no recommendation"),
        (200, b'{"outputs": [{"name": "item_ids", "data": ["a"]}]}', ServerError, "is no recommendation"),
        (500, b'{"error": "it  broke"}', ServerError, "^it broke$"),
        (502, b"", ServerUnavailable, "answered with status 502 and no reason"),
        (503, b'{"error": "[request id: 1] Exceeds maximum queue size"}', Busy, "is busy, its queue is full"),
        (503, b'{"error": "Request timeout expired"}', DeadlineExceeded, "did not get to the request in its time"),
        (404, b'{"error": "Request for unknown model: \'tessera\'"}', ServerUnavailable, "has no policy loaded"),
    ],
)
def test_answers_that_are_none(
    status: int, body: bytes, error: type[TesseraClientError], message: str, scripted: ThreadingHTTPServer
) -> None:
    scripted.answer = status, body  # type: ignore[attr-defined]
    with Recommender(f"http://127.0.0.1:{scripted.server_port}", "http") as client, pytest.raises(error, match=message):
        client.recommend(["a"])


@pytest.mark.parametrize(
    "body", [b"[]", b'{"metadata": {"feature_names": ["title"]}, "results": []}', b'"no such service"']
)
def test_features_of_another_release(body: bytes, scripted: ThreadingHTTPServer) -> None:
    scripted.answer = (404 if b"service" in body else 200), body  # type: ignore[attr-defined]
    with Features(f"127.0.0.1:{scripted.server_port}") as features, pytest.raises(ServerError):
        features.item("a")


def test_errors_are_also_the_standard_ones() -> None:
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(ServerUnavailable, ConnectionError)
    assert issubclass(DeadlineExceeded, TimeoutError)
