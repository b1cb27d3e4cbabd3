"""A client's token reaches the gateway, and nobody who listens on the way."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest

from tessera_rec_client import AsyncRecommender, InvalidRequest, Recommender


class Gateway:
    """A gateway of both protocols that turns everybody away, and notes how each said who it is."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                gateway.heard.append(self.headers.get("authorization"))
                self.rfile.read(int(self.headers["content-length"]))
                body = json.dumps({"error": "Jwt is expired"}).encode()
                self.send_response(401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Refusing(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
                gateway.heard.append(dict(details.invocation_metadata).get("authorization"))

                def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "Jwt is expired")
                    return b""

                return grpc.unary_unary_rpc_method_handler(refuse)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.grpc = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Refusing()])
        self.ports = {"http": self.http.server_port, "grpc": self.grpc.add_insecure_port("127.0.0.1:0")}
        self.grpc.start()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    one = Gateway()
    yield one
    one.http.shutdown()
    one.http.server_close()
    one.grpc.stop(None)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_token_is_sent_and_its_refusal_is_no_failure_of_the_server(gateway: Gateway, protocol: Any) -> None:
    """A function is asked for the token of now at each request; a refused one is the caller's to mend."""
    gateway.heard.clear()
    tokens, url = iter(["first", "second", "third", "fourth"]), f"127.0.0.1:{gateway.ports[protocol]}"
    with Recommender(url, protocol, token=lambda: next(tokens)) as client:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="Jwt is expired"):
                client.recommend(["a"])

    async def ask() -> None:
        async with AsyncRecommender(url, protocol, token="asynchronous") as asked:
            with pytest.raises(InvalidRequest, match="Jwt is expired"):
                await asked.recommend(["a"])

    asyncio.run(ask())
    assert gateway.heard == ["Bearer first", "Bearer second", "Bearer asynchronous"]


@pytest.mark.parametrize(("url", "protocol"), [("grpc://shop.example", "grpc"), ("shop.example", "http")])
def test_a_token_goes_over_encrypted_connections_alone(url: str, protocol: Any) -> None:
    with pytest.raises(InvalidRequest, match="encrypted connections alone"):
        Recommender(url, protocol, token="secret")
    Recommender(f"{protocol}s://shop.example", protocol, token="secret").close()
