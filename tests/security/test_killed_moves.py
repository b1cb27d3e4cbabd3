"""Moves that die: the next command makes registry, features and release agree, and what serves is the champion."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.moves import KINDS, PLATFORM, Command, Kind, Stage, at_moment, forked, make, parts
from components.promote import moves, promotion
from serving.model_repository import export, newest
from serving.probe import ask
from serving.registry import Registry
from tessera.errors import ServiceError
from tessera.files import read_json

pytestmark = pytest.mark.integration
SOME: dict[Kind, tuple[float, Command]] = {
    "first": (0.6, "serve"), "promote": (0.7, "versions"), "rollback": (0.9, "precompute"), "refresh": (0.5, "promote"),
}  # fmt: skip
"""A moment of each move, as a share of all there are, and the next command; `python -m benchmarks.moves` takes 50."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return make(tmp_path_factory.mktemp("moves"))


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_next_command_all_parts_agree(stage: Stage, kind: Kind) -> None:
    share, then = SOME[kind]
    assert stage.moments[kind] > 20  # else the moments would not be the steps
    assert at_moment(stage, kind, int(share * stage.moments[kind]), then) == []


def promote_and_die(home: Path) -> None:
    """All steps of a promotion of version 2 but the last: version 1 stays champion."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Registry.promote = die  # type: ignore[assignment, method-assign]  # in a process of its own
    promotion.promote(home, PLATFORM, "2")


@pytest.fixture
def halfway(stage: Stage) -> Stage:
    """A home with the features and the release of a version that is not the champion."""
    stage.at(stage.starts["promote"])
    with pytest.raises(RuntimeError, match="ended without a result"):
        forked(partial(promote_and_die, stage.home))
    found = forked(partial(parts, stage.home))
    before, after = stage.agreed["promote"]
    assert (found["champion"], found["features"]) == (before["champion"], after["features"])
    assert newest(moves.models(stage.home)).policy_version == after["champion"]
    return stage


def test_a_rollback_of_a_promotion_that_died_ends_only_that(halfway: Stage) -> None:
    done = forked(partial(promotion.rollback, halfway.home, PLATFORM))
    assert (done["champion"], done["canary_ended"]) == ("1", "2")
    assert forked(partial(parts, halfway.home)) == halfway.agreed["promote"][0]


def test_versions_says_who_moves_and_does_not_wait(stage: Stage) -> None:
    stage.at(stage.starts["promote"])
    with moves.alone(stage.home):
        moves.begin(stage.home, moves.Move("promotion", "2"))
        started = time.monotonic()
        said = forked(partial(moves.glance, stage.home))
        assert time.monotonic() - started < 60  # as long as the lock is held it would wait for ever
    assert said == "another process is in the midst of the promotion of version 2; try again when it has ended."
    assert forked(partial(moves.glance, stage.home)) == ""
    assert forked(partial(parts, stage.home)) == stage.agreed["promote"][0]


@pytest.fixture
def serving(halfway: Stage, tmp_path: Path) -> Iterator[Path]:
    """`tessera serve` of such a home; its log."""
    log, tessera = tmp_path / "serve.log", Path(sys.executable).with_name("tessera")
    ports = [f"--platform.{name}-port=0" for name in ("http", "grpc", "metrics", "features")]
    with log.open("w") as output:
        process = subprocess.Popen([tessera, "serve", f"--home={halfway.home}", *ports], stdout=output, stderr=output)
    until(log, "stop with Ctrl-C", process)
    yield log
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def until(log: Path, words: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + 180
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        assert process is None or process.poll() is None, log.read_text()
        time.sleep(0.1)


def test_serve_answers_from_the_champion_and_comes_back_to_it(halfway: Stage, serving: Path) -> None:
    before, _ = halfway.agreed["promote"]
    url = f"http://127.0.0.1:{read_json(halfway.home / 'triton' / 'server.json')['http']}"
    assert [*vars(ask(url)).values()] == before["release"]
    # Triton loads the challenger before it becomes champion; where the promotion dies there, the server mends it.
    with pytest.raises(RuntimeError, match="ended without a result"):
        forked(partial(promote_and_die, halfway.home))
    until(serving, "the promotion of version 2 had died and was undone.")
    assert [*vars(ask(url)).values()] == before["release"]
    assert forked(partial(parts, halfway.home)) == before


def test_a_newest_release_that_is_not_the_champion_is_not_what_serves(stage: Stage) -> None:
    stage.at(stage.starts["promote"])
    export(stage.folder / "2" / "policy", moves.models(stage.home))  # by hand: no move is written down
    forked(partial(moves.put_in_place, stage.home, PLATFORM))
    assert forked(partial(parts, stage.home)) == stage.agreed["promote"][0]


def test_a_failed_move_that_cannot_be_put_back_is_left_to_the_next_command(stage: Stage) -> None:
    stage.at(stage.starts["promote"])

    def fail(*_: object, **__: object) -> None:
        raise ServiceError("the feature store is gone.")

    def promote() -> str:
        promotion.install.__globals__["publish"].run = fail  # in a process of its own
        with pytest.raises(ServiceError, match="the feature store is gone"):
            promotion.promote(stage.home, PLATFORM, "2")
        return moves.glance(stage.home)

    assert "the promotion of version 2 has died and could not be settled: the feature store is gone." in forked(promote)
    assert forked(partial(moves.glance, stage.home)) == ""
    assert forked(partial(parts, stage.home)) == stage.agreed["promote"][0]
