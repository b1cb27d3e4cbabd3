"""A new champion, replica by replica: a growing share of them serves it, and is watched beside the others.

Nobody is told what to load. The roll-out raises the canary's share in the registry, each replica's sidecar follows
(serving/sync.py), and on trouble the canary is taken away, so that they go back by themselves. An answer comes whole
from one replica's one policy: items, SIDs and versions belong together whatever the others serve.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from serving import journal
from serving.aliases import Aliases
from serving.canary import CANARY, CHAMPION, announce, raise_to
from serving.probe import ask
from serving.registry import Registry, Version
from serving.replicas import Replica, Window, expand, items_of
from tessera.errors import InputError, ServiceError, TesseraError
from tessera.processes import ending_in_order

LOAD_S = 600.0
"""How long a replica may take to fetch and load a version; under load it loads at the lowest priority."""
TICK_S = 1.0
"""Between two questions to each replica while it is watched."""
SURE = 20
"""Requests after which errors end a step before its time."""
NOTICEABLE_S = 0.005
"""A latency that is higher by less is no trouble, whatever the ratio."""
INSIST = 12

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a roll-out ended; the reason is a sentence."""

    version: str
    promoted: bool
    reason: str


class Trouble(TesseraError):
    """The canary must go."""


def roll_out(
    registry: Registry,
    version: str,
    replicas: Sequence[str],
    *,
    watch_s: float = 60.0,
    max_error_rate: float = 0.01,
    max_latency_ratio: float = 2.0,
    who: str = "",
    why: str = "",
    publish: Callable[[], object] = lambda: None,
    load_s: float = LOAD_S,
) -> Outcome:
    """Make a registered policy the champion of all replicas, or leave the champion as it is.

    The first of n replicas serves it, then two, up to all; each step is watched. What the canaries' error rate and mean
    latency are held to is what the others show at the same time, and at the last step what they showed before. What a
    roll-out that died has left is taken away first. A first champion is not tried: nothing serves that it could harm.
    The alias `canary` names the version from beginning to end, and taking it away by hand ends the roll-out.

    Args:
        version: number or alias.
        replicas: base URLs in the order of their ordinals, each with a sidecar, or as `serving.replicas.expand` takes
            them. Who has no address yet is no hindrance where nothing is tried.
        watch_s: seconds of each step.
        max_error_rate: by how much the canaries' may exceed that of the others.
        max_latency_ratio: the canaries' to that of the others.
        who, why: for the journal; the present user by default.
        publish: called when all replicas serve the version and before it becomes champion, for what must move with it.
        load_s: seconds for a replica to serve what it should.

    Raises:
        InputError: no such version, or no replica. ServiceError: the registry failed, a replica has no address, or what
        `publish` raises; the canary is taken away then.
    """
    target, champion = registry.resolve(version), registry.named(CHAMPION).get(CHAMPION)
    number = target.version
    if champion is not None and champion.version == number:
        publish()  # which repairs what is not in place
        return Outcome(number, True, f"version {number} is the champion already.")
    replicas = expand(replicas) if champion is not None else []
    if champion is not None and not replicas:
        raise InputError("there is no replica of Triton to roll out to; check their addresses.")

    def check(now: Aliases) -> None:
        if champion is not None:
            _insist(number, now.canary)

    try:
        with ending_in_order():
            if champion is not None:
                _try(_Move(registry, target, champion, replicas, watch_s, max_error_rate, max_latency_ratio, load_s))
            publish()
            registry.promote(number, check)
    except Trouble as trouble:
        outcome = Outcome(number, False, f"version {number} was rolled back: {trouble}")
        _end(registry)
        journal.record(registry, number, "rolled back", who, why, outcome.reason)
        log.warning("%s", outcome.reason)
        return outcome
    except BaseException as error:
        with suppress(Exception):  # the first error is the one to hear of
            _end(registry)
            ended = isinstance(error, KeyboardInterrupt | SystemExit)
            reason = "the command was ended by a signal." if ended else str(error) or type(error).__name__
            journal.record(registry, number, "failed", who, why, reason)
        raise
    seen = f"all {len(replicas)} replicas serve it" if champion is not None else "it is the first champion"
    outcome = Outcome(number, True, f"version {number} is the champion: {seen}.")
    with suppress(ServiceError):  # it is promoted, whether or not the journal can be written
        journal.record(registry, number, "promoted", who, why, outcome.reason)
    return outcome


