"""The watchdog's patience, by a clock of its own, and `tessera serve` after kill -9 of each of its processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.register.features import TABLES
from feature_repo import publish
from feature_repo.server import FeatureServer
from serving.model_repository import export
from serving.probe import ask
from serving.server import http_url_of, running
from serving.watchdog import Watchdog
from tessera.bundle import load_manifest
from tessera.errors import ServiceError

ROOT = Path(__file__).resolve().parents[2]


class Scripted:
    """A server that is up or down as the test says, and a clock that the test turns."""

    def __init__(self) -> None:
        self.now, self.up, self.starts = 0.0, True, True
        self.restarted: list[float] = []
        self.said: list[str] = []

    def check(self) -> None:
        if not self.up:
            raise ServiceError("it is down.")

    def restart(self) -> None:
        self.restarted.append(self.now)
        if not self.starts:
            raise ServiceError("the port is busy.")
        self.up = True

    def watch(self, seconds: int, watchdog: Watchdog) -> None:
        for _ in range(seconds):
            self.now += 1
            watchdog.look()


@pytest.fixture
def scripted() -> tuple[Scripted, Watchdog]:
    server = Scripted()
    return server, Watchdog("Triton", server, server.said.append, clock=lambda: server.now)


def test_one_failed_check_is_forgiven_two_are_not(scripted: tuple[Scripted, Watchdog]) -> None:
    server, watchdog = scripted
    server.watch(5, watchdog)
    for _ in range(3):
        server.up = False
        server.watch(1, watchdog)
        server.up = True
        server.watch(1, watchdog)
    assert (server.restarted, server.said) == ([], [])
    server.up = False
    server.watch(2, watchdog)
    assert server.restarted == [13]
    assert server.said == [
        "Triton failed: it is down.", "Triton: restarting …", "Triton serves again after 0.0 s.",
    ]  # fmt: skip
    assert watchdog.restarts == 1


def test_a_server_that_does_not_start_is_tried_again_with_growing_pauses(scripted: tuple[Scripted, Watchdog]) -> None:
    server, watchdog = scripted
    server.up = server.starts = False
    server.watch(130, watchdog)
    assert server.restarted == [2, 3, 5, 9, 17, 33, 63, 93, 123]
    assert server.said[2] == "Triton did not start: the port is busy. Trying again in 1 s."
    assert sum("failed: it is down" in one for one in server.said) == 1
    server.starts = True
    server.watch(30, watchdog)
    assert server.restarted[-1] == 153
    assert watchdog.restarts == 1


def test_a_server_that_keeps_dying_is_not_restarted_in_a_circle(scripted: tuple[Scripted, Watchdog]) -> None:
    server, watchdog = scripted
    for _ in range(60):
        server.up = False
        server.watch(1, watchdog)
    assert server.restarted == [2, 4, 6, 10, 18, 34]
    server.up = True
    server.watch(130, watchdog)  # a quiet while: the next failure is a new story
    server.up = False
    server.watch(2, watchdog)
    assert server.restarted[-1] == 60 + 130 + 2


@pytest.fixture(scope="module")
def serving(
    policies: tuple[Path, Path],
    features: FeatureServer,
    name_champion: Callable[[Path, Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """`tessera serve` over a home of its own, with ports that were free."""
    home = tmp_path_factory.mktemp("serve") / "home"
    tables = {name: features.home.parent / f"{name}.parquet" for name in TABLES}
    publish.run(home, **tables, policy_version=load_manifest(policies[0], "policy").version)
    export(policies[0], home / "triton" / "models", threads=1)
    name_champion(home, policies[0])
    names = ("http", "grpc", "metrics", "features")
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: holder.getsockname()[1] for name, holder in zip(names, holders, strict=True)}
    for holder in holders:
        holder.close()
    flags = [f"--platform.{name}-port={port}" for name, port in ports.items()]
    log = home.parent / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from pipelines.cli import main; main()", "serve", f"--home={home}", *flags],
            stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    try:
        wait_until(lambda: "stop with Ctrl-C" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield {"process": process, "log": log, "ports": ports, "models": home / "triton" / "models"}
    finally:
        process.terminate()
        process.wait(60)


def wait_until(condition: Callable[[], Any], seconds: float) -> float:
    """How long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def answers(serving: dict[str, Any]) -> bool:
    try:
        ask(f"http://127.0.0.1:{serving['ports']['http']}", timeout_s=5)
    except ServiceError:
        return False
    return True


@pytest.mark.integration
def test_what_is_killed_serves_again_within_15_seconds_on_its_ports(
    serving: dict[str, Any], models_of: Callable[[int | None], list[int]]
) -> None:
    assert answers(serving)
    first = running(serving["models"])
    assert first is not None
    (model,) = models_of(first["pid"])
    os.kill(model, signal.SIGKILL)
    wait_until(lambda: not answers(serving), 5)
    assert wait_until(lambda: answers(serving), 15) < 15
    wait_until(lambda: "Triton serves again" in serving["log"].read_text(), 5)
    second = running(serving["models"])
    assert second is not None
    assert not Path(f"/proc/{first['pid']}").exists()
    os.kill(second["pid"], signal.SIGKILL)
    wait_until(lambda: not answers(serving), 5)
    assert wait_until(lambda: answers(serving), 15) < 15
    third = running(serving["models"])  # a release finds the new process
    assert third is not None
    assert len({state["pid"] for state in (first, second, third)}) == 3
    assert {name: third[name] for name in ("http", "grpc", "metrics")} == {
        name: serving["ports"][name] for name in ("http", "grpc", "metrics")
    }
    assert http_url_of(third) == http_url_of(first)
    wait_until(lambda: serving["log"].read_text().count("Triton serves again") == 2, 5)
    said = serving["log"].read_text()
    assert re.search(r"\d\d:\d\d:\d\d  Triton failed: the policy's process is gone; Triton's log is", said)
    assert re.search(r"\d\d:\d\d:\d\d  Triton failed: the Triton server ended with status -9; its log is \S+", said)


@pytest.mark.integration
def test_the_feature_server_is_restarted_too_and_the_command_ends_cleanly(serving: dict[str, Any]) -> None:
    health = f"http://127.0.0.1:{serving['ports']['features']}/health"

    def healthy() -> bool:
        try:
            return httpx.get(health, timeout=5).is_success
        except httpx.HTTPError:
            return False

    assert healthy()
    for pid in children_of(serving["process"].pid):
        if "feature_repo.front" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "feature server serves again" in serving["log"].read_text(), 60)
    assert healthy()
    state = running(serving["models"])
    assert state is not None
    serving["process"].terminate()
    assert serving["process"].wait(60) == 128 + signal.SIGTERM
    assert serving["log"].read_text().rstrip().endswith("stopped.")
    assert not Path(f"/proc/{state['pid']}").exists()
    assert not healthy()
    assert running(serving["models"]) is None


def children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(") ")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found
