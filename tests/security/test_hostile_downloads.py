"""Photo URLs as an attacker writes them: into the machine's own networks, without end, or until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tessera.catalog import download, public_network
from tessera.catalog.download import fetch_all
from tessera.catalog.public_network import PrivateAddressError, public_address
from tessera.event_loop import run_to_end


class Inner:
    """A server inside the network: /secret.jpg, /away redirects to it, and /slow sends a byte now and then."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        inner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                inner.asked.append(self.path)
                if self.path.startswith("/away"):
                    self.send_response(302)
                    self.send_header("Location", f"{inner.url}/secret.jpg")
                    self.end_headers()
                    return
                self.send_response(200)
                self.end_headers()
                while self.path == "/slow":
                    self.wfile.write(b"x")
                    time.sleep(0.05)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def inner() -> Iterator[Inner]:
    server = Inner()
    yield server
    server.server.shutdown()
    server.server.server_close()


PRIVATE = [
    "127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0",
    "169.254.169.254", "10.0.0.1", "[fd00::1]",
]  # fmt: skip


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "behind a proxy"])
def test_no_url_leads_into_a_private_network(
    tmp_path: Path, inner: Inner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, proxied: bool
) -> None:
    """However the address is written; where a proxy opens the connections, it is not even asked."""
    if proxied:
        monkeypatch.setenv("HTTP_PROXY", inner.url)
    port = inner.server.server_port
    urls: list[str | None] = [f"http://{host}:{port}/secret.jpg" for host in PRIVATE]
    fetched = fetch_all(urls, [f"i{n}" for n in range(len(urls))], tmp_path)
    assert fetched.counts == {"photos_on_disk": 0, "photos_failed": len(urls)}
    assert inner.asked == []
    assert "--catalogue.private-addresses allows it" in caplog.text


def test_no_redirect_leads_into_a_private_network(
    tmp_path: Path, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server counts as public here; it redirects to another address, which does not."""
    public = public_network._is_public
    monkeypatch.setattr(public_network, "_is_public", lambda address: address == "127.0.0.2" or public(address))
    with socket.create_server(("127.0.0.2", 0)) as other:
        threading.Thread(target=_redirect, args=(other, f"{inner.url}/secret.jpg"), daemon=True).start()
        fetched = fetch_all([f"http://127.0.0.2:{other.getsockname()[1]}/a.jpg"], ["a"], tmp_path)
    assert fetched.counts["photos_failed"] == 1
    assert inner.asked == []


def _redirect(listening: socket.socket, to: str) -> None:
    with suppress(OSError):
        connection, _ = listening.accept()
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of several addresses is refused if one is private; the caller gets an address and asks no name again."""
    answers = {"mixed": ["93.184.216.34", "10.0.0.1"], "public": ["93.184.216.34"]}

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(PrivateAddressError, match=r"mixed is 10\.0\.0\.1"):
        run_to_end(public_address("mixed", 80))
    assert run_to_end(public_address("public", 80)) == "93.184.216.34"


def test_a_download_without_end_has_one_deadline(
    tmp_path: Path, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DEADLINE_S", 0.5)
    assert fetch_all([f"{inner.url}/slow"], ["a"], tmp_path, private=True).counts["photos_failed"] == 1
    assert inner.asked == ["/slow"]  # no second try after the deadline


FETCH = """
import sys
from pathlib import Path
from tessera.catalog.download import fetch_all
fetch_all([sys.argv[1]] * 40, [str(n) for n in range(40)], Path(sys.argv[2]), private=True)
"""


def test_ctrl_c_ends_a_download_at_once(tmp_path: Path, inner: Inner) -> None:
    """Not after the queue, and not after the server's silence."""
    command = [sys.executable, "-c", FETCH, f"{inner.url}/slow", str(tmp_path / "photos")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not inner.asked:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=download.TIMEOUT_S)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert len(inner.asked) <= download.CONCURRENCY
