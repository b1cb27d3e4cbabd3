"""A move's intention, and how a move that died is finished or undone.

A promotion, a rollback and a refresh change three stores that do not know one another: aliases and tags in MLflow,
features in Feast, releases in Triton's model repository. Before the first step the move is written into the home, and
after the last it is cleared. A move that is found there while nobody holds the lock has died. The registry decides what
becomes of it: if it names what the move wanted, the move is finished, else it is undone; features and release follow.

The intention is in the home because all that it repairs is there, or is written from there. The registry's own two
steps have a journal of their own, in the registry, where replicas and other homes see them (serving/aliases.py).
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from components.register import features
from feature_repo import publish
from feature_repo.store import read_state
from serving import journal, newer_sids
from serving.model_repository import newest, releases
from serving.registry import Registry, Version
from serving.release import release, take_back
from tessera.config import PlatformSettings
from tessera.errors import BundleError, InputError, ServiceError, TesseraError
from tessera.files import read_json, write_json

log = logging.getLogger(__name__)
INTENTION, LOCK = "move.json", "promotion.lock"


@dataclass(frozen=True)
class Move:
    """What a move wants. Versions are numbers of `sid-policy`."""

    kind: Literal["promotion", "rollback", "refresh"] = "promotion"
    target: str = ""
    """The version that is to be champion; for a refresh the champion."""
    feature_server: str = ""
    """URL that the target's release is exported with."""
    tags_before: dict[str, str] = field(default_factory=dict)
    """Which newer tables the target is published with and served over, before a refresh."""
    tags_after: dict[str, str] = field(default_factory=dict)
    """And after it."""
    who: str = ""
    why: str = ""
    when: str = ""
    """UTC, as in the version's journal."""


@dataclass(frozen=True)
class Settled:
    """A move that had died, and whether it was finished or undone."""

    move: Move
    finished: bool

    @property
    def how(self) -> str:
        """In a word."""
        return "finished" if self.finished else "undone"


class MoveUnderWayError(ServiceError):
    """Another process is in the midst of a move."""


