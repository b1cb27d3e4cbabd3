"""The sidecar of a Triton replica: it follows the registry and has the Triton beside it serve what it should.

    python -m serving.sync --repository /models --once     # before Triton starts: fetch what it is to serve
    python -m serving.sync --repository /models            # beside it, for ever

Each replica decides by itself (serving/canary.py), so nobody needs to reach it to move it, and one that was restarted
or added comes up right. A registry that is away changes nothing; where Triton refuses a release the one before serves.
"""

import argparse
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving import newer_sids
from serving.canary import assigned
from serving.model_config import MODEL
from serving.model_repository import export, newest, prune, read_release, releases
from serving.probe import PROBE_S, Served, ask
from serving.registry import DOWNLOADS, Registry, Version
from serving.release import release
from serving.server import server_id
from tessera.errors import BundleError, InputError, ServiceError, TesseraError
from tessera.proxies import spare_loopback

POLL_S, LONGEST_PAUSE_S = 5.0, 120.0
"""Between two looks; what was refused is tried again after pauses that double up to the second."""
METRICS_PORT = 8003
"""Triton's own are 8000 to 8002."""

log = logging.getLogger("tessera.sync")
State = Literal["absent", "waiting", "served"]


@dataclass(eq=False)  # Prometheus keeps collectors as keys
class Seen(Collector):
    """What a follower saw the last time, for Prometheus."""

    registry_up: bool = False
    in_place: bool = False
    serving: Served | None = None
    changes: int = 0
    failures: int = 0

    def collect(self) -> Iterator[Metric]:
        """As `tessera_sync_...`."""
        up, place = "Whether the registry answered", "Whether Triton answers with what is assigned to this replica"
        yield GaugeMetricFamily("tessera_sync_registry_up", up, self.registry_up)
        yield GaugeMetricFamily("tessera_sync_in_place", place, self.in_place)
        yield CounterMetricFamily("tessera_sync_changes", "Releases brought to serve", self.changes)
        yield CounterMetricFamily("tessera_sync_failures", "Tries to bring one that failed", self.failures)
        labels = ("policy_version", "index_version")
        serving = GaugeMetricFamily("tessera_sync_serving", "1 for what Triton answers with", labels=labels)
        if (one := self.serving) is not None:
            serving.add_metric((one.policy_version, one.index_version), 1)
        yield serving


