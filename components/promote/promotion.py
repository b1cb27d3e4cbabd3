"""Promotion and rollback: features, served policy and aliases move together or not at all.

One server swaps policies in a moment, and its features just before. Several replicas take minutes, in which some serve
the champion and some the challenger, and the feature store has one set of features. They are published when every
replica serves the challenger, just before it becomes champion: until then answers are made from what each policy
carries itself and from users' purchases, which belong to no version, and lookups are the champion's. To keep both sets
would give every key a version and every reader a choice, for minutes in a month.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.register import features
from feature_repo.publish import run as publish
from serving import journal, newer_sids
from serving.model_repository import releases
from serving.registry import Registry, Version
from serving.release import release, take_back
from serving.replicas import expand
from serving.rollout import roll_out, wait_for
from tessera.config import PlatformSettings
from tessera.errors import ServiceError

log = logging.getLogger(__name__)

Move = Callable[[Registry, Version, Callable[[], None]], None]
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

    def move(registry: Registry, target: Version, bring: Callable[[], None]) -> None:
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

    return _move(home, platform, reference, move)


def rollback(home: str | Path, platform: PlatformSettings, *, who: str = "", why: str = "") -> dict[str, Any]:
    """The same move backwards: the previous champion again, with its features and tokenizer, on all replicas at once.

    While a challenger is being rolled out, which the alias `canary` says from beginning to end, only that is ended: the
    champion is still the champion.

    Raises:
        InputError: there is no previous version. ServiceError: a server refused, and nothing has changed; or a replica
        does not follow, and the message says so.
    """
    registry = Registry(home, platform.mlflow_url)
    if (canary := registry.aliases().canary) is not None:  # whoever rolls it out holds the lock, and will notice
        registry.set_canary(None)
        champion = registry.resolve("champion")
        return {"champion": champion.version, "policy_version": champion.bundle_version, "canary_ended": canary}

    def move(registry: Registry, target: Version, bring: Callable[[], None]) -> None:
        bring()
        registry.rollback()
        _record(registry, target.version, "again champion", who, why)

    done = _move(home, platform, "previous", move)
    try:
        wait_for(expand(_addresses(platform)), registry.resolve("champion"))
    except ServiceError as error:
        raise ServiceError(f"version {done['champion']} is champion again, but not on every replica: {error}") from None
    return done


def _move(home: str | Path, platform: PlatformSettings, reference: str, move: Move) -> dict[str, Any]:
    home = Path(home)
    registry = Registry(home, platform.mlflow_url)
    installed: dict[str, Any] = {}
    with alone(home):
        target, before, served = registry.resolve(reference), registry.aliases(), releases(_models(home))
        try:
            move(registry, target, lambda: installed.update(install(registry, home, platform, target)))
        except BaseException:
            # Aliases first: putting features and policy back may fail too, say because a server is gone.
            registry.restore(replace(before, canary=None))
            if before.champion is not None and before.champion != target.version:
                log.warning("the move failed; putting champion %s back", before.champion)
                install(registry, home, platform, registry.resolve(before.champion))
            if before.champion is None:  # nothing to put back, but a server must not start with what was not promoted
                for number in sorted(set(releases(_models(home))) - set(served), reverse=True):
                    take_back(_models(home), number)
            raise
    return {"champion": target.version, "policy_version": target.bundle_version, **installed}


def install(registry: Registry, home: Path, platform: PlatformSettings, version: Version) -> dict[str, Any]:
    """Publish a version's features and have its policy served, with what refreshes added; both are safe to repeat.

    Where replicas serve, the release in the home is what is computed ahead with.
    """
    folder = features.newest(registry, version)
    tables = {name: folder / f"{name}.parquet" for name in features.TABLES}
    published = publish(home, **tables, policy_version=version.bundle_version)
    feature_server = f"http://{platform.host}:{platform.features_port}"
    bundle = registry.download(version.model, version.version)
    newer = newer_sids.fetch(registry, version)
    served = release(bundle, _models(home), sids=newer, feature_server=feature_server)
    return {"features_changed": published["changed"], "release": served.name}


def _addresses(platform: PlatformSettings) -> tuple[str, ...]:
    return platform.replicas or tuple(os.environ.get("TESSERA_REPLICAS", "").split())


def _record(registry: Registry, number: str, outcome: str, who: str, why: str) -> None:
    with suppress(ServiceError):  # the move is made, whether or not it can be written down
        journal.record(registry, number, outcome, who, why)


def _models(home: Path) -> Path:
    return home / "triton" / "models"


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One promotion or refresh at a time: two moves at once could leave features and policy of different versions."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "promotion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
