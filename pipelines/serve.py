"""The embedded servers of a platform: Triton with the champion, and Feast's feature server beside it."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.promote import moves
from feature_repo.server import FeatureServer
from pipelines.console import plain
from serving.server import TritonServer
from serving.watchdog import INTERVAL_S, LONGEST_PAUSE_S, Watchdog
from tessera.config import PlatformSettings
from tessera.errors import ServiceError, TesseraError


@contextmanager
def servers(home: Path, platform: PlatformSettings) -> Iterator[tuple[TritonServer, FeatureServer]]:
    """Both servers with the champion, ready inside the block and gone after it; a port of 0 takes a free one.

    What a move that died has left is settled first, so that Triton starts with the champion whatever release is newest.

    Raises:
        InputError: nothing was promoted yet. ServiceError: a port is busy or a server does not start.
    """
    moves.put_in_place(home, platform)
    features = FeatureServer(home, platform.host, platform.features_port or _free_port(platform.host))
    ports = platform.http_port, platform.grpc_port, platform.metrics_port
    triton = TritonServer(moves.models(home), platform.host, *ports, feature_server=features.url)
    with features, triton:
        yield triton, features


def serve(home: Path, platform: PlatformSettings) -> None:
    """Serve until interrupted or terminated; a server that dies or hangs is restarted on its ports."""
    plain(f"starting Triton and the feature server of {home} …")
    try:
        with servers(home, platform) as (triton, features):
            plain(
                f"Triton     http {triton.http_url}   grpc {triton.grpc_url}   metrics {triton.metrics_url}\n"
                f"features   {features.url}\n"
                "ask with `tessera recommend --user ID` or `tessera recommend --history ITEM`; stop with Ctrl-C."
            )
            watchdogs = [Watchdog("Triton", triton, _say), Watchdog("feature server", _Features(features), _say)]
            mender = _Mender(home, platform.mlflow_url)
            while True:
                time.sleep(INTERVAL_S)
                for watchdog in watchdogs:
                    watchdog.look()
                mender.look()
    except KeyboardInterrupt:
        plain("\nstopped.")
    except SystemExit:  # a signal that ends commands
        plain("\nstopped.")
        raise


class _Mender:
    """Settles a move that died beside the running server, which may answer with what never became champion."""

    def __init__(self, home: Path, mlflow_url: str) -> None:
        self._home, self._mlflow_url, self._not_before = home, mlflow_url, 0.0

    def look(self) -> None:
        """Settle the move if its process is gone; one that cannot be settled is tried again later."""
        if time.monotonic() < self._not_before or moves.unfinished(self._home) is None:
            return
        try:
            found = moves.settle(self._home, self._mlflow_url, wait=False)
        except moves.MoveUnderWayError:
            return
        except TesseraError as error:
            _say(f"a move that died could not be settled: {error} Trying again in {LONGEST_PAUSE_S:.0f} s.")
            self._not_before = time.monotonic() + LONGEST_PAUSE_S
            return
        if found is not None:
            _say(f"the {found.move.kind} of version {found.move.target} had died and was {found.how}.")


@dataclass(frozen=True)
class _Features:
    """The feature server as the watchdog sees it."""

    server: FeatureServer

    def check(self) -> None:
        if not self.server.alive():
            raise ServiceError(f"the feature server ended by itself; its log is {self.server.log}.")
        if not self.server.healthy():
            raise ServiceError(f"{self.server.url} does not answer; its log is {self.server.log}.")

    def restart(self) -> None:
        self.server.stop()
        self.server.start()


def _say(message: str) -> None:
    plain(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}")


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
