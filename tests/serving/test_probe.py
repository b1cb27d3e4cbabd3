"""What a probe makes of answers that a real server gives only in trouble: here a scripted one gives them."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.probe import Served, ask
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