class Follower:
    """Keeps one Triton, and its model repository, at what the registry assigns to it.

    Args:
        registry: opens the registry; called until it answers.
        ordinal: number of the replica, from 0.
        http_url: Triton's; empty before it has started, when there is only the repository to fill.
        workers: batches decoded at once, as `serving.model_repository.export` takes it.
    """

    def __init__(
        self, registry: Callable[[], Registry], ordinal: int, repository: Path, http_url: str = "", workers: int = 0
    ) -> None:
        self.seen = Seen()
        self._open, self._ordinal = registry, ordinal
        self._repository, self._url, self._workers = repository, http_url, workers
        self._registry: Registry | None = None
        self._said = ""
        self._failed = ""  # the version that could not be brought to serve, and when to try it again
        self._pause_s, self._not_before = 0.0, 0.0

    def look(self) -> State:
        """Look into the registry and do what there is to do.

        Returns:
            absent: nothing is assigned, or it could not be brought to serve. waiting: it is in the repository, and no
            Triton answers yet. served: Triton answers with it.
        """
        answered = self._ask()  # first of all: what it answers with is told whatever else can be had
        try:
            registry = self._registry = self._registry or self._open()
            version = assigned(registry, self._ordinal)
        except TesseraError as error:
            self.seen.registry_up = False
            self._say(f"{error} What is here stays as it is.")
            return "waiting" if releases(self._repository) else "absent"
        self.seen.registry_up = True
        if version is None:
            self._say("the registry has no champion yet; waiting for one.")
            return "absent"
        state = self._state(version, answered)
        if state == "absent" and not (version.version == self._failed and time.monotonic() < self._not_before):
            state = self._bring(registry, version)
        self.seen.in_place = state == "served"
        if state != "absent":
            where = "serves" if state == "served" else "is in the repository; no Triton answers yet"
            self._say(f"version {version.version} (policy {version.bundle_version}) {where}.")
        return state

    def _ask(self) -> Served | None:
        """What Triton answers with, None where it is starting, or in trouble that its own probes see."""
        try:
            self.seen.serving = ask(self._url, PROBE_S) if self._url else None
        except ServiceError:
            self.seen.serving = None
        return self.seen.serving

    def _state(self, version: Version, answered: Served | None) -> State:
        try:
            present = newest(self._repository)
        except (ServiceError, BundleError):
            return "absent"
        if not newer_sids.served_by(present, version):
            return "absent"
        if answered is None:
            return "waiting"
        return "served" if answered == present.answer else "absent"

    def _bring(self, registry: Registry, version: Version) -> State:
        try:
            self._install(registry, version)
        except (TesseraError, OSError) as error:  # the disk may be full
            again = version.version == self._failed
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if again else POLL_S
            self._failed, self._not_before = version.version, time.monotonic() + self._pause_s
            self.seen.failures += 1
            self._say(f"version {version.version} could not be brought to serve: {error}")
            return "absent"
        finally:
            # A release has links or copies of its own, so what was fetched for it may go.
            shutil.rmtree(registry.home / DOWNLOADS, ignore_errors=True)
        self._failed = ""
        self.seen.changes += 1
        return self._state(version, self._ask())

    def _install(self, registry: Registry, version: Version) -> None:
        sids = newer_sids.fetch(registry, version)
        bundle = self._kept(version.bundle_version) or registry.bundle(version)
        if self._url and _is_up(self._url):
            release(bundle, self._repository, self._url, sids=sids, workers=self._workers)
        else:  # it loads the newest when it starts
            export(bundle, self._repository, sids=sids, workers=self._workers)
            prune(self._repository)

    def _kept(self, policy_version: str) -> Path | None:
        """The policy of an earlier release, so that the way back needs no artefact store."""
        for number in reversed(releases(self._repository)):
            try:
                found = read_release(self._repository / MODEL / str(number))
            except BundleError:
                continue
            if found.policy_version == policy_version:
                return found.policy
        return None

    def _say(self, sentence: str) -> None:
        """One line for each change, not for each look."""
        if sentence != self._said:
            log.info("%s", sentence)
            self._said = sentence


def ordinal_of(hostname: str) -> int:
    """The number of a StatefulSet's pod from its name, as in triton-2.

    Raises:
        InputError: the name ends in no number.
    """
    found = re.search(r"-(\d+)$", hostname)
    if not found:
        raise InputError(f"{hostname!r} is no StatefulSet's pod; say which replica this is with --ordinal.")
    return int(found[1])


def _is_up(http_url: str) -> bool:
    try:
        return bool(server_id(http_url))
    except ServiceError:
        return False


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.sync", description="Have Triton follow the registry.")
    parser.add_argument("--repository", type=Path, required=True, help="Triton's model repository, this pod's own")
    parser.add_argument("--registry", default=os.environ.get("MLFLOW_TRACKING_URI", ""), help="MLflow's URL")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Triton over HTTP")
    parser.add_argument("--ordinal", type=int, help="number of this replica, from 0; else from the host's name")
    parser.add_argument("--poll", type=float, default=POLL_S, help="seconds between two looks into the registry")
    parser.add_argument("--workers", type=int, default=0, help="batches decoded at once; 0: one a core, up to four")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="of /metrics; 0: none")
    parser.add_argument("--once", action="store_true", help="end as soon as there is something to start Triton with")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """The sidecar, or the step before Triton's start, as a command."""
    arguments = _arguments(given)
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)
    log.setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    spare_loopback()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        if not arguments.registry:
            raise InputError("give MLflow's URL with --registry or MLFLOW_TRACKING_URI.")
        ordinal = ordinal_of(socket.gethostname()) if arguments.ordinal is None else arguments.ordinal
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    repository = arguments.repository.absolute()
    home = repository.parent / "sync"  # on the same volume, so that a release can be links
    url = "" if arguments.once else arguments.url.rstrip("/")
    follower = Follower(lambda: Registry(home, arguments.registry), ordinal, repository, url, arguments.workers)
    if arguments.metrics_port and not arguments.once:
        exposed = CollectorRegistry()
        exposed.register(follower.seen)
        start_http_server(arguments.metrics_port, registry=exposed)
    while not ended.is_set():
        if follower.look() == "waiting" and arguments.once:
            return 0
        ended.wait(arguments.poll)
    return 1 if arguments.once else 0


if __name__ == "__main__":
    sys.exit(main())
