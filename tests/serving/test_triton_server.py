"""A real Triton server: requests, batching, hot swaps under traffic, and what it does when something is wrong."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.model_repository import export, newest
from serving.probe import ask
from serving.release import release
from serving.server import TritonServer, running
from tessera.bundle import load_manifest
from tessera.decoding.recommender import Recommender as Engine
from tessera.errors import ServiceError
from tessera_rec_client import (
    AsyncRecommender,
    InvalidRequest,
    NotFound,
    Recommendations,
    Recommender,
    ServerUnavailable,
)

pytestmark = pytest.mark.integration
HISTORIES = [["100"], ["103", "117", "104"], ["tasse-é", "101"], ["150", "unknown", "two words", "149", "101", "102"]]
PROTOCOLS = ("grpc", "http")


@pytest.fixture(scope="module", params=PROTOCOLS)
def client(request: pytest.FixtureRequest, triton: TritonServer) -> Any:
    with connect(triton, request.param) as client:
        yield client


def connect(triton: TritonServer, protocol: Any) -> Recommender:
    return Recommender(triton.grpc_url if protocol == "grpc" else triton.http_url, protocol, timeout=30)


def assert_is(answer: Recommendations, engine: Engine, history: list[str], k: int, **lists: Any) -> None:
    """The server's answer is what its policy says in this process."""
    (expected,) = engine.recommend([history], k, **lists)
    assert [(one.item_id, one.sid) for one in answer.items] == [(one.item_id, one.sid) for one in expected]
    assert [one.score for one in answer.items] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert (answer.policy_version, answer.tokenizer_version) == (engine.policy_version, engine.tokenizer_version)


@pytest.fixture(scope="module")
def engine(engines: dict[str, Engine], policies: tuple[Path, Path]) -> Engine:
    return engines[load_manifest(policies[0], "policy").version]


def test_answers_are_the_policys(client: Recommender, engine: Engine) -> None:
    for history in HISTORIES:
        assert_is(client.recommend(history, k=7), engine, history, 7)
    history = HISTORIES[1]
    answer = client.recommend(history, k=5, exclude=["100", "unknown"], allow=["100", "103", "105", "tasse-é"])
    assert_is(answer, engine, history, 5, exclude=[["100"]], allow=[["105", "tasse-é"]])
    again = client.recommend(["100"], k=60, include_history=True)
    assert_is(again, engine, ["100"], 60, exclude_history=False)
    assert len(again.items) == 60
    varied = client.recommend(history, k=7, diversity=0.75)
    assert_is(varied, engine, history, 7, diversity=0.75)
    assert varied.items != client.recommend(history, k=7).items
    assert client.recommend(["100"], allow=["100"]).items == ()  # nothing is left: an empty answer, not an error


