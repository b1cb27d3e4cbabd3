"""Replicas of Triton as a roll-out sees them: what they answer, and what they have counted."""

import itertools
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serving.probe import ask
from tessera.errors import InputError, ServiceError
from tessera.schema import read_table

METRICS_ABOVE = 2
"""Triton's metrics are two ports above its HTTP: 8000 and 8002."""
LONGEST_HISTORY = 8
LOOK_AHEAD = 3
"""Ordinals looked at after the first that has no address: replicas start side by side, and one may be pending."""
TIMEOUT_S = 5.0

Counts = dict[tuple[str, str, str], float]
"""(name, release, process) -> value."""


@dataclass(frozen=True)
class Window:
    """What one or several replicas did in some time.

    errors: requests that were answered with a failure of the service's own, were refused as busy or late, or were the
    roll-out's and not answered; what callers did wrong does not count.
    """

    requests: float = 0.0
    errors: float = 0.0
    waited_s: float = 0.0
    decodes: float = 0.0
    decode_s: float = 0.0

    def __add__(self, other: "Window") -> "Window":
        return Window(
            self.requests + other.requests, self.errors + other.errors, self.waited_s + other.waited_s,
            self.decodes + other.decodes, self.decode_s + other.decode_s,
        )  # fmt: skip

    @property
    def error_rate(self) -> float:
        """Errors among all requests; 0 without any."""
        return self.errors / max(self.requests + self.errors, 1)

    @property
    def latency_s(self) -> float:
        """Mean time in the queue and of a decode."""
        return self.waited_s / max(self.requests, 1) + self.decode_s / max(self.decodes, 1)


class Replica:
    """One replica, asked with histories of items that it knows.

    Args:
        url: base URL over HTTP.
        policy_version: what it must answer with.
        items: of that policy.
    """

    def __init__(self, url: str, policy_version: str, items: Sequence[str]) -> None:
        self.url, self.policy_version = url.rstrip("/"), policy_version
        self.problem = ""
        self._answered = self._unanswered = 0
        self._items, self._random = items, random.Random(0)
        self._seen: Counts = {}
        self._counted: dict[str, float] = {}

    def begin(self) -> None:
        """Count from now on.

        Raises:
            ServiceError: its metrics do not answer, so nothing could be said of it.
        """
        self._seen, self._counted = self._counts(), {}
        self._answered, self._unanswered, self.problem = 0, 0, ""

    def question(self) -> str:
        """Ask once; the policy version that answered, "" where none did."""
        history = [self._random.choice(self._items) for _ in range(self._random.randint(1, LONGEST_HISTORY))]
        try:
            answered = ask(self.url, TIMEOUT_S, history).policy_version
        except ServiceError as error:
            self._unanswered += 1
            self.problem = str(error)
            return ""
        self._answered += 1
        return answered

    def window(self) -> Window:
        """What it did since `begin`, as far as its metrics tell by now, which are a second behind."""
        with suppress(ServiceError):  # it may be busy, and may be gone: then the questions tell
            self._count(self._counts())
        found = self._counted
        errors = sum(found.get(f"tessera_{kind}_total", 0.0) for kind in ("failed", "busy", "late", "invalid_items"))
        return Window(
            max(found.get("tessera_requests_total", 0.0), self._answered), max(errors, self._unanswered),
            found.get("tessera_queue_seconds_total", 0.0), found.get("tessera_decodes_total", 0.0),
            found.get("tessera_decode_seconds_total", 0.0),
        )  # fmt: skip

    def _count(self, now: Counts) -> None:
        """Add what was counted since the last look.

        A process that is new, or was restarted under the same labels, began at 0; what one that is gone had counted
        stays.
        """
        for key, value in now.items():
            before = self._seen.get(key, 0.0)
            self._counted[key[0]] = self._counted.get(key[0], 0.0) + (value if value < before else value - before)
        self._seen = now

    def _counts(self) -> Counts:
        place = urlsplit(self.url)
        url = f"http://{place.hostname}:{(place.port or 8000) + METRICS_ABOVE}/metrics"
        try:
            text = httpx.get(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status().text
        except httpx.HTTPError as error:
            raise ServiceError(f"no metrics of Triton at {url} ({type(error).__name__}); check its ports.") from None
        return {
            (sample.name, sample.labels.get("version", ""), sample.labels.get("process", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("tessera_")
        }


def items_of(policy_bundle: Path) -> list[str]:
    """The items that a policy recommends."""
    ids: list[str] = read_table("sids", policy_bundle / "sids.parquet")["item_id"].to_pylist()
    return ids


def expand(addresses: Sequence[str]) -> list[str]:
    """Base URLs of all replicas, in the order of their ordinals.

    Args:
        addresses: URLs; one with {} stands for those of ordinals 0, 1, ... as far as their names resolve, as in
            http://triton-{}.triton-replicas:8000.

    Raises:
        InputError: not a URL over HTTP.
        ServiceError: a replica between others has no address, as one whose pod waits for a node, or none has one.
    """
    found: list[str] = []
    for address in addresses:
        if urlsplit(address.replace("{}", "0")).scheme != "http" or not urlsplit(address).hostname:
            raise InputError(f"{address!r} is no address of a replica; write http://host:8000, with {{}} for ordinals.")
        found += _resolved(address) if "{}" in address else [address]
    return found


def _resolved(address: str) -> list[str]:
    found: list[str] = []
    missing: list[str] = []
    for ordinal in itertools.count():
        url = address.replace("{}", str(ordinal))
        if not _resolves(url):
            missing.append(url)
            if len(missing) > LOOK_AHEAD:
                break
        elif missing:
            raise ServiceError(f"{missing[0]} does not resolve and {url} does; wait until every replica has started.")
        else:
            found.append(url)
    if not found:
        raise ServiceError(f"no replica of {address} resolves; check the address, and that replicas have started.")
    return found


def _resolves(url: str) -> bool:
    try:
        return bool(socket.getaddrinfo(urlsplit(url).hostname, None))
    except OSError:
        return False
