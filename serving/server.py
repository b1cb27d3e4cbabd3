"""The embedded Triton server over a model repository: start, real-request readiness, restart, clean stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

from serving import control, triton_env
from serving.model_config import MODEL
from serving.model_repository import newest
from serving.probe import PROBE_S, ask, load
from serving.processes import children
from serving.user_history import FEATURE_SERVER
from tessera import processes
from tessera.errors import InputError, ServiceError
from tessera.files import read_json, write_json

STATE = "server.json"
STARTUP_S, STOP_S = 180.0, 5
DEAD_S = 10.0
"""A starting server that has no process for its model for so long gets none any more: Triton waits for a killed one."""
MODEL_PROCESS = "triton_python_b"
"""What the system calls the stub that runs a release."""
STACK_KB = 1 << 20
"""Stack of the server's threads: it reads JSON by recursion, so that deep nesting would end it with the usual 8 MB."""


class TritonServer:
    """An embedded tritonserver; a context manager that is ready inside the block and gone after it.

    Args:
        repository: model repository with at least one release (see `serving.model_repository.export`). `server.log`,
            `server.json`, the running server's state, and `control.key` (see `serving.control`) are written beside it.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        feature_server: URL of Feast's feature server beside it, instead of the one that each release was exported with.
    """

    def __init__(
        self,
        repository: str | Path,
        host: str = "127.0.0.1",
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        feature_server: str | None = None,
        startup_s: float = STARTUP_S,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.log = self.repository.parent / "server.log"
        self.host, self.feature_server, self.startup_s = host, feature_server, startup_s
        http, grpc, metrics = _ports(host, [http_port, grpc_port, metrics_port])
        self.ports = {"http": http, "grpc": grpc, "metrics": metrics}
        self._id = f"tessera-{uuid.uuid4().hex}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start: int | None = None

    @property
    def http_url(self) -> str:
        """Base URL over HTTP."""
        return f"http://{_reachable(self.host)}:{self.ports['http']}"

    @property
    def grpc_url(self) -> str:
        """host:port over gRPC."""
        return f"{_reachable(self.host)}:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics."""
        return f"http://{_reachable(self.host)}:{self.ports['metrics']}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> "TritonServer":
        """Start the server and return when it has answered a real request with the newest release.

        Raises:
            ServiceError: nothing to serve, a port is busy, a server runs already, it died, or was not ready in time.
        """
        newest(self.repository)
        if other := running(self.repository):
            raise ServiceError(f"a server of {self.repository} runs already (process {other['pid']}); stop it first.")
        _refuse_busy(self.host, self.ports)
        environment, key = triton_env.ensure(), control.renew(self.repository)
        # A restart keeps what its predecessor said.
        with self.log.open("wb" if self._log_start is None else "ab") as log:
            self._log_start = log.tell()
            self._process = processes.start(
                self._command(environment, key), env=self._variables(environment), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            # Written before the wait: a release made meanwhile either finds this server or is found by it.
            state = {"pid": self._process.pid, "id": self._id, "host": self.host, **self.ports}
            write_json(self.repository.parent / STATE, state)
            self._wait_until_ready(key)
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self) -> int:
        """Block until the server ends; its exit status."""
        assert self._process is not None, "start() comes first"
        return self._process.wait()

    def poll(self) -> int | None:
        """The server's exit status, None while it runs."""
        assert self._process is not None, "start() comes first"
        return self._process.poll()

    def check(self) -> None:
        """Ask a real question.

        Raises:
            ServiceError: the server or its model process died, or hangs.
        """
        if (status := self.poll()) is not None:
            raise ServiceError(f"the Triton server ended with status {status}; its log is {self.log}.")
        # Killed under load, it leaves Triton waiting for it: a question would only time out.
        if not self._has_model_process():
            raise ServiceError(f"the policy's process is gone; Triton's log is {self.log}.")
        ask(self.http_url, PROBE_S)

    def restart(self) -> None:
        """Kill what is left of the server and start it again, on the same ports.

        Raises:
            ServiceError: as `start`.
        """
        self.stop(patience_s=0)
        self.start()

    def stop(self, patience_s: float = STOP_S + 5) -> None:
        """End the server and its child processes; safe to repeat."""
        process, self._process = self._process, None
        if process is None:
            return
        if patience_s and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError):  # model processes that outlived it are in its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for left in Path("/dev/shm").glob(f"{self._id}*"):  # a killed server leaves the memory it shared with its model
            left.unlink(missing_ok=True)
        with contextlib.suppress(InputError, OSError):
            state = self.repository.parent / STATE
            if read_json(state).get("id") == self._id:
                state.unlink()
                control.forget(self.repository)

    def __enter__(self) -> "TritonServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _variables(self, environment: triton_env.TritonEnvironment) -> dict[str, str]:
        own = {} if self.feature_server is None else {FEATURE_SERVER: self.feature_server}
        return environment.variables() | own

    def _command(self, environment: triton_env.TritonEnvironment, key: str) -> list[str]:
        triton, ports = environment.triton, self.ports
        # A shell only to set the limit, where the system allows it; it becomes the server.
        shell = ["/bin/sh", "-c", f'ulimit -S -s {STACK_KB} 2>/dev/null; exec "$0" "$@"']
        return [
            *shell, str(environment.server), f"--id={self._id}", f"--model-repository={self.repository}",
            "--model-control-mode=explicit", f"--load-model={MODEL}",
            f"--backend-directory={triton / 'backends'}", f"--backend-config=python,shm-region-prefix-name={self._id}",
            f"--cache-directory={triton / 'caches'}",
            "--disable-auto-complete-config", f"--exit-timeout-secs={STOP_S}",
            "--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0",
            f"--http-address={self.host}", f"--grpc-address={self.host}", f"--metrics-address={self.host}",
            f"--http-port={ports['http']}", f"--grpc-port={ports['grpc']}", f"--metrics-port={ports['metrics']}",
            *control.flags(key),
        ]  # fmt: skip

    def _wait_until_ready(self, key: str) -> None:
        """Ready is an answer of the newest policy from the process started here: Triton's own word is not enough."""
        assert self._process is not None
        alive = time.monotonic()
        deadline, problem = alive + self.startup_s, "no answer"
        while (now := time.monotonic()) < deadline:
            if (status := self._process.poll()) is not None:
                raise ServiceError(f"the Triton server ended with status {status} while starting: {self._log_tail()}")
            if self._has_model_process():
                alive = now
            elif now - alive > DEAD_S:
                raise ServiceError(f"the policy's process died while the Triton server started: {self._log_tail()}")
            try:
                if server_id(self.http_url) == self._id:
                    answered, wanted = ask(self.http_url, DEAD_S), newest(self.repository)
                    if answered == wanted.answer:
                        return
                    problem = f"it answers with {answered} instead of {wanted.answer}"
                    load(self.http_url, key)  # the release came while the server started
            except ServiceError as error:
                problem = str(error)
            time.sleep(0.1)
        waited = f"{self.startup_s:.0f} s"
        raise ServiceError(f"the Triton server was not ready after {waited} ({problem}): {self._log_tail()}")

    def _has_model_process(self) -> bool:
        return any(one.name.startswith(MODEL_PROCESS) for one in children(self.pid or 0))

    def _log_tail(self) -> str:
        text = self.log.read_bytes()[self._log_start :] if self.log.exists() else b""
        lines = text.decode("utf-8", errors="replace").splitlines()
        failures = [line for line in lines if line.startswith("E") or "rror:" in line]
        said = (failures or lines or ["it said nothing"])[-1].split(r"\n\nAt:")[0].strip()
        return f"{said[-500:]} (log: {self.log})"


