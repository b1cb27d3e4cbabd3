"""Promotion and rollback: features, served policy and aliases move together or not at all.

One server swaps policies in a moment, and its features just before. Several replicas take minutes, in which some serve
the champion and some the challenger, and the feature store has one set of features. They are published when every
replica serves the challenger, just before it becomes champion: until then answers are made from what each policy
carries itself and from users' purchases, which belong to no version, and lookups are the champion's. To keep both sets
would give every key a version and every reader a choice, for minutes in a month.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.promote.moves import (
    Move,
    MoveUnderWayError,
    alone,
    begin,
    end,
    feature_server,
    install,
    put_back,
    settle,
    settled,
)
from serving import journal
from serving.registry import Registry, Version
from serving.replicas import expand
from serving.rollout import roll_out, wait_for
from tessera.config import PlatformSettings
from tessera.errors import ServiceError

Steps = Callable[[Registry, Version, Callable[[], None]], None]
"""Moves the aliases to a version; the last argument installs it, and is to be called before that."""


def promote(
    home: str | Path, platform: PlatformSettings, reference: str = "challenger", *, who: str = "", why: str = ""
) -> dict[str, Any]:
    """Make a registered policy the champion.

    Its features are published to Feast, Triton loads it and answers a real request, then the alias moves. Several
    replicas load it one after the other, each watched beside the others, before the features are published. If one of
    these fails, the champion's features and policy are put back and the aliases stay.

    Args:
        who, why: for the version's journal; the present user by default.

    Raises:
        InputError: no such version. ServiceError: a server refused, or the replicas with it failed or were slow;
        nothing has changed.
    """

    def steps(registry: Registry, target: Version, bring: Callable[[], None]) -> None:
        if not (addresses := _addresses(platform)):
            bring()
            registry.promote(target.version)
            _record(registry, target.version, "promoted", who, why)
            return
        limits = {"max_error_rate": platform.max_error_rate, "max_latency_ratio": platform.max_latency_ratio}
        outcome = roll_out(
            registry, target.version, addresses, **limits, watch_s=platform.watch_s, who=who, why=why, publish=bring,
        )  # fmt: skip
        if not outcome.promoted:
            raise ServiceError(outcome.reason)

    return _move(home, platform, reference, steps, Move("promotion", who=who, why=why))


def rollback(home: str | Path, platform: PlatformSettings, *, who: str = "", why: str = "") -> dict[str, Any]:
    """The same move backwards: the previous champion again, with its features and tokenizer, on all replicas at once.

    While a challenger is being rolled out, which the alias `canary` says from beginning to end, only that is ended: the
    champion is still the champion. So is a promotion that died before its version became champion.

    Raises:
        InputError: there is no previous version. ServiceError: a server refused, and nothing has changed; or a replica
        does not follow, and the message says so.
    """
    home = Path(home)
    registry = Registry(home, platform.mlflow_url)
    if (canary := registry.aliases().canary) is not None:  # whoever rolls it out may hold the lock, and will notice
        registry.set_canary(None)
        with suppress(MoveUnderWayError):
            settle(home, platform.mlflow_url, wait=False)
        return _ended(registry, canary)
    found = settle(home, platform.mlflow_url)
    if found is not None and found.move.kind == "promotion" and not found.finished:
        return _ended(registry, found.move.target)

    def steps(registry: Registry, target: Version, bring: Callable[[], None]) -> None:
        bring()
        registry.rollback()
        _record(registry, target.version, "again champion", who, why)

    done = _move(home, platform, "previous", steps, Move("rollback", who=who, why=why))
    try:
        wait_for(expand(_addresses(platform)), registry.resolve("champion"))
    except ServiceError as error:
        raise ServiceError(f"version {done['champion']} is champion again, but not on every replica: {error}") from None
    return done


def _move(home: str | Path, platform: PlatformSettings, reference: str, steps: Steps, move: Move) -> dict[str, Any]:
    home = Path(home)
    registry = Registry(home, platform.mlflow_url)
    installed: dict[str, Any] = {}
    with alone(home):
        with put_back():  # else this move brings everything anew
            settled(registry, home)
        target, before = registry.resolve(reference), registry.aliases()
        url = feature_server(platform)
        begin(home, replace(move, target=target.version, feature_server=url))
        try:
            steps(registry, target, lambda: installed.update(install(registry, home, target, url)))
        except BaseException as error:
            with put_back():  # aliases first: features and policy may fail too, say because a server is gone
                registry.restore(replace(before, canary=None))
                settled(registry, home, str(error) or type(error).__name__)
            raise
        end(home)
    return {"champion": target.version, "policy_version": target.bundle_version, **installed}


def _ended(registry: Registry, number: str) -> dict[str, Any]:
    champion = registry.resolve("champion")
    return {"champion": champion.version, "policy_version": champion.bundle_version, "canary_ended": number}


def _addresses(platform: PlatformSettings) -> tuple[str, ...]:
    return platform.replicas or tuple(os.environ.get("TESSERA_REPLICAS", "").split())


def _record(registry: Registry, number: str, outcome: str, who: str, why: str) -> None:
    with suppress(ServiceError):  # the move is made, whether or not it can be written down
        journal.record(registry, number, outcome, who, why)
