"""A real Triton server: requests, batching, hot swaps under traffic, and what it does when something is wrong."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.model_repository import export, releases
from serving.probe import answering_policy
from serving.release import release
from serving.server import TritonServer, running
from tessera import bundle
from tessera.bundle import load_manifest
from tessera.decoding.recommender import Recommender as Engine
from tessera.errors import ServiceError
from tessera_client import AsyncRecommender, InvalidRequest, NotFound, Recommendations, Recommender, ServerUnavailable

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
    def counts() -> tuple[int, int]:
        (stats,) = httpx.get(f"{triton.http_url}/v2/models/tessera/stats", timeout=30).json()["model_stats"]
        return stats["inference_count"], stats["execution_count"]

    async def ask_all() -> list[Any]:
        async with AsyncRecommender(triton.grpc_url, timeout=60) as client:
            requests = [
                client.recommend(["unknown"], k=3) if i % 5 == 4
                else client.recommend(HISTORIES[i % 4], k=i % 7 + 1) if i % 2
                else client.recommend(HISTORIES[i % 4], allow=["105", "106"])
                for i in range(90)
            ]  # fmt: skip
            return await asyncio.gather(*requests, return_exceptions=True)

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
    answered, decodes = (now - then for now, then in zip(counts(), before, strict=True))
    assert answered == 90
    assert decodes < 45  # while one batch is decoded, the next gathers


def test_policies_swap_under_traffic_without_a_failed_or_mixed_answer(
    triton: TritonServer, policies: tuple[Path, Path], engines: dict[str, Engine]
) -> None:
    expected = {
        version: [[one.item_id for one in engine.recommend([history], 5)[0]] for history in HISTORIES]
        for version, engine in engines.items()
    }
    versions = [load_manifest(folder, "policy").version for folder in policies]
    assert expected[versions[0]] != expected[versions[1]]
    seen: list[str] = []
    wrong: list[object] = []
    done = threading.Event()

    def keep_asking(protocol: str) -> None:
        with connect(triton, protocol) as client:
            for i in itertools.cycle(range(len(HISTORIES))):
                if done.is_set():
                    return
                try:
                    answer = client.recommend(HISTORIES[i], k=5)
                    seen.append(answer.policy_version)
                    if [one.item_id for one in answer.items] != expected[answer.policy_version][i]:
                        wrong.append(answer)
                except Exception as error:
                    wrong.append(error)
                time.sleep(0.01)

    threads = [threading.Thread(target=keep_asking, args=(protocol,)) for protocol in PROTOCOLS * 2]
    for thread in threads:
        thread.start()
    try:
        for policy in (policies[1], policies[0]):  # promote, roll back
            release(policy, triton.repository, threads=1)
            answered_before = len(seen)
            deadline = time.monotonic() + 30
            while len(seen) < answered_before + 20 and time.monotonic() < deadline:
                time.sleep(0.05)
            version = load_manifest(policy, "policy").version
            assert answering_policy(triton.http_url, triton.repository) == version
            assert seen[-1] == version
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert {version for version, _ in itertools.groupby(seen[:20])} == {versions[0]}
    assert set(seen) == set(versions)


def test_a_policy_that_does_not_load_is_withdrawn_and_the_old_one_keeps_serving(
    triton: TritonServer, engine: Engine, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        (folder / "sids.parquet").write_text("whole by its manifest, but no policy")

    bundle.save(tmp_path / "bad", "policy", write, config={}, metrics={}, parent="tok-1")
    before = releases(triton.repository)
    with pytest.raises(ServiceError, match=r"withdrawn, the one before keeps serving: .*not a readable parquet"):
        release(tmp_path / "bad", triton.repository)
    assert releases(triton.repository) == before
    with connect(triton, "grpc") as client:
        assert client.recommend(HISTORIES[0], k=3).policy_version == engine.policy_version


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
    policies: tuple[Path, Path], tmp_path: Path
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
        newest_policy = load_manifest(policies[1], "policy").version
        assert answering_policy(server.http_url, server.repository) == newest_policy
        state = running(tmp_path / "models")
        assert state is not None
        processes = children(state["pid"])  # that of the release before may still be ending
        assert processes
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert httpx.get(f"{server.http_url}/v2/models/tessera/ready", timeout=10).is_success  # what Triton believes
        with pytest.raises(ServiceError):
            answering_policy(server.http_url, server.repository, timeout_s=3)
    assert not Path(f"/proc/{state['pid']}").exists()
    assert running(tmp_path / "models") is None
    with Recommender(server.grpc_url) as client, pytest.raises(ServerUnavailable, match="no server answers at"):
        client.recommend(["100"])


def release_once_it_starts(policy: Path, repository: Path) -> None:
    """A promotion while the server starts: whichever of the two comes first, the newest policy must serve."""
    while not (repository.parent / "server.json").exists():
        time.sleep(0.01)
    release(policy, repository)


def children(pid: int) -> list[int]:
    """The model processes of a server."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition(") ")
        except OSError:
            continue
        if int(rest.split()[1]) == pid and "triton_python" in name:
            found.append(int(status.parent.name))
    return found