def running(repository: str | Path) -> dict[str, Any] | None:
    """State of the embedded server that serves this repository now ({pid, id, host, http, grpc, metrics}), or None."""
    try:
        state = read_json(Path(repository).parent / STATE)
        found = server_id(f"http://{_reachable(state['host'])}:{state['http']}") == state["id"]
        return dict(state) if found else None
    except (InputError, ServiceError, KeyError, TypeError):
        return None


def http_url_of(state: dict[str, Any]) -> str:
    """Base URL of a running server, from `running`."""
    return f"http://{_reachable(state['host'])}:{state['http']}"


def server_id(http_url: str) -> str:
    """The id that the server at this address was started with.

    Raises:
        ServiceError: nothing answers there, or something that is no Triton.
    """
    try:
        return str(httpx.get(f"{http_url}/v2", timeout=2.0, trust_env=False).raise_for_status().json()["name"])
    except httpx.HTTPError as error:
        raise ServiceError(f"no Triton server answers at {http_url} ({type(error).__name__}); start it.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ServiceError(f"what answers at {http_url} is no Triton server; check the port.") from None


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("", "0.0.0.0") else host


def _ports(host: str, wanted: list[int]) -> list[int]:
    """The wanted ports, each 0 replaced by one that is free now; all are held open until the last is found."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            if not port:
                free = stack.enter_context(socket.socket())
                free.bind((host, 0))
                port = free.getsockname()[1]
            ports.append(port)
        return ports


def _refuse_busy(host: str, ports: dict[str, int]) -> None:
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to a server
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServiceError(
                    f"port {port} for Triton's {name} cannot be taken on {host} ({error.strerror}): "
                    f"{processes.listener(port)}; stop it or choose another port."
                ) from None
