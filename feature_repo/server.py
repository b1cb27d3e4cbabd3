"""Feast's feature server over HTTP, as a child process with a bounded start and a clean stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from feature_repo.front import KEY
from feature_repo.store import feast_folder, settings_file
from tessera import processes
from tessera.errors import ServiceError
from tessera.files import new_key, read_key

# It is asked on this machine, whatever proxy the environment has for others.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class FeatureServer:
    """The feature server of a home (`feature_repo.front`); a context manager that starts on entry and stops on exit.

    Who may read `key_file` may write over HTTP.

    Args:
        home: the platform's home, already published to.
        host, port: where to listen.
        log: file for the server's output; default `feast/server.log` in the home.
        start_timeout_s: seconds to wait until it answers; Feast alone takes several to import.
        registry_ttl_s: seconds after which a changed definition is seen. Published values are seen at once.
    """

    def __init__(
        self,
        home: Path,
        host: str = "127.0.0.1",
        port: int = 6566,
        log: Path | None = None,
        start_timeout_s: float = 120.0,
        registry_ttl_s: int = 60,
    ) -> None:
        self.home, self.host, self.port = Path(home), host, port
        self.log = log or feast_folder(home) / "server.log"
        self.start_timeout_s, self.registry_ttl_s = start_timeout_s, registry_ttl_s
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Base address, as clients want it."""
        return f"http://{self.host}:{self.port}"

    @property
    def key_file(self) -> Path:
        """The key of those who write over HTTP, readable by the home's owner alone; it outlives a restart."""
        return feast_folder(self.home) / "server.key"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self.alive() and self._process else None

    def alive(self) -> bool:
        """Whether the process runs; a server that died is not restarted."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> "FeatureServer":
        """Start and wait until `/health` answers; the first lookup, which takes longer than others, is done then.

        Raises:
            ServiceError: nothing was published to the home, the port is taken, or the server died or was too slow.
        """
        if not (feast_folder(self.home) / "published.json").is_file():
            raise ServiceError(f"{self.home} has no published features yet; run a training pipeline or check the home.")
        self._check_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        key = read_key(self.key_file) if self.key_file.is_file() else new_key(self.key_file)
        arguments = ["--home", str(self.home.resolve()), "--host", self.host, "--port", str(self.port)]
        arguments += ["--registry-ttl", str(self.registry_ttl_s)]
        # Feast's web server keeps a control socket; a folder of its own keeps it out of the user's home directory.
        self._scratch = tempfile.TemporaryDirectory(prefix="tessera-feast-")
        environment = os.environ | {KEY: key, "PYTHONWARNINGS": "ignore", "XDG_RUNTIME_DIR": self._scratch.name}
        environment["TESSERA_FEATURE_STORE"] = str(settings_file().resolve())
        with self.log.open("wb") as output:
            self._process = processes.start(
                [sys.executable, "-m", "feature_repo.front", *arguments], stdout=output, stderr=subprocess.STDOUT,
                env=environment, cwd=feast_folder(self.home),
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask the server to finish, then make it; safe to call twice."""
        process, self._process = self._process, None
        scratch, self._scratch = self._scratch, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
            # Its worker is in the same new session, and would keep the port where the server was killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if scratch is not None:
            scratch.cleanup()

    def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether `/health` answers now."""
        try:
            with _DIRECT.open(f"{self.url}/health", timeout=timeout_s) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> "FeatureServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise ServiceError(
                    f"cannot listen on {self.host}:{self.port} ({error.strerror}): {processes.listener(self.port)}; "
                    "stop it or choose another --platform.features-port."
                ) from None

    def _wait(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if not self.alive():
                raise ServiceError(f"the feature server ended while starting; {self._last_words()}")
            if self.healthy() and self.alive():
                self._look_up_once()
                return
            time.sleep(0.1)
        raise ServiceError(
            f"the feature server did not answer within {self.start_timeout_s:g} s; {self._last_words()}"
        )

    def _look_up_once(self) -> None:
        """Ask for a user whom nobody knows, so that no caller waits for what Feast loads at its first lookup."""
        asked = {"features": ["user_history:item_ids"], "entities": {"user_id": [""]}}
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/get-online-features", json.dumps(asked).encode(), head)
        with contextlib.suppress(urllib.error.URLError, OSError):
            _DIRECT.open(request, timeout=10.0).close()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"see {self.log} ({last})."
