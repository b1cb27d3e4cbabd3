"""Proxies of the environment: what is asked of this machine never reaches one, and other errors name the variable."""

import asyncio
import json
import os
import struct
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import grpc
import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from components.stage import run_stage
from pipelines import cli
from serving import tracking
from tessera.config import EnrichmentSettings
from tessera.enrichment.providers.base import Message, ModelRequest
from tessera.enrichment.providers.openai import OpenAIModel
from tessera.errors import ServiceError
from tessera.proxies import LOOPBACK, spare_loopback
from tessera_rec_client import AsyncFeatures, AsyncRecommender, Features, Recommender, ServerUnavailable, User

OUTPUTS = {"item_ids": "a", "sids": "1", "scores": 0.5, "policy_version": "p", "tokenizer_version": "t"}
SECRET = "of-the-proxy"


class Server(ThreadingHTTPServer):
    """Notes the first line of each request."""

    seen: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Refusing(BaseHTTPRequestHandler):
    """A proxy that lets nothing through."""

    def answer(self) -> None:
        self.server.seen.append(self.requestline)  # type: ignore[attr-defined]
        self.send_response(502)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_HEAD = do_CONNECT = answer

    def log_message(self, *_: Any) -> None: ...


class Answering(Refusing):
    """Triton and Feast to a client; to all others a server that knows no such place."""

    def answer(self) -> None:
        self.server.seen.append(self.requestline)  # type: ignore[attr-defined]
        if self.path == "/health":  # an MLflow that has just died: it need not be imported to ask it more
            return
        asked = self.rfile.read(int(self.headers["content-length"] or 0))
        reply: Any = {"error_code": "BAD_REQUEST", "message": "nothing here"}
        if "infer" in self.path:
            outputs = [{"name": name, "data": [value]} for name, value in OUTPUTS.items()]
            reply = {"id": json.loads(asked)["id"], "outputs": outputs}
        elif "get-online-features" in self.path:
            columns = {"user_id": json.loads(asked)["entities"]["user_id"], "user_history__item_ids": [["a"]]}
            columns |= {"user_topk__item_ids": [None]}
            results = [{"values": values} for values in columns.values()]
            reply = {"metadata": {"feature_names": list(columns)}, "results": results}
        body = json.dumps(reply).encode()
        self.send_response(400 if "message" in reply else 200)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = answer


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The same over gRPC."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        answer = service_pb2.ModelInferResponse(id=request.id)
        for name, value in OUTPUTS.items():
            answer.outputs.add(name=name, datatype="FP32" if name == "scores" else "BYTES", shape=[1, 1])
            raw = struct.pack("<I", len(value)) + value.encode() if isinstance(value, str) else struct.pack("<f", value)
            answer.raw_output_contents.append(raw)
        return answer


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def here() -> Iterator[Server]:
    """A server on this machine."""
    with serving(Answering) as server:
        yield server


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The proxy that all variables of the environment name."""
    with serving(Refusing) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://user:{SECRET}@127.0.0.1:{server.server_port}")
            monkeypatch.setenv(name.upper(), f"http://user:{SECRET}@127.0.0.1:{server.server_port}")
        monkeypatch.setattr(urllib.request, "_opener", None)  # else it keeps what it read first
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.setenv(name, "")
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_asks_this_machine_without_the_proxy(host: str, here: Server, proxy: Server) -> None:
    address, environment = f"{host}:{here.server_port}", dict(os.environ)
    grpc_server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(), grpc_server)
    grpc_address = f"{host}:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    asked = [(address, "http"), (grpc_address, "grpc")]

    async def ask() -> None:
        for url, protocol in asked:
            async with AsyncRecommender(url, protocol) as recommender:  # type: ignore[arg-type]
                assert (await recommender.recommend(["b"])).items[0].item_id == "a"
        async with AsyncFeatures(address) as features:
            assert await features.user("ann") == User("ann", ("a",), None)

    for url, protocol in asked:
        with Recommender(url, protocol) as recommender:  # type: ignore[arg-type]
            assert recommender.recommend(["b"]).items[0].item_id == "a"
    with Features(address) as features:
        assert features.user("ann") == User("ann", ("a",), None)
    asyncio.run(ask())
    grpc_server.stop(None)
    assert len(here.seen) == 4
    assert proxy.seen == []
    assert dict(os.environ) == environment  # which is its host's


def ask_in_every_way(url: str) -> None:
    """With all libraries over which this project asks anything."""
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/urllib").close()
    httpx.get(f"{url}/httpx")
    requests.get(f"{url}/requests", timeout=5)  # as MLflow does
    key = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    with pytest.raises(Exception, match="400"):
        boto3.client("s3", endpoint_url=url, **key).head_bucket(Bucket="boto3")


def test_a_step_asks_this_machine_without_the_proxy(here: Server, proxy: Server, tmp_path: Path) -> None:
    run_stage("ask", str(tmp_path / "stats.json"), ask_in_every_way, here.url)
    run_stage("ask", str(tmp_path / "stats.json"), ask_in_every_way, f"http://localhost:{here.server_port}")
    assert proxy.seen == []
    assert len(here.seen) == 8


def test_a_command_asks_this_machine_without_the_proxy(here: Server, proxy: Server, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["versions", "--home", str(tmp_path), "--mlflow-url", here.url])
    assert proxy.seen == []
    assert here.seen == ["GET /health HTTP/1.1"]


def test_errors_name_the_variable_of_the_proxy_and_not_its_password(proxy: Server) -> None:
    settings = EnrichmentSettings(base_url="http://models.invalid/v1", retries=0)
    said = []
    for url, protocol in (("triton.invalid:8000", "http"), ("triton.invalid:8001", "grpc")):
        with Recommender(url, protocol, timeout=30) as client, pytest.raises(ServerUnavailable) as error:  # type: ignore[arg-type]
            client.recommend(["a"])
        said.append(str(error.value))
    with Features("https://feast.invalid:6566") as features, pytest.raises(ServerUnavailable) as error:
        features.user("ann")
    said.append(str(error.value))
    said += map(str, OpenAIModel("m", settings).complete([ModelRequest((Message("user", "hello"),))]))
    with pytest.raises(ServiceError) as refused:
        tracking.connect("https://mlflow.invalid")
    said.append(str(refused.value))
    names = ["http_proxy", "grpc_proxy", "https_proxy", "http_proxy", "https_proxy"]
    for sentence, name in zip(said, names, strict=True):
        assert f"through the proxy of the environment variable {name}" in sentence
        assert SECRET not in sentence
    assert len(proxy.seen) >= 5


NAMES = st.lists(st.sampled_from(["corp.example", ".local", "10.0.0.0/8", "127.0.0.1", "*", ""]), max_size=4)


@given(lower=NAMES, upper=NAMES)
def test_what_is_spared_already_stays_so(lower: list[str], upper: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("no_proxy", ",".join(lower))
        patch.setenv("NO_PROXY", ",".join(upper))
        spare_loopback()
        for name, own in (("no_proxy", lower or upper), ("NO_PROXY", upper or lower)):
            spared = os.environ[name].split(",")
            assert set(filter(None, own)) <= set(spared)
            assert spared == ["*"] or set(LOOPBACK) <= set(spared)
