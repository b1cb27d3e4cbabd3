"""One platform made by the real command line, undisturbed, and one that was killed on the way; for all tests here."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import make_url

from benchmarks.redis_server import redis_binary, redis_server
from tessera.bundle import load_manifest
from tessera.files import read_json
from tessera.schema import read_table
from tessera.tokenizer.training import CHECKPOINT

TESSERA = Path(sys.executable).with_name("tessera")
ITEMS, USERS, TOKENIZER_EPOCHS, POLICY_EPOCHS = 72, 240, 60, 16
BATCH = 8
# Small, but the policy beats popularity and every step takes long enough to be killed in its middle.
SIZES = (
    f"--shop.items={ITEMS}", f"--shop.users={USERS}", f"--enrichment.batch-size={BATCH}",
    "--tokenizer.codebook-size=16", "--tokenizer.checkpoint-every=10",
    "--policy.hidden=64", "--policy.layers=2", "--policy.heads=2", "--policy.text-vocabulary=512",
    "--policy.patience=8", "--evaluation.beam=20",
)  # fmt: skip
FIRST = (*SIZES, f"--tokenizer.epochs={TOKENIZER_EPOCHS}", f"--policy.epochs={POLICY_EPOCHS}")
# Another tokenizer, of the grounded space, and a policy of hybrid SIDs: of several tasks, then by reinforcement
# learning. Its items' tokens are good before any training, so a rate far too high has it lose.
SECOND = (
    *SIZES, "--tokenizer.epochs=20", "--space=grounded", "--policy.hybrid-prefix=2", "--policy.epochs=1",
    "--policy.learning-rate=0.5", "--policy.tasks=next,intents_to_sid,caption_to_sid",
    "--alignment=grpo", "--grpo.bonus=quality", "--grpo.cases=16", "--grpo.batch=8", "--grpo.learning-rate=1e-6",
)  # fmt: skip
PATIENCE_S = 600.0
# What every command has in its environment; tests/pipelines/test_seeded_secrets.py looks for them in what is left.
SECRETS = {
    "OPENAI_API_KEY": "sk-seeded/openai+key",
    "TESSERA_KFP_TOKEN": "seeded-token-of-kubeflow",
    "TESSERA_NOTIFY_URL": "http://127.0.0.1:9/hooks/seeded-token-of-a-chat",
}


@dataclass(frozen=True)
class Platform:
    """A run's folder, its platform's home, and what one command said and left there; a later one may change it."""

    out: Path
    home: Path
    said: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    """Bundle versions of tokenizer and policy."""
    sids: dict[str, str] = field(default_factory=dict)
    """Item id -> SID."""

    def now(self, said: str) -> "Platform":
        """With what there is at this moment."""
        table = read_table("sids", self.out / "sids.parquet")
        return Platform(
            self.out, self.home, said, read_json(self.out / "metrics.json"),
            tuple(load_manifest(self.out / kind, kind).version for kind in ("tokenizer", "policy")),
            dict(zip(table["item_id"].to_pylist(), table["sid"].to_pylist(), strict=True)),
        )  # fmt: skip

    def ledger(self) -> list[tuple[Any, ...]]:
        """Every answer of a model, with the time at which it was written down."""
        names = "kind, item_id, content_hash, model, prompt_version, status, recorded_at, length(payload)"
        return _query(self.home, f"SELECT {names} FROM enrichments ORDER BY kind, item_id, content_hash")

    def calls(self) -> dict[str, int]:
        """Answers in the ledger by kind."""
        return dict(_query(self.home, "SELECT kind, count(*) FROM enrichments WHERE status = 'ok' GROUP BY kind"))


def _query(home: Path, statement: str) -> list[Any]:
    path = home / "catalogue.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
        try:
            return database.execute(statement).fetchall()
        except sqlite3.OperationalError:  # not migrated yet
            return []


@dataclass
class Command:
    """`tessera run training` on a platform; its children are in a process group of their own."""

    platform: Platform
    arguments: tuple[str, ...]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        where = f"--out={self.platform.out}", f"--platform.home={self.platform.home}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(TESSERA), "run", "training", *where, *self.arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=self.platform.out.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | SECRETS | self.environment,  # two commands run side by side
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def ended(self) -> Platform:
        """Wait for a good end."""
        assert self.process.wait(PATIENCE_S) == 0, self.said()
        return self.platform.now(self.said())

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """SIGKILL the command and all its children once `reached`."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, f"it ended before it could be killed:\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Killed:
    """A platform whose run was killed three times, and what was there just after each kill and at the end."""

    platform: Platform
    captions: list[tuple[Any, ...]]
    checkpoint: bool
    policy_epoch: int
    ledger: list[tuple[Any, ...]]
    log: str


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Killed]]:
    """The undisturbed run and, beside it, the killed one: the same command, on a platform of its own."""
    folder = tmp_path_factory.mktemp("platforms")
    calm, hurt = (Platform(folder / name / "run", folder / name / "home") for name in ("calm", "hurt"))
    for platform in (calm, hurt):
        platform.out.parent.mkdir()
    started = [Command(calm, FIRST, folder / "calm.log")]
    try:
        yield _run_both(started, hurt, folder)
    finally:
        for command in started:
            command.kill()


