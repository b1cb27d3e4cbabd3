"""What probes and releases make of answers that a real server gives only in trouble: here a scripted one gives them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving import control, probe
from serving.model_repository import newest, releases
from serving.probe import Served, StillLoading, ask
from serving.release import release
from tessera.errors import ServiceError

GOOD = {"item_ids": ["a"], "policy_version": ["p1"], "index_version": ["i1"]}


@contextmanager
def scripted(answer: Callable[[], tuple[int, Any]]) -> Iterator[str]:
    """A server that answers every question with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = answer()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def outputs(columns: dict[str, Any]) -> Any:
    return lambda: (200, {"outputs": [{"name": name, "data": data} for name, data in columns.items()]})


def refusal(status: int, reason: str) -> Any:
    return lambda: (status, {"error": reason})


def test_an_answer_says_what_is_served() -> None:
    with scripted(outputs(GOOD)) as url:
        assert ask(url, 5) == Served("p1", "i1")


def test_a_refused_key_says_what_to_do() -> None:
    with scripted(refusal(403, "This API is restricted")) as url, pytest.raises(
        ServiceError, match=r"of a later start or of another user's server; try again, as the user who started"
    ):
        probe.load(url, "key")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (outputs(GOOD | {"item_ids": []}), "answered without recommendations"),
        (lambda: (200, {}), "answered without recommendations"),
        (refusal(500, "Stub process is not healthy."), "Stub process is not healthy"),
        (refusal(400, "Request for unknown model: 'tessera' is not found"), "unknown model"),
    ],
)
def test_a_server_that_does_not_recommend_fails(answer: Any, message: str) -> None:
    with scripted(answer) as url, pytest.raises(ServiceError, match=message):
        ask(url, 5)


def test_a_release_that_loads_for_too_long_stays_until_it_is_refused(
    policies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> tuple[int, Any]:
        time.sleep(2)
        return 200, {}

    answers = iter([slow, slow, refusal(400, "no policy"), *[outputs(GOOD)] * 9])
    monkeypatch.setattr(probe, "LOAD_S", 1.0)
    release(policies[0], tmp_path / "models")
    control.renew(tmp_path / "models")
    with scripted(lambda: next(answers)()) as url:
        for _ in range(2):  # the second time it is not new any more
            with pytest.raises(StillLoading, match="has been loading its newest release for 1 s and goes on"):
                release(policies[1], tmp_path / "models", url)
            assert releases(tmp_path / "models") == [1, 2]
        with pytest.raises(ServiceError, match=r"release 2 was withdrawn, the one before keeps serving.*no policy"):
            release(policies[1], tmp_path / "models", url)
    assert releases(tmp_path / "models") == [1]


def test_a_release_that_serves_stays_where_its_new_configuration_is_refused(
    policies: tuple[Path, Path], tmp_path: Path
) -> None:
    release(policies[0], tmp_path / "models")
    control.renew(tmp_path / "models")
    served = newest(tmp_path / "models").answer
    good = GOOD | {"policy_version": [served.policy_version], "index_version": [served.index_version]}
    answers = iter([refusal(400, "no thread"), outputs(good)])
    with scripted(lambda: next(answers)()) as url, pytest.raises(ServiceError, match="no thread"):
        release(policies[0], tmp_path / "models", url, threads=2)
    assert releases(tmp_path / "models") == [1]