def wait_for(
    replicas: Sequence[str], version: Version, load_s: float = LOAD_S, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until replicas answer with a version; `check` is called meanwhile.

    Raises:
        ServiceError: one does not, and what it says instead.
    """
    deadline = time.monotonic() + load_s
    for url in replicas:
        while (found := _answers(url)) != version.bundle_version:
            check()
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{url} does not serve version {version.version} (policy {version.bundle_version}) after "
                    f"{load_s:.0f} s; it says {found!r}. See the log of its sync."
                )
            time.sleep(min(TICK_S, load_s / 10))


@dataclass(frozen=True)
class _Move:
    registry: Registry
    target: Version
    champion: Version
    replicas: Sequence[str]
    watch_s: float
    max_error_rate: float
    max_latency_ratio: float
    load_s: float


def _try(move: _Move) -> None:
    """Every share from the first replica to all of them; Trouble where one shows some."""
    announce(move.registry, move.target)
    new, old = (items_of(move.registry.bundle(one)) for one in (move.target, move.champion))
    canaries = [Replica(url, move.target.bundle_version, new) for url in move.replicas]
    others = [Replica(url, move.champion.bundle_version, old) for url in move.replicas]
    wait_for(move.replicas, move.champion, move.load_s, lambda: _still_wanted(move))
    reference = _watch(move, [], others, Window())
    for count, url in enumerate(move.replicas, 1):
        raise_to(move.registry, move.target, count, len(move.replicas))
        log.info("version %s: on %d of %d replicas …", move.target.version, count, len(move.replicas))
        try:
            wait_for([url], move.target, move.load_s, lambda: _still_wanted(move))
        except ServiceError as error:
            raise Trouble(str(error)) from None
        reference = _watch(move, canaries[:count], others[count:], reference)


def _watch(move: _Move, canaries: list[Replica], others: list[Replica], reference: Window) -> Window:
    """Ask all and judge the canaries for a while; what the others did meanwhile, or the reference where there are none.

    Raises:
        Trouble: the canaries are worse, or somebody took the canary away.
    """
    everybody = [*canaries, *others]
    with ThreadPoolExecutor(len(everybody)) as pool:
        list(pool.map(Replica.begin, everybody))
        end = time.monotonic() + move.watch_s
        while True:
            _ask_all(pool, canaries, others)
            windows = list(pool.map(Replica.window, everybody))
            mine = sum(windows[: len(canaries)], Window())
            theirs = sum(windows[len(canaries) :], Window()) if others else reference
            over = time.monotonic() >= end
            _still_wanted(move)
            if canaries:
                said = next((one.problem for one in canaries if one.problem), "")
                judge(mine, theirs, move.max_error_rate, move.max_latency_ratio if over else None, said)
            if over:
                return theirs
            time.sleep(min(TICK_S, max(0.0, end - time.monotonic())))


def _ask_all(pool: ThreadPoolExecutor, canaries: list[Replica], others: list[Replica]) -> None:
    everybody = [*canaries, *others]
    for replica, policy in zip(everybody, list(pool.map(Replica.question, everybody)), strict=True):
        if replica in canaries and policy not in ("", replica.policy_version):
            raise Trouble(f"{replica.url} went back to policy {policy}; see the log of its sync.")


def judge(mine: Window, theirs: Window, error_rate: float, latency_ratio: float | None, said: str = "") -> None:
    """Raise Trouble where the canaries' window is worse than is allowed; their latency only at the end of a step."""
    over = latency_ratio is not None
    if (over or mine.requests + mine.errors >= SURE) and mine.error_rate > theirs.error_rate + error_rate:
        raise Trouble(
            f"{mine.error_rate:.1%} of its requests failed, {theirs.error_rate:.1%} of the champion's"
            + (f" ({said})" if said else "") + "."
        )  # fmt: skip
    if latency_ratio is None or mine.latency_s < theirs.latency_s + NOTICEABLE_S:
        return
    if mine.latency_s > latency_ratio * theirs.latency_s:
        raise Trouble(f"a request takes {mine.latency_s * 1e3:.0f} ms, the champion's {theirs.latency_s * 1e3:.0f} ms.")


def _still_wanted(move: _Move) -> None:
    with suppress(ServiceError):  # a registry that is away for a moment changes nothing
        canary = move.registry.named(CANARY).get(CANARY)
        _insist(move.target.version, canary and canary.version)


def _insist(wanted: str, canary: str | None) -> None:
    if canary != wanted:
        raise Trouble("the canary was taken away by hand.")


def _end(registry: Registry) -> None:
    """Take the canary away; tried for a minute, because the replicas stay with it until then."""
    for attempt in range(INSIST):
        try:
            return registry.set_canary(None)
        except ServiceError:
            if attempt == INSIST - 1:
                raise
            time.sleep(5)
    return None


def _answers(url: str) -> str:
    try:
        return ask(url).policy_version
    except ServiceError as error:
        return str(error)
