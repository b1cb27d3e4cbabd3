"""Three real Tritons that follow a real MLflow server: a canary that is promoted, and several that are not."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving import canary, journal, newer_sids, rollout
from serving.model_repository import newest
from serving.probe import Served, ask
from serving.registry import Registry
from serving.rollout import roll_out
from serving.server import TritonServer
from serving.sync import Follower
from tessera import bundle
from tessera.config import PolicySettings, TokenizerSettings
from tessera.decoding.recommender import Recommender as Engine
from tessera.errors import BundleError, InputError
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer
from tessera_rec_client import Recommender, TesseraClientError
from tests.background import Background

# Replicas load at the lowest priority: beside tests that take all cores that lasts long.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
ITEMS = [f"item{i}" for i in range(60)]
LEVELS, SIZE, HISTORY = 3, 8, 5
GOOD, OTHER, ERRING = "1", "2", "3"
QUICK: dict[str, Any] = {"watch_s": 2.0, "max_latency_ratio": 50.0, "load_s": 900.0, "who": "ann"}


def sids_of(tokenizer: str, shift: int, count: int = len(ITEMS)) -> pa.Table:
    """SIDs of one tokenizer; with another shift every item has another one."""
    codes = [[(i + shift) % SIZE, i // SIZE, i % 3] for i in range(count)]
    rows = [
        {"item_id": f"item{i}", "sid": "_".join(map(str, row)), "codes": row, "moved": False,
         "tokenizer_version": tokenizer}
        for i, row in enumerate(codes)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMAS["sids"])


def tokenizer_bundle(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    settings = TokenizerSettings(codebook_size=SIZE, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=3)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder, {"collision_rate_after": 0.0, "utilisation": [0.5]}, f"seed {seed}")
    return tokenizer.version


def policy_bundle(folder: Path, sids: pa.Table, seed: int) -> Path:
    torch.manual_seed(seed)
    backbone = build(PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300), ITEMS, LEVELS, SIZE, seed)
    torch.nn.init.normal_(backbone.model.get_input_embeddings().weight)
    save_policy(folder, backbone, sids, codebook_size=SIZE, max_history=HISTORY, config={"seed": seed}, metrics={})
    return folder


def erring_bundle(folder: Path, good: Path) -> Path:
    """Whole by its manifest, it loads, warms up and answers probes; but its index numbers items that do not exist.

    Only those that a warm-up or a probe recommends are right, so nearly every real request fails.
    """
    engine = Engine.load(good)
    shown = [engine.recommend([ITEMS[:HISTORY]], 10, exclude_history=False), engine.recommend([ITEMS[:1]], 10)]
    right = {one.item_id for answer in shown for one in answer[0]}
    manifest = bundle.load_manifest(good, "policy")

    def write(staging: Path) -> None:
        for name in manifest.files:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes((good / name).read_bytes())
        arrays = load_file(good / "index.safetensors")
        wrong = torch.from_numpy(~np.isin(ITEMS, list(right)))[arrays["item"].long()]
        arrays["item"] = torch.where(wrong, arrays["item"] + 1000, arrays["item"])
        save_file(arrays, staging / "index.safetensors")

    bundle.save(
        folder, "policy", write, config={"seed": "erring"}, metrics={}, parent=manifest.parent, extra=manifest.extra
    )
    return folder


def free_ports(count: int) -> int:
    """The first of so many neighbours that are free."""
    while True:
        with ExitStack() as stack:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            first: int = one.getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return first


def wait_until(condition: Any, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class MlflowServer:
    """`mlflow server`, which hands the artefacts out itself."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1",
            f"--backend-store-uri=sqlite:///{self.folder / 'mlflow.db'}",
            f"--artifacts-destination={self.folder / 'artefacts'}",
        ]  # fmt: skip
        # Without the six processes that wait for jobs which nobody here has.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers)

    def stop(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "mlflow.log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass
class Shop:
    """A registry with three policies, the first of them champion."""

    registry: Registry
    sids: dict[str, dict[str, str]]
    """Policy version -> item -> SID."""
    tokenizers: dict[str, str]


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("bundles")
    registry = Registry(folder / "home", mlflow_server.url)
    tokenizers = [tokenizer_bundle(folder / f"t{seed}", seed) for seed in (1, 2)]
    tables = [sids_of(tokenizer, shift) for shift, tokenizer in enumerate(tokenizers)]
    policies = [policy_bundle(folder / f"p{seed}", table, seed) for seed, table in enumerate(tables)]
    policies.append(erring_bundle(folder / "erring", policies[1]))
    for seed in (1, 2):
        registry.register_tokenizer(folder / f"t{seed}")
    versions = [registry.register_policy(one) for one in policies]
    assert versions == [GOOD, OTHER, ERRING]
    names = [bundle.load_manifest(one, "policy").version for one in policies]
    which = [0, 1, 1]
    return Shop(
        registry,
        {n: dict(zip(tables[w]["item_id"].to_pylist(), tables[w]["sid"].to_pylist(), strict=True))
         for n, w in zip(names, which, strict=True)},
        {n: tokenizers[w] for n, w in zip(names, which, strict=True)},
    )  # fmt: skip


@dataclass
class Fleet:
    """Three replicas, each a Triton and its follower."""

    servers: list[TritonServer]
    followers: list[Follower]

    @property
    def urls(self) -> list[str]:
        return [one.http_url for one in self.servers]

    def policies(self) -> list[str]:
        return [ask(url).policy_version for url in self.urls]


@pytest.fixture(scope="module")
def fleet(shop: Shop, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert roll_out(shop.registry, GOOD, [], who="ann").promoted  # a first champion is not tried
    ended = threading.Event()
    folders = [tmp_path_factory.mktemp(f"replica{number}") for number in range(3)]

    def start(number: int) -> tuple[TritonServer, Follower]:
        folder, port = folders[number], free_ports(3)

        def follower(url: str) -> Follower:
            home = folder / "sync"
            return Follower(lambda: Registry(home, mlflow_server.url), number, folder / "models", url, workers=1)

        assert follower("").look() == "waiting"
        ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
        server = TritonServer(folder / "models", startup_s=600, **ports).start()
        return server, follower(server.http_url)

    def follow(one: Follower) -> None:
        while not ended.wait(1.0):
            one.look()

    with ThreadPoolExecutor(3) as pool:
        started = list(pool.map(start, range(3)))
    fleet = Fleet([server for server, _ in started], [one for _, one in started])
    threads = [threading.Thread(target=follow, args=(one,)) for one in fleet.followers]
    for thread in threads:
        thread.start()
    yield fleet
    ended.set()
    for thread in threads:
        thread.join()
    for server in fleet.servers:
        server.stop()


@dataclass
class Traffic(Background):
    """Clients that ask all replicas in turn, as behind one Service; by url what answered and what failed."""

    fleet: Fleet
    callers: Iterable[int] = range(2)
    answers: list[Any] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, caller: int) -> None:
        rng = np.random.default_rng(caller)
        with ExitStack() as stack:
            clients = [
                (server.http_url, stack.enter_context(Recommender(server.grpc_url, timeout=20)))
                for server in self.fleet.servers
            ]
            for url, client in itertools.cycle(clients):
                if self.done.is_set():
                    return
                try:
                    self.answers.append(client.recommend(rng.choice(ITEMS, 3).tolist(), k=10))
                except TesseraClientError as error:
                    self.failures.append((url, str(error)))
                self.done.wait(0.1)


def assert_whole(traffic: Traffic, shop: Shop) -> None:
    """Every answer's items have the SIDs of the tokenizer, and the tokenizer is that of the policy."""
    for answer in traffic.answers:
        assert answer.tokenizer_version == shop.tokenizers[answer.policy_version]
        assert [one.sid for one in answer.items] == [shop.sids[answer.policy_version][i.item_id] for i in answer.items]
        assert len(answer.items) == 10


def bundle_of(shop: Shop, number: str) -> str:
    return shop.registry.resolve(number).bundle_version


def test_a_challenger_that_errs_is_rolled_back_by_itself_under_traffic(shop: Shop, fleet: Fleet) -> None:
    with Traffic(fleet) as traffic:
        outcome = roll_out(shop.registry, ERRING, fleet.urls, why="a try", **QUICK)
        assert not outcome.promoted
        assert "of its requests failed" in outcome.reason
        assert "the policy failed on this request (IndexError)" in outcome.reason
        wait_until(lambda: fleet.policies() == [bundle_of(shop, GOOD)] * 3)
        failed = len(traffic.failures)
        time.sleep(1)
    assert {url for url, _ in traffic.failures} == {fleet.urls[0]}  # only what a third of the callers met
    assert len(traffic.failures) == failed
    assert_whole(traffic, shop)
    aliases = shop.registry.aliases()
    assert (aliases.champion, aliases.canary) == (GOOD, None)
    (entry,) = journal.entries(shop.registry.resolve(ERRING).tags)
    assert (entry.outcome, entry.who, entry.why, entry.detail) == ("rolled back", "ann", "a try", outcome.reason)


def test_one_that_is_too_slow_is_rolled_back(
    shop: Shop, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "NOTICEABLE_S", -1.0)
    outcome = roll_out(shop.registry, OTHER, fleet.urls, **QUICK | {"max_latency_ratio": 0.01})
    assert not outcome.promoted
    assert "a request takes" in outcome.reason
    wait_until(lambda: fleet.policies() == [bundle_of(shop, GOOD)] * 3)


def test_taking_the_canary_away_by_hand_ends_a_roll_out(shop: Shop, fleet: Fleet) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(roll_out, shop.registry, OTHER, fleet.urls, **QUICK)
        wait_until(lambda: shop.registry.aliases().canary == OTHER)
        shop.registry.set_canary(None)
        outcome = running.result()
    assert not outcome.promoted
    assert "taken away by hand" in outcome.reason
    wait_until(lambda: fleet.policies() == [bundle_of(shop, GOOD)] * 3)


def test_a_good_challenger_ends_as_champion_of_all_without_a_failed_or_mixed_answer(shop: Shop, fleet: Fleet) -> None:
    """What a roll-out that died has left, a canary on one replica, is taken away first."""
    canary.announce(shop.registry, shop.registry.resolve(ERRING))
    canary.raise_to(shop.registry, shop.registry.resolve(ERRING), 1, 3)
    wait_until(lambda: fleet.policies()[0] == bundle_of(shop, ERRING))
    shop.registry.set_challenger(OTHER)
    seen: list[list[str]] = []
    with Traffic(fleet) as traffic:
        outcome = roll_out(
            shop.registry, "challenger", fleet.urls, **QUICK, publish=lambda: seen.append(fleet.policies())
        )
        assert outcome.promoted, outcome.reason
        policy = bundle_of(shop, OTHER)
        assert seen == [[policy] * 3]  # what moves with it moves when all replicas have it
        time.sleep(1)
        assert fleet.policies() == [policy] * 3
    assert [one for one in traffic.failures if "IndexError" not in one[1]] == []
    assert_whole(traffic, shop)
    assert len({one.policy_version for one in traffic.answers}) > 1
    aliases = shop.registry.aliases()
    assert (aliases.champion, aliases.previous, aliases.canary, aliases.challenger) == (OTHER, GOOD, None, None)
    again = roll_out(shop.registry, OTHER, fleet.urls)
    assert again.promoted
    assert "already" in again.reason
    written = journal.history(shop.registry.versions())
    told = [(version.version, entry.outcome) for version, entry in written]
    assert told == [(GOOD, "promoted"), (ERRING, "rolled back"), *[(OTHER, "rolled back")] * 2, (OTHER, "promoted")]


@pytest.mark.usefixtures("fleet")
def test_what_cannot_be_rolled_out(shop: Shop) -> None:
    with pytest.raises(InputError, match="no replica of Triton"):
        roll_out(shop.registry, ERRING, [])
    with pytest.raises(InputError, match="has no version '9'"):
        roll_out(shop.registry, "9", ["http://127.0.0.1:9"])


def test_newer_sids_reach_every_replica(shop: Shop, fleet: Fleet, tmp_path: Path) -> None:
    version = shop.registry.resolve("champion")
    table = sids_of(version.tokenizer_version, 1, len(ITEMS) + 3)
    write_table("sids", table, tmp_path / "sids.parquet")
    newer_sids.publish(shop.registry, version, tmp_path / "sids.parquet")
    index = newer_sids.index_version(shop.registry.resolve("champion"))
    assert index is not None
    wait_until(lambda: [ask(url) for url in fleet.urls] == [Served(version.bundle_version, index)] * 3)
    write_table("sids", sids_of("another", 1), tmp_path / "other.parquet")
    with pytest.raises(BundleError, match="append to the SIDs of its own tokenizer"):
        newer_sids.publish(shop.registry, version, tmp_path / "other.parquet")


def test_a_registry_that_is_away_changes_nothing(
    fleet: Fleet, mlflow_server: MlflowServer
) -> None:
    def all_well() -> bool:
        return all(one.seen.in_place and one.seen.registry_up for one in fleet.followers)

    before = fleet.policies()
    wait_until(all_well)
    mlflow_server.stop()
    try:
        wait_until(lambda: not any(one.seen.registry_up for one in fleet.followers))
        assert fleet.policies() == before
        assert newest(fleet.servers[0].repository).policy_version == before[0]
    finally:
        mlflow_server.start()
    wait_until(all_well)
    assert fleet.followers[0].seen.serving == ask(fleet.urls[0])


@pytest.mark.usefixtures("fleet")
def test_the_sidecar_as_a_command(shop: Shop, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """Before Triton it ends when there is something to start with; beside it, it goes on until it is told to end."""
    repository, port = tmp_path / "models", free_ports(1)
    command = [sys.executable, "-m", "serving.sync", f"--repository={repository}", f"--registry={mlflow_server.url}"]
    command += ["--poll=0.2"]
    once = subprocess.run(
        [*command, "--ordinal=1", "--once"], capture_output=True, text=True, check=False, timeout=300
    )
    assert (once.returncode, len(once.stderr.splitlines())) == (0, 1), once.stderr
    champion = shop.registry.resolve("champion")
    assert newest(repository).policy_version == champion.bundle_version
    beside = subprocess.Popen(
        [*command, "--ordinal=1", "--url=http://127.0.0.1:9", f"--metrics-port={port}"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        def counted() -> bool:
            try:
                found = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
            except httpx.HTTPError:
                return False
            return "tessera_sync_registry_up 1.0" in found and "tessera_sync_in_place 0.0" in found

        wait_until(counted)
        beside.send_signal(signal.SIGTERM)
        said = beside.communicate(timeout=300)[1].splitlines()
    finally:
        beside.kill()
    assert beside.returncode == 0
    assert len(said) == 1, said
    named = f"version {champion.version} (policy {champion.bundle_version})"
    assert said[0].endswith(f"{named} is in the repository; no Triton answers yet.")