@contextmanager
def alone(home: Path, *, wait: bool = True) -> Iterator[None]:
    """One move at a time: two at once could leave features and policy of different versions.

    Raises:
        MoveUnderWayError: another process moves, and it is not to be waited for.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"another process is in the midst of {_told(unfinished(home))}"
            if not wait:
                raise MoveUnderWayError(f"{said}; try again when it has ended.") from None
            log.warning("%s; waiting for its end", said)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unfinished(home: Path) -> Move | None:
    """The move that is under way, or that has died. One that cannot be read counts as one that wanted nothing."""
    path = home / INTENTION
    if not path.exists():
        return None
    try:
        return Move(**read_json(path))
    except (InputError, TypeError):
        return Move()


def begin(home: Path, move: Move) -> None:
    """Write a move down before its first step; the caller holds the lock."""
    now = datetime.now(timezone.utc).strftime(journal.TIME)
    write_json(home / INTENTION, asdict(replace(move, when=now)))


def end(home: Path) -> None:
    """Clear the move after its last step."""
    (home / INTENTION).unlink(missing_ok=True)


def settle(home: Path, mlflow_url: str = "", *, wait: bool = True) -> Settled | None:
    """Finish or undo a move that has died in this home; None where there is none.

    Args:
        wait: for a move that another process is in the midst of.

    Raises:
        MoveUnderWayError: it is not to be waited for. InputError, BundleError, ServiceError: a store or a server
        refused; the next call tries again.
    """
    if unfinished(home) is None:
        return None
    with alone(home, wait=wait):
        return settled(Registry(home, mlflow_url), home)


def glance(home: Path, mlflow_url: str = "") -> str:
    """`settle` for a command that only reads: it waits for nobody, and says in a sentence what stays unfinished."""
    try:
        settle(home, mlflow_url, wait=False)
    except MoveUnderWayError as error:
        return str(error)
    except (TesseraError, OSError) as error:  # the home may be read-only
        return f"{_told(unfinished(home))} has died and could not be settled: {error}"
    return ""


def settled(registry: Registry, home: Path, reason: str = "its process died") -> Settled | None:
    """As `settle`, for who holds the lock."""
    move = unfinished(home)
    if move is None:
        return None
    now = registry.aliases()
    finished = move.target == now.champion
    if move.kind == "refresh" and (refreshed := _find(registry, move.target)) is not None:
        finished = move.tags_after.items() <= refreshed.tags.items()
        if not finished:
            features.restore(registry, move.target, move.tags_before)
    if now.canary == move.target and not finished:
        registry.set_canary(None)
    if now.champion is not None:
        install(registry, home, registry.resolve(now.champion), move.feature_server)
    else:
        _clear_away(home)
    _write_down(registry, move, finished, reason)
    end(home)
    done = Settled(move, finished)
    log.warning("%s did not come to its end (%s) and was %s", _told(move), reason, done.how)
    return done


@contextmanager
def put_back() -> Iterator[None]:
    """What fails here is left to the next command: it finds the move written down."""
    try:
        yield
    except TesseraError as error:
        log.warning("a move could be neither finished nor undone: %s The next command tries again.", error)


def put_in_place(home: Path, platform: PlatformSettings) -> Version:
    """Have the champion's features published and its release the newest, whatever is there; returns the champion.

    Raises:
        InputError: nothing is promoted. BundleError, ServiceError: a store refused.
    """
    settle(home, platform.mlflow_url)
    if not (home / "triton").is_dir():
        raise InputError(f"nothing is promoted in {home} yet; run `tessera run training` or `tessera promote` first.")
    registry = Registry(home, platform.mlflow_url)
    champion = _champion(registry, home)
    if not _in_place(home, champion):
        with alone(home):
            champion = _champion(registry, home)
            log.warning("version %s is the champion and was not in place; putting it there", champion.version)
            install(registry, home, champion, feature_server(platform))
    return champion


def install(registry: Registry, home: Path, version: Version, feature_server: str) -> dict[str, Any]:
    """Publish a version's features and have its policy served, with what refreshes added; both are safe to repeat.

    Where replicas serve, the release in the home is what is computed ahead with.
    """
    folder = features.newest(registry, version)
    tables = {name: folder / f"{name}.parquet" for name in features.TABLES}
    published = publish.run(home, **tables, policy_version=version.bundle_version)
    bundle = registry.download(version.model, version.version)
    newer = newer_sids.fetch(registry, version)
    served = release(bundle, models(home), sids=newer, feature_server=feature_server)
    return {"features_changed": published["changed"], "release": served.name}


def feature_server(platform: PlatformSettings) -> str:
    """URL of the feature server beside an embedded Triton."""
    return f"http://{platform.host}:{platform.features_port}"


def models(home: Path) -> Path:
    """Triton's model repository of a home."""
    return home / "triton" / "models"


def _in_place(home: Path, champion: Version) -> bool:
    state = read_state(home)
    if (state.policy_version, state.tokenizer_version) != (champion.bundle_version, champion.tokenizer_version):
        return False
    try:
        return newer_sids.served_by(newest(models(home)), champion)
    except (ServiceError, BundleError):
        return False


def _champion(registry: Registry, home: Path) -> Version:
    found = registry.named("champion").get("champion")
    if found is None:
        raise InputError(f"nothing is promoted in {home} yet; run `tessera run training` or `tessera promote` first.")
    return found


def _find(registry: Registry, number: str) -> Version | None:
    try:
        return registry.resolve(number)
    except InputError:
        return None


def _clear_away(home: Path) -> None:
    """Nothing is champion: no release for a server to start with, and no features as if they were a version's."""
    for number in reversed(releases(models(home))):
        take_back(models(home), number)
    publish.withdraw(home)


def _write_down(registry: Registry, move: Move, finished: bool, reason: str) -> None:
    """Tell the version's journal how the move ended, where the move did not do so itself."""
    version = _find(registry, move.target)
    if version is None or any(one.when >= move.when for one in journal.entries(version.tags)):
        return
    outcome = {"promotion": "promoted", "rollback": "again champion"}.get(move.kind, "refreshed")
    with suppress(TesseraError):
        journal.record(registry, move.target, outcome if finished else "failed", move.who, move.why, f"{reason}.")


def _told(move: Move | None) -> str:
    return f"the {move.kind} of version {move.target or '?'}" if move else "a promotion or refresh"
