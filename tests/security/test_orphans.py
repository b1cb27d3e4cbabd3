"""A command that is killed, hung up or terminated leaves no process behind, and a taken port has a name."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from feature_repo.server import FeatureServer
from serving.server import TritonServer
from tessera import processes
from tessera.errors import ServiceError

TESSERA = Path(sys.executable).with_name("tessera")
PATIENCE_S = 240.0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def wait_until(reached: Callable[[], bool], log: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, log.read_text() if log else ""
        time.sleep(0.05)


def below(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def running(found: list[psutil.Process]) -> list[str]:
    """Those that run, as text: a zombie of a container without an init has ended."""
    told = []
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                told.append(f"{one.pid} {one.name()} {' '.join(one.cmdline())[:80]}")
    return told


def assert_gone(found: list[psutil.Process]) -> None:
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not running(found))
    assert running(found) == []


@pytest.mark.integration
def test_a_killed_serve_leaves_no_server_no_model_and_no_worker(made_home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ("http", "grpc", "metrics", "features")
    flags = [f"--platform.{name}-port={port}" for name, port in zip(names, free_ports(4), strict=True)]
    with log.open("wb") as output:
        serve = subprocess.Popen([str(TESSERA), "serve", f"--home={made_home}", *flags], stdout=output, stderr=output)
    found: list[psutil.Process] = []
    try:
        wait_until(lambda: serve.poll() is not None or "stop with Ctrl-C" in log.read_text(), log)
        found = below(serve)
        assert {"tritonserver", "triton_python_b"} <= {one.name()[:15] for one in found}, log.read_text()
        assert any("feature_repo" in " ".join(one.cmdline()) for one in found)
        serve.kill()
        serve.wait()
        assert_gone(found)
    finally:
        serve.kill()
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.integration
def test_a_run_that_is_killed_or_hung_up_ends_its_step(tmp_path: Path) -> None:
    signals = {signal.SIGKILL: -9, signal.SIGHUP: 129, signal.SIGTERM: 143}
    runs, found = {}, []
    for number in signals:
        folder = tmp_path / number.name
        command = [str(TESSERA), "run", "tokenization", f"--out={folder}", f"--platform.home={folder / 'home'}"]
        runs[number] = subprocess.Popen(
            [*command, "--shop.items=2000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        for number, run in runs.items():
            # The step draws the shop's photos: it is in the midst of its work.
            wait_until(lambda of=tmp_path / number.name: any(of.glob("artifacts/**/images/*")))  # type: ignore[misc]
            found += below(run)
        assert any("executor_main" in " ".join(one.cmdline()) for one in found)
        for number, run in runs.items():
            run.send_signal(number)
        assert {number: run.wait(PATIENCE_S) for number, run in runs.items()} == signals
        assert_gone(found)
    finally:
        for one in [*runs.values(), *found]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def test_signals_end_a_command_in_order_and_under_nohup_a_hang_up_is_ignored() -> None:
    code = """
import os, signal, subprocess, sys
from tessera.processes import ending_in_order
with ending_in_order():
    child = subprocess.Popen(["sleep", "100"])
    try:
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGHUP)
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # one more does not disturb the way out
        print("closed", child.wait(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[1:]) == (129, ["closed", "-15"]), done.stderr
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + code.replace("pause()", "alarm(0)")
    done = subprocess.run([sys.executable, "-c", ignored], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr  # the SIGTERM


def test_a_child_whose_parent_is_gone_before_it_starts_does_not_start(tmp_path: Path) -> None:
    launcher = [sys.executable, "-I", "-S", processes.__file__, "1", "/usr/bin/touch", str(tmp_path / "ran")]
    if os.getpid() == 1:
        pytest.skip("the parent of this test's processes is process 1")
    subprocess.run(launcher, check=False)
    assert not (tmp_path / "ran").exists()


def test_a_taken_port_names_who_holds_it(made_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rf"process {os.getpid()} \(.+\) holds it; stop it or choose another"
        with pytest.raises(ServiceError, match=said):
            TritonServer(made_home / "triton" / "models", http_port=port, grpc_port=0, metrics_port=0).start()
        with pytest.raises(ServiceError, match=said):
            FeatureServer(made_home, port=port).start()