def _run_both(started: list[Command], hurt: Platform, folder: Path) -> tuple[Platform, Killed]:
    work = hurt.out / "work"
    checkpoint, state = work / "tokenizer" / CHECKPOINT, work / "policy" / "state.json"

    def start(number: int) -> Command:
        started.append(Command(hurt, FIRST, folder / f"hurt-{number}.log"))
        return started[-1]

    start(1).kill_when(lambda: hurt.calls().get("caption", 0) >= 2 * BATCH)
    captions = hurt.ledger()
    start(2).kill_when(checkpoint.exists)
    left = checkpoint.exists()
    start(3).kill_when(state.exists)
    epoch = int(read_json(state)["epoch"])
    end = start(4).ended()
    log = (hurt.out / "run.log").read_text(encoding="utf-8")
    return started[0].ended(), Killed(end, captions, left, epoch, end.ledger(), log)


@pytest.fixture(scope="session")
def calm(both: tuple[Platform, Killed]) -> Platform:
    """The undisturbed run."""
    return both[0]


@pytest.fixture(scope="session")
def killed(both: tuple[Platform, Killed]) -> Killed:
    """The run that was killed in captions, in the tokenizer's fit and in SFT, and was started again each time."""
    return both[1]


@pytest.fixture(scope="session")
def later(both: tuple[Platform, Killed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, ...]]:
    """Side by side: the undisturbed command again, and on the other platform a second tokenizer and policy."""
    folder = tmp_path_factory.mktemp("later")
    commands = [
        Command(both[0], FIRST, folder / "again.log"),
        Command(both[1].platform, SECOND, folder / "second.log"),
    ]
    try:
        yield tuple(command.ended() for command in commands)
    finally:
        for command in commands:
            command.kill()


@pytest.fixture(scope="session")
def command_secrets() -> dict[str, str]:
    """What every command here has in its environment and must tell nobody."""
    return SECRETS


def with_password(url: str, password: str) -> str:
    """The URL with a password: the tests' PostgreSQL, which trusts its own machine, takes any."""
    return make_url(url).set(password=password).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def on_servers(
    new_database: Callable[[], str],
    mlflow_server: dict[str, str],
    feast_environment: Callable[[str, str], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Platform, dict[str, str]]]:
    """The undisturbed run's command on PostgreSQL, Redis, MLflow and an object store, and the variables that say so."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server")
    folder = tmp_path_factory.mktemp("servers")
    with redis_server(binary, folder) as redis:
        host, port = redis.split(":")
        with Redis(host, int(port)) as server:
            server.config_set("requirepass", "seeded-password-of-redis")
        feast = feast_environment(with_password(new_database(), "seeded/password+of feast"), redis)
        feast["FEAST_REDIS"] += ",password=seeded-password-of-redis"
        catalogue = with_password(new_database(), "seeded/password+of the=catalogue")
        chosen = {"TESSERA_CATALOGUE_URL": catalogue, **mlflow_server, **feast}
        command = Command(Platform(folder / "run", folder / "home"), FIRST, folder / "run.log", chosen)
        try:
            yield command.ended(), chosen
        finally:
            command.kill()
