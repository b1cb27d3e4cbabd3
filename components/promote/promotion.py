"""Promotion and rollback: features, served policy and aliases move together or not at all."""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.register.registering import FEATURES
from feature_repo.publish import run as publish
from serving.model_repository import releases
from serving.registry import Registry, Version
from serving.release import release, take_back
from tessera.config import PlatformSettings

log = logging.getLogger(__name__)
TABLES = ("items", "captions", "intents", "quality", "sids", "splits")


def promote(home: str | Path, platform: PlatformSettings, reference: str = "challenger") -> dict[str, Any]:
    """Make a registered policy the champion.

    Its features are published to Feast, Triton loads it and answers a real request, then the alias moves. If one of
    these fails, the champion's features and policy are put back and the aliases stay.

    Raises:
        InputError: no such version. ServiceError: a server refused; nothing has changed.
    """
    return _move(home, platform, lambda registry: registry.resolve(reference), Registry.promote)


def rollback(home: str | Path, platform: PlatformSettings) -> dict[str, Any]:
    """The same move backwards: the previous champion again, with its features and tokenizer.

    Raises:
        InputError: there is no previous version. ServiceError: a server refused; nothing has changed.
    """
    return _move(
        home, platform, lambda registry: registry.resolve("previous"), lambda registry, _: registry.rollback()
    )


def _move(
    home: str | Path,
    platform: PlatformSettings,
    choose: Callable[[Registry], Version],
    point: Callable[[Registry, str], Version],
) -> dict[str, Any]:
    home = Path(home)
    registry = Registry(home, platform.mlflow_url)
    with _alone(home):
        target, before, served = choose(registry), registry.aliases(), releases(_models(home))
        try:
            installed = install(registry, home, platform, target)
            champion = point(registry, target.version)
        except BaseException:
            # Aliases first: putting features and policy back may fail too, say because a server is gone.
            registry.restore(before)
            if before.champion is not None and before.champion != target.version:
                log.warning("the move failed; putting champion %s back", before.champion)
                install(registry, home, platform, registry.resolve(before.champion))
            if before.champion is None:  # nothing to put back, but a server must not start with what was not promoted
                for number in sorted(set(releases(_models(home))) - set(served), reverse=True):
                    take_back(_models(home), number)
            raise
    return {"champion": champion.version, "policy_version": champion.bundle_version, **installed}


def install(registry: Registry, home: Path, platform: PlatformSettings, version: Version) -> dict[str, Any]:
    """Publish a version's features and have its policy served; both are safe to repeat."""
    folder = registry.artefacts(version, FEATURES)
    tables = {name: folder / f"{name}.parquet" for name in TABLES}
    published = publish(home, **tables, policy_version=version.bundle_version)
    feature_server = f"http://{platform.host}:{platform.features_port}"
    bundle = registry.download(version.model, version.version)
    served = release(bundle, _models(home), feature_server=feature_server)
    return {"features_changed": published["changed"], "release": served.name}


def _models(home: Path) -> Path:
    return home / "triton" / "models"


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One promotion at a time: two moves at once could leave features and policy of different versions."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "promotion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