def test_a_user_is_looked_up_in_the_feature_store(client: Recommender, engine: Engine) -> None:
    assert_is(client.recommend(user="ann", k=4), engine, ["103", "117", "104"], 4)
    assert_is(client.recommend(user="bob", k=4), engine, ["tasse-é", "101", "150", "100"], 4)
    with pytest.raises(NotFound, match="no history of user 'eve'"):
        client.recommend(user="eve")


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        (["x", "y"], 10, "none of the history's 2 items is in the catalogue"),
        (["100"], 61, "k is 61; ask for 1 to 60 items"),
    ],
)
def test_the_server_says_what_is_wrong(client: Recommender, history: list[str], k: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        client.recommend(history, k=k)


def test_integer_ids_of_the_protocol_itself(triton: TritonServer, engine: Engine) -> None:
    """Any Triton client may ask, without this project's: here plain JSON with INT64 ids, two rows in one request."""
    rows = {"name": "history_ids", "shape": [2, 2], "datatype": "INT64", "data": [103, 117, 150, 149]}
    k = {"name": "k", "shape": [2, 1], "datatype": "INT32", "data": [3, 3]}
    answer = httpx.post(f"{triton.http_url}/v2/models/tessera/infer", json={"inputs": [rows, k]}, timeout=30).json()
    (items,) = [one for one in answer["outputs"] if one["name"] == "item_ids"]
    assert items["shape"] == [2, 3]
    expected = engine.recommend([["103", "117"], ["150", "149"]], 3)
    assert items["data"] == [one.item_id for row in expected for one in row]


def test_requests_of_different_shapes_share_a_decode_and_a_bad_one_fails_alone(
    triton: TritonServer, engine: Engine
) -> None:
    def counts() -> list[float]:
        """Requests and decodes so far, of the release that counts (others may be about to end)."""
        names = ("tessera_requests_total", "tessera_decodes_total")
        lines = httpx.get(triton.metrics_url, timeout=30).text.splitlines()
        return [sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")) for name in names]

    async def ask_all() -> list[Any]:
        async with AsyncRecommender(triton.grpc_url, timeout=60) as client:
            requests = [
                client.recommend(["unknown"], k=3) if i % 5 == 4
                else client.recommend(HISTORIES[i % 4], k=i % 7 + 1) if i % 2
                else client.recommend(HISTORIES[i % 4], allow=["105", "106"])
                for i in range(90)
            ]  # fmt: skip
            return await asyncio.gather(*requests, return_exceptions=True)

    time.sleep(1.5)  # counters are published every second
    before = counts()
    answers = asyncio.run(ask_all())
    for i, answer in enumerate(answers):
        if i % 5 == 4:
            assert isinstance(answer, InvalidRequest)
            assert "none of the history's 1 items" in str(answer)
        elif i % 2:
            assert_is(answer, engine, HISTORIES[i % 4], i % 7 + 1)
        else:
            assert_is(answer, engine, HISTORIES[i % 4], 10, allow=[["105", "106"]])
    time.sleep(1.5)
    decoded, decodes = (now - then for now, then in zip(counts(), before, strict=True))
    assert decoded == 90 - 18
    assert decodes < 36  # while one batch is decoded, the next gathers


def test_a_running_server_is_known_and_not_started_twice(triton: TritonServer) -> None:
    state = running(triton.repository)
    assert state is not None
    assert (state["http"], state["grpc"]) == (triton.ports["http"], triton.ports["grpc"])
    with pytest.raises(ServiceError, match=f"runs already \\(process {state['pid']}\\)"):
        TritonServer(triton.repository, http_port=0, grpc_port=0, metrics_port=0).start()
    assert "nv_inference_request_success" in httpx.get(triton.metrics_url, timeout=10).text


def test_a_busy_port_is_named(policies: tuple[Path, Path], tmp_path: Path) -> None:
    export(policies[0], tmp_path / "models")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} for Triton's grpc cannot be taken"):
            TritonServer(tmp_path / "models", http_port=0, grpc_port=port, metrics_port=0).start()
    with pytest.raises(ServiceError, match="no release to serve; promote a policy first"):
        TritonServer(tmp_path / "empty", http_port=0, grpc_port=0, metrics_port=0).start()


def test_a_server_whose_policy_is_broken_or_whose_model_died_is_not_ready(
    policies: tuple[Path, Path], tmp_path: Path, models_of: Callable[[int | None], list[int]]
) -> None:
    folder = export(policies[0], tmp_path / "models")
    sids = folder / "policy" / "sids.parquet"
    content = sids.read_bytes()
    sids.unlink()  # not written in place: it may be the registry's file under another name
    sids.write_bytes(content[:-100])
    server = TritonServer(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0)
    with pytest.raises(ServiceError, match=r"ended with status 1 while starting: .*sids.parquet does not match"):
        server.start()
    assert running(tmp_path / "models") is None
    sids.write_bytes(content)
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        with ThreadPoolExecutor(1) as pool:
            meanwhile = pool.submit(release_once_it_starts, policies[1], tmp_path / "models")
            server.start()
        meanwhile.result()
        assert ask(server.http_url) == newest(server.repository).answer
        assert newest(server.repository).policy_version == load_manifest(policies[1], "policy").version
        assert probed(server) == (0, f"policy {newest(server.repository).policy_version}, index ")
        state = running(tmp_path / "models")
        assert state is not None
        processes = models_of(server.pid)  # that of the release before may still be ending
        assert processes
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert httpx.get(f"{server.http_url}/v2/models/tessera/ready", timeout=10).is_success  # what Triton believes
        with pytest.raises(ServiceError):
            ask(server.http_url, timeout_s=3)
        assert probed(server)[0] == 1
        shared = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(state["id"])]
        assert shared
    assert not Path(f"/proc/{state['pid']}").exists()
    assert running(tmp_path / "models") is None
    assert not any(path.exists() for path in shared)
    assert probed(server)[0] == 1
    with Recommender(server.grpc_url) as client, pytest.raises(ServerUnavailable, match="no server answers at"):
        client.recommend(["100"])


def probed(server: TritonServer) -> tuple[int, str]:
    """Exit status of the check as a command, and what it said but for the index."""
    command = [sys.executable, "-m", "serving.probe", server.http_url, "--timeout=5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = done.stderr if done.returncode else done.stdout
    assert len(said.splitlines()) == 1, said
    return done.returncode, said.split("index ")[0] + ("index " if "index " in said else "")


def release_once_it_starts(policy: Path, repository: Path) -> None:
    """A promotion while the server starts: whichever of the two comes first, the newest policy must serve."""
    while not (repository.parent / "server.json").exists():
        time.sleep(0.01)
    release(policy, repository)
