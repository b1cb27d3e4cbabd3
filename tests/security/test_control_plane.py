"""Triton's control plane: who reaches its ports may ask for recommendations, and may not run code or stop it."""

import base64
import json
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import control
from serving.model_config import MODEL
from serving.model_repository import export
from serving.probe import ask
from serving.release import release
from serving.server import TritonServer
from tessera.errors import ServiceError

pytestmark = pytest.mark.integration

WRONG = {control.HEADER: "0" * 43}
KEYS = {"no key": {}, "a wrong key": WRONG, "an empty key": {control.HEADER: ""}}


@pytest.fixture(scope="module")
def triton(policy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real server with a policy that nobody trained."""
    repository = tmp_path_factory.mktemp("control") / "models"
    export(policy_bundle, repository, threads=1, workers=1)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


def hostile(mark: Path) -> dict[str, Any]:
    """A load that brings its own model, whose code leaves a mark."""
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\nclass TritonPythonModel: ...\n"
    config = {"backend": "python", "max_batch_size": 0}
    return {"config": json.dumps(config), "file:1/model.py": base64.b64encode(code.encode()).decode()}


@dataclass(frozen=True)
class Http:
    """The control calls over HTTP; each returns whether the server obeyed."""

    server: TritonServer
    headers: dict[str, str]

    def call(self, place: str, body: dict[str, Any] | None = None, method: str = "POST") -> bool:
        url = f"{self.server.http_url}/v2/{place}"
        return httpx.request(method, url, json=body, headers=self.headers, timeout=60, verify=False).is_success

    def load(self, model: str, mark: Path) -> bool:
        return self.call(f"repository/models/{model}/load", {"parameters": hostile(mark)})

    def unload(self, model: str) -> bool:
        return self.call(f"repository/models/{model}/unload", {})

    def calls(self, region: str) -> dict[str, Callable[[], bool]]:
        cuda = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 64}
        return {
            "index": lambda: self.call("repository/index", {}),
            "system memory": lambda: self.call("systemsharedmemory/status", method="GET"),
            "register system memory": lambda: self.call(
                "systemsharedmemory/region/stolen/register", {"key": region, "offset": 0, "byte_size": 64}
            ),
            "unregister system memory": lambda: self.call("systemsharedmemory/region/stolen/unregister"),
            "unregister all system memory": lambda: self.call("systemsharedmemory/unregister"),
            "cuda memory": lambda: self.call("cudasharedmemory/status", method="GET"),
            "register cuda memory": lambda: self.call("cudasharedmemory/region/gpu/register", cuda),
            "unregister cuda memory": lambda: self.call("cudasharedmemory/unregister"),
            "trace settings": lambda: self.call("trace/setting", method="GET"),
            "trace": lambda: self.call("trace/setting", {"trace_rate": "1000"}),
            "trace of a model": lambda: self.call(f"models/{MODEL}/trace/setting", {"trace_rate": "1000"}),
            "log settings": lambda: self.call("logging", method="GET"),
            "log": lambda: self.call("logging", {"log_verbose_level": 0}),
            "configuration": lambda: self.call(f"models/{MODEL}/config", method="GET"),
            "statistics": lambda: self.call(f"models/{MODEL}/stats", method="GET"),
            "statistics of all": lambda: self.call("models/stats", method="GET"),
        }


@dataclass(frozen=True)
class Grpc:
    """The same over gRPC, whose metadata need a prefix."""

    server: TritonServer
    headers: dict[str, str]

    def call(self, ask: Callable[[Any, dict[str, str]], object]) -> bool:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        metadata = {f"{control.GRPC_PREFIX}{name}": value for name, value in self.headers.items()}
        with InferenceServerClient(self.server.grpc_url) as client:
            try:
                ask(client, metadata)
            except InferenceServerException:
                return False
        return True

    def load(self, model: str, mark: Path) -> bool:
        given = hostile(mark)
        config = given.pop("config")
        files = {name: base64.b64decode(value) for name, value in given.items()}
        return self.call(lambda client, h: client.load_model(model, h, config=config, files=files))

    def unload(self, model: str) -> bool:
        return self.call(lambda client, h: client.unload_model(model, h))

    def calls(self, region: str) -> dict[str, Callable[[], bool]]:
        handle = base64.b64encode(bytes(64))
        asked: dict[str, Callable[[Any, dict[str, str]], object]] = {
            "index": lambda c, h: c.get_model_repository_index(h),
            "system memory": lambda c, h: c.get_system_shared_memory_status(headers=h),
            "register system memory": lambda c, h: c.register_system_shared_memory("stolen", region, 64, 0, h),
            "unregister system memory": lambda c, h: c.unregister_system_shared_memory("stolen", h),
            "unregister all system memory": lambda c, h: c.unregister_system_shared_memory(headers=h),
            "cuda memory": lambda c, h: c.get_cuda_shared_memory_status(headers=h),
            "register cuda memory": lambda c, h: c.register_cuda_shared_memory("gpu", handle, 0, 64, h),
            "unregister cuda memory": lambda c, h: c.unregister_cuda_shared_memory(headers=h),
            "trace settings": lambda c, h: c.get_trace_settings(headers=h),
            "trace": lambda c, h: c.update_trace_settings(settings={"trace_rate": "1000"}, headers=h),
            "trace of a model": lambda c, h: c.update_trace_settings(MODEL, {"trace_rate": "1000"}, h),
            "log settings": lambda c, h: c.get_log_settings(headers=h),
            "log": lambda c, h: c.update_log_settings({"log_verbose_level": 0}, h),
            "configuration": lambda c, h: c.get_model_config(MODEL, headers=h),
            "statistics": lambda c, h: c.get_inference_statistics(MODEL, headers=h),
            "statistics of all": lambda c, h: c.get_inference_statistics(headers=h),
        }
        return {name: lambda one=one: self.call(one) for name, one in asked.items()}  # type: ignore[misc]


@pytest.fixture
def region() -> Iterator[str]:
    """Memory of another process of the machine."""
    memory = SharedMemory(create=True, size=64)
    yield memory.name
    memory.close()
    memory.unlink()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("protocol", [Http, Grpc])
def test_who_has_not_the_key_runs_no_code_stops_nothing_and_asks_as_before(
    triton: TritonServer, region: str, tmp_path: Path, protocol: type[Http | Grpc], key: str
) -> None:
    served = ask(triton.http_url)
    stranger = protocol(triton, KEYS[key])
    assert [name for name, call in stranger.calls(region).items() if call()] == []
    for model in (MODEL, "another"):
        assert not stranger.load(model, tmp_path / "mark")
        assert not stranger.unload(model)
    assert not (tmp_path / "mark").exists()
    assert ask(triton.http_url) == served


@pytest.mark.parametrize("protocol", [Http, Grpc])
def test_who_has_the_key_controls_everything(
    triton: TritonServer, region: str, tmp_path: Path, protocol: type[Http | Grpc]
) -> None:
    """The calls above are refused for the key alone: with it each works, and runs the sender's code too."""
    owner = protocol(triton, {control.HEADER: control.key_of(triton.repository)})
    refused = {name for name, call in owner.calls(region).items() if not call()}
    assert refused == {"register cuda memory"}  # which is not the GPU's
    owner.load("another", tmp_path / "mark")
    assert (tmp_path / "mark").read_text() == "ran"
    assert owner.unload("another")


def test_the_key_is_of_its_owner_and_of_one_start(
    triton: TritonServer, policy_bundle: Path, tmp_path: Path, make_policy: Callable[..., Path]
) -> None:
    file = triton.repository.parent / control.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = control.key_of(triton.repository)
    assert len(key) >= 43
    state = (triton.repository.parent / "server.json").read_text()
    assert key not in state + triton.log.read_text()
    file.write_text(WRONG[control.HEADER])
    other = make_policy(tmp_path / "other", seed=1)
    try:
        with pytest.raises(
            ServiceError, match=r"withdrawn, the one before keeps serving: .* the key to its control plane"
        ):
            release(other, triton.repository, threads=1, workers=1)
        file.unlink()
        with pytest.raises(ServiceError, match=rf"cannot be controlled: .* set {control.VARIABLE}"):
            release(other, triton.repository, threads=1, workers=1)
    finally:
        renewed = control.renew(triton.repository)
        file.write_text(key)
    assert renewed != key
    assert release(policy_bundle, triton.repository, threads=1, workers=1).name == "1"


def test_a_page_of_another_origin_runs_no_code(
    triton: TritonServer, tmp_path: Path, page_elsewhere: str, browser: Any
) -> None:
    """A browser sends a page's text/plain anywhere without asking first, and only keeps the answer from the page."""
    sent = json.dumps({"parameters": hostile(tmp_path / "mark")})
    url = f"{triton.http_url}/v2/repository/models/another/load"
    fetch = "([url, body]) => fetch(url, {method: 'POST', mode: 'no-cors', body}).then(reply => reply.type)"
    visit = browser.visit(page_elsewhere, lambda page: page.evaluate(fetch, [url, sent]), [triton.http_url])
    assert visit.found == "opaque"  # it was sent, and answered
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def page_elsewhere() -> Iterator[str]:
    """An empty page of another origin."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
