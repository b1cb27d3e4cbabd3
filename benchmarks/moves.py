"""kill -9 in the midst of promotions, rollbacks and refreshes: whether the next command makes all parts agree.

    python -m benchmarks.moves                      50 moments of each move
    python -m benchmarks.moves --moments 0          every moment there is

A moment is just before a write to a file of the platform's home, or before a commit to one of its databases, so that
all steps are met and not only the long ones. At each moment the move is killed twice from the same start: once the next
command is `tessera serve`, which must start with the champion, and once one of the others; every third of these is
killed as well, and followed by one more. Two tiny policies of two tokenizers have features that differ.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import feast.infra.offline_stores.dask  # these and MLflow's parts are imported once, before processes are forked
import feast.infra.online_stores.sqlite
import feast.infra.registry.sql  # noqa: F401
import mlflow.artifacts
import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import pyarrow as pa
import torch
import tyro

from components.precompute.precomputing import precompute
from components.promote import moves, promotion
from components.refresh import refreshing
from components.register import registering
from components.register.features import TABLES
from feature_repo import lookup, publish, writer
from feature_repo.store import feast_folder, open_store, read_state
from serving.aliases import PENDING, POLICY, TOKENIZER, named, registered
from serving.model_repository import newest, releases
from serving.registry import Registry
from tessera.config import PlatformSettings, PolicySettings, Settings, TokenizerSettings
from tessera.errors import TesseraError
from tessera.files import write_json
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

Kind = Literal["first", "promote", "rollback", "refresh"]
KINDS: tuple[Kind, ...] = ("first", "promote", "rollback", "refresh")
ITEMS = [f"item{number}" for number in range(12)]
NEW = "new"
MADE_BY = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}
PLATFORM = PlatformSettings()
SIZE = 8
WRITES = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "shutil.rmtree": 0}
"""Audit events of what changes a folder, and which of their arguments is the path."""
Command = Literal["serve", "versions", "promote", "rollback", "refresh", "precompute"]
OTHERS: tuple[Command, ...] = ("versions", "promote", "rollback", "refresh", "precompute")


@dataclass(frozen=True)
class Stage:
    """A platform on which moves are killed; before each its home is put back as it was.

    The home stays at its place, because MLflow keeps absolute paths.
    """

    folder: Path
    starts: dict[Kind, Path] = field(default_factory=dict)
    """Copies of the home from which each move begins."""
    agreed: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    """What all parts may say together after a move of each kind: what they said before it and after it."""
    moments: dict[Kind, int] = field(default_factory=dict)
    """How many there are in a move of each kind."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def at(self, start: Path) -> None:
        """Put the home back."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(start, self.home, symlinks=True)

    def keep(self, name: str) -> Path:
        """A copy of the home as it is now."""
        kept = self.folder / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.home, kept, symlinks=True)
        return kept


def make(folder: Path, kinds: Sequence[Kind] = KINDS) -> Stage:
    """A platform with two registered policies, and where each move begins."""
    stage = Stage(folder)
    for number in (1, 2):
        tables, bundles = _bundles(folder / str(number), number)
        write_json(folder / "evaluation.json", {"test": {}, "validation": {}, "popularity": {}})
        options = folder / "evaluation.json", Settings(), str(stage.home), folder / "versions.json"
        forked(partial(registering.run, tables, *bundles, *options))
    stage.starts["first"] = stage.keep("registered")
    forked(partial(_first_champion, stage))
    stage.starts["promote"] = stage.starts["refresh"] = stage.keep("promoted")
    if "rollback" in kinds:
        forked(partial(promotion.promote, stage.home, PLATFORM, "2"))
        stage.starts["rollback"] = stage.keep("promoted-twice")
    for kind in kinds:
        stage.at(stage.starts[kind])
        before = forked(partial(parts, stage.home))
        stage.moments[kind] = int(forked(partial(_counted, partial(act, stage, kind), stage.home)))
        stage.agreed[kind] = [before, forked(partial(parts, stage.home))]
    return stage


def _first_champion(stage: Stage) -> None:
    """Version 1, with cached lists, a purchase that was pushed, and a source that has changed since."""
    promotion.promote(stage.home, PLATFORM, "1")
    publish.push_history(stage.home, "bob", [ITEMS[7]])
    precompute(stage.home)
    items = stage.folder / "source.parquet"
    _write("items", [_item(one, 1, "seen anew") for one in [*ITEMS, NEW]], items)
    made = (stage.folder / name for name in ("changed.parquet", "published", "tokenizer"))
    refreshing.find_changes(items, *made, Settings(), str(stage.home))


def act(stage: Stage, kind: Kind) -> None:
    """Make a move as its command does."""
    if kind == "rollback":
        promotion.rollback(stage.home, PLATFORM)
    elif kind == "refresh":
        refresh(stage)
    else:
        promotion.promote(stage.home, PLATFORM, "1" if kind == "first" else "2")


def refresh(stage: Stage) -> None:
    """What the last step of a refresh of version 1 does: a new item, all titles changed, one more purchase."""
    made = {name: stage.folder / f"{name}-made.parquet" for name in ("captions", "intents", "quality", "sids")}
    for name, path in made.items():
        if not path.exists():
            _write(name, _rows(1, [*ITEMS, NEW] if name == "sids" else [NEW])[name], path)
    splits = stage.folder / "splits-made.parquet"
    _write("splits", _histories({"ann": ITEMS[:5], "bob": ITEMS[2:7]}), splits)
    published = stage.folder / "published"
    refreshing.publish(stage.folder / "source.parquet", splits, published, made, Settings(), str(stage.home))


def command(stage: Stage, name: Command, kind: Kind) -> None:
    """What a command does to a home, a refusal included."""
    again = {"first": "1", "promote": "2", "rollback": "1", "refresh": "1"}[kind]
    did: dict[Command, Callable[[], Any]] = {
        "serve": lambda: moves.put_in_place(stage.home, PLATFORM),  # before it starts Triton
        "versions": lambda: moves.glance(stage.home),
        "promote": lambda: promotion.promote(stage.home, PLATFORM, again),
        "rollback": lambda: promotion.rollback(stage.home, PLATFORM),
        "refresh": lambda: refreshing.find_changes(
            stage.folder / "source.parquet", *(stage.folder / f"again-{one}" for one in ("changed", "published", "to")),
            Settings(), str(stage.home),
        ),
        "precompute": lambda: precompute(stage.home),
    }  # fmt: skip
    try:
        did[name]()
    except TesseraError as error:
        print(f"    {name}: {error}", file=sys.stderr)


def parts(home: Path) -> dict[str, Any]:
    """What each part says is in place, in words that can be compared; nothing is repaired."""
    registry = Registry(home)
    policies, tokenizers = (registered(registry.client, model) for model in (POLICY, TOKENIZER))
    champion = registry.named("champion").get("champion")
    state = read_state(home)
    found: dict[str, Any] = {
        "champion": champion and champion.bundle_version,
        "tokenizer": champion and champion.tokenizer_version,
        "aliases follow": set(named(policies)) == set(named(tokenizers)),
        "left": [
            policies is not None and PENDING in policies.tags, (home / moves.INTENTION).exists(),
            "canary" in named(policies),
        ],
        "features": [state.policy_version, state.tokenizer_version],
        "release": None, "items": {}, "said": {}, "histories": {}, "lists": {},
    }  # fmt: skip
    if releases(moves.models(home)):
        answer = newest(moves.models(home)).answer
        found["release"] = [answer.policy_version, answer.index_version]
    if not (feast_folder(home) / "published.json").exists():
        return found
    store = open_store(home)
    items = lookup.items(store, [*ITEMS, NEW])
    found["items"] = {one.item_id: [one.title, one.sid] for one in items if one is not None}
    log = writer.published(feast_folder(home), "item_enrichment")
    found["said"] = {row["item_id"]: row["title"] for row in log.to_pylist() if row["title"] is not None}
    for user in lookup.users(store, ["ann", "bob"]):
        if user.history:  # one that was withdrawn is empty
            found["histories"][user.user_id] = user.history
        if user.top_k is not None:
            found["lists"][user.user_id] = [user.top_k.policy_version, user.top_k.stale]
    return found


def at_moment(stage: Stage, kind: Kind, moment: int, then: Command, kill_then: int = 0) -> list[str]:
    """Kill a move at a moment, and say what is wrong after the next command; nothing if the move was over before.

    Args:
        kill_then: the moment at which the next command is killed as well; 0: not.
    """
    stage.at(stage.starts[kind])
    if not killed(partial(act, stage, kind), stage.home, moment):
        return ["the move was not killed"]
    if kill_then and killed(partial(command, stage, then, kind), stage.home, kill_then):
        then = "versions"
    forked(partial(command, stage, then, kind))
    found = forked(partial(parts, stage.home))
    return wrong(stage, kind, found, then)


def wrong(stage: Stage, kind: Kind, found: Mapping[str, Any], then: Command) -> list[str]:
    """Where the parts do not agree."""
    found = dict(found)
    if then == "precompute":  # it makes the champion's lists
        lists = found.pop("lists")
        if any(one != [found["champion"], False] for one in lists.values()):
            return [f"lists are {lists}, the champion is {found['champion']}"]
    differing = [[name for name in found if found[name] != one[name]] for one in stage.agreed[kind]]
    nearest = min(differing, key=len)
    before_or_after = stage.agreed[kind][differing.index(nearest)]
    return [f"{name} is {found[name]}, not {before_or_after[name]}" for name in nearest]


def _counted(work: Callable[[], Any], home: Path) -> int:
    counting = _Boundaries(home, 0)
    work()
    return counting.passed


class _Boundaries:
    """Kills this process just before its n-th write below a folder; 0: never. It cannot be taken away again."""

    def __init__(self, folder: Path, last: int) -> None:
        self.passed, self._last, self._folder = 0, last, str(folder)
        sys.addaudithook(self._heard)
        connect = sqlite3.connect

        def connected(*given: Any, **options: Any) -> sqlite3.Connection:
            made = connect(*given, **options)
            made.set_trace_callback(self._stated)
            return made

        sqlite3.connect = sqlite3.dbapi2.connect = connected  # type: ignore[assignment]

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if event in WRITES:
            self._met(given[WRITES[event]])
        elif event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR):
            self._met(given[0])

    def _stated(self, statement: str) -> None:
        if statement.upper().startswith("COMMIT"):
            self._met(self._folder)

    def _met(self, path: Any) -> None:
        if not isinstance(path, int) and os.fsdecode(path).startswith(self._folder):
            self.passed += 1
            if self.passed == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


FORK = multiprocessing.get_context("fork")  # a child has all imported already


def forked(work: Callable[[], Any]) -> Any:
    """The result of a call in a process of its own, which keeps no connection for the next."""
    theirs, mine = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: mine.send(work()))
    process.start()
    mine.close()
    try:
        return theirs.recv()
    except EOFError:
        raise RuntimeError(f"{work} ended without a result") from None
    finally:
        process.join()


def killed(work: Callable[[], Any], home: Path, moment: int) -> bool:
    """Do something in a process of its own that is killed at a moment; whether it was."""

    def die() -> None:
        _Boundaries(home, moment)
        work()

    process = FORK.Process(target=die)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _bundles(folder: Path, number: int) -> tuple[dict[str, Path], tuple[Path, Path]]:
    """Tables and bundles of a version: its own tokenizer, policy, SIDs and titles, and the same purchases."""
    settings = TokenizerSettings(codebook_size=SIZE, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    torch.manual_seed(number)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder / "tokenizer", {"collision_rate_after": 0.0, "utilisation": [0.5]}, f"seed {number}")
    VERSIONS[number] = tokenizer.version
    for name, rows in _rows(number, ITEMS).items():
        _write(name, rows, folder / f"{name}.parquet")
    backbone = build(PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300), ITEMS, 3, SIZE, number)
    sids = pa.Table.from_pylist(_rows(number, ITEMS)["sids"], schema=SCHEMAS["sids"])
    described: dict[str, Any] = {"config": {"seed": number}, "metrics": {}}
    save_policy(folder / "policy", backbone, sids, codebook_size=SIZE, max_history=5, **described)
    return {name: folder / f"{name}.parquet" for name in TABLES}, (folder / "tokenizer", folder / "policy")


VERSIONS: dict[int, str] = {}
"""Tokenizers by version number."""


def _rows(number: int, items: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    codes = [[(i + number) % SIZE, i // SIZE, 0] for i in range(len(items))]
    fixed = {"moved": False, "tokenizer_version": VERSIONS[number]}
    return {
        "items": [_item(one, number, "first seen") for one in items],
        "captions": [{**MADE_BY, "item_id": one, "caption": f"{one} of {number}"} for one in items],
        "intents": [{**MADE_BY, "item_id": one, "surface": [], "motives": [], "descriptors": []} for one in items],
        "quality": [{**MADE_BY, "item_id": one, "labels": [], "score": 0.5} for one in items],
        "sids": [
            {"item_id": one, "sid": "_".join(map(str, row)), "codes": row, **fixed}
            for one, row in zip(items, codes, strict=True)
        ],
        "splits": _histories({"ann": ITEMS[:4], "bob": ITEMS[2:7]}),
    }


def _item(item_id: str, number: int, seen: str) -> dict[str, Any]:
    described = {"description": "", "categories": [], "attributes": [], "brand": "", "image_status": "none"}
    return {**described, "item_id": item_id, "title": f"{item_id} of {number}, {seen}", "image": None}


def _histories(bought: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [{"user_id": u, "train": list(h[:-2]), "validation": h[-2], "test": h[-1]} for u, h in bought.items()]


def _write(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), path)


def cases(stage: Stage, kind: Kind, count: int, seed: int) -> Iterator[tuple[int, Command, int]]:
    """Moments, the command that follows, and where it is killed."""
    draw, there = random.Random(f"{kind} {seed}"), stage.moments[kind]
    chosen = sorted(draw.sample(range(1, there + 1), min(count or there, there)))
    for place, moment in enumerate(chosen):
        yield moment, "serve", 0
        yield moment, OTHERS[place % len(OTHERS)], draw.randint(1, 20) if place % 3 == 2 else 0


def main(moments: int = 50, seed: int = 0, kinds: tuple[Kind, ...] = KINDS) -> None:
    """Print how many moments there were of each move, and after how many all parts agreed; fail where they did not.

    Args:
        moments: of each move, drawn from all there are; 0: all.
    """
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tessera-moves-") as folder:
        stage = make(Path(folder), kinds)
        for kind in kinds:
            started, tried, bad = time.monotonic(), 0, []
            for moment, then, kill_then in cases(stage, kind, moments, seed):
                tried += 1
                if found := at_moment(stage, kind, moment, then, kill_then):
                    bad.append((moment, then, kill_then, found))
                    print(f"    {kind}, moment {moment}, then {then} (killed at {kill_then}): {found}", flush=True)
            failed += len(bad)
            told = {"move": kind, "killed": tried, "agreed": tried - len(bad)}
            print(json.dumps(told | {"seconds": round(time.monotonic() - started)}), flush=True)
    if failed:
        raise SystemExit(f"the parts disagreed {failed} times.")


if __name__ == "__main__":
    tyro.cli(main)
