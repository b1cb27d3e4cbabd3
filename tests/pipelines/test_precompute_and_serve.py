"""`tessera precompute`, and `tessera serve` asked by `tessera recommend`, on a small platform made without training."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.precompute import precomputing
from components.precompute.precomputing import precompute
from feature_repo import lookup, publish, writer
from feature_repo.store import open_store
from pipelines.cli import main
from serving.aliases import POLICY, registered
from serving.model_repository import export
from serving.registry import Registry
from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender as Engine
from tessera.errors import InputError
from tessera.files import read_json
from tessera.policy import backbone as backbones
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table

pytestmark = pytest.mark.integration
TESSERA = Path(sys.executable).with_name("tessera")
ITEMS = [f"item,{number}" for number in range(40)]  # an id may hold what a list of ids would be split at
USERS = {f"u{number}": [ITEMS[(number * 7 + step) % 37] for step in range(number % 6 + 1)] for number in range(30)}
SETTINGS = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0)
MADE_BY = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}
ONE_LIST = 20


def sids() -> pa.Table:
    codes = [[number % 8, number // 8, number % 3] for number in range(len(ITEMS))]
    rows = [
        {"item_id": item, "sid": "_".join(map(str, row)), "codes": row, "moved": False, "tokenizer_version": "tok-1"}
        for item, row in zip(ITEMS, codes, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["sids"])


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two policies over one catalogue; neither was trained, and they recommend otherwise."""
    folders = [tmp_path_factory.mktemp("policies") / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        backbone = backbones.build(SETTINGS, ITEMS, 3, 8, seed)
        save_policy(folder, backbone, sids(), codebook_size=8, max_history=5, config={"seed": seed}, metrics={})
    return folders


Tables = dict[str, Path]


def tables(folder: Path, users: dict[str, list[str]]) -> Tables:
    item = {"description": "", "categories": [], "attributes": [], "brand": "acme", "image_status": "none"}
    rows = {
        "items": [{**item, "item_id": i, "title": f"Title {i}", "image": None} for i in ITEMS],
        "captions": [{**MADE_BY, "item_id": i, "caption": "a photo"} for i in ITEMS],
        "intents": [{**MADE_BY, "item_id": i, "surface": [], "motives": [], "descriptors": []} for i in ITEMS],
        "quality": [{**MADE_BY, "item_id": i, "labels": [], "score": 0.5} for i in ITEMS],
        "splits": [{"user_id": user, "train": history} for user, history in users.items()],
    }
    made = {name: pa.Table.from_pylist(content, schema=SCHEMAS[name]) for name, content in rows.items()}
    for name, table in {**made, "sids": sids()}.items():
        write_table(name, table, folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in (*made, "sids")}


def promote(home: Path, folder: Path, policy: Path, users: dict[str, list[str]] = USERS) -> Engine:
    """What a promotion leaves: features of the policy in Feast, its release, and the alias."""
    engine = Engine.load(policy)
    publish.run(home, **tables(folder, users), policy_version=engine.policy_version)
    export(policy, home / "triton" / "models", threads=1)
    client = Registry(home).client
    if registered(client, POLICY) is None:
        client.create_registered_model(POLICY)
    tags = {"bundle_version": engine.policy_version, "tokenizer_version": "tok-1"}
    made = client.create_model_version(POLICY, str(policy), tags=tags)
    client.set_registered_model_alias(POLICY, "champion", made.version)
    return engine


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def online(home: Path, users: dict[str, list[str]] = USERS) -> dict[str, lookup.User]:
    return {user.user_id: user for user in lookup.users(open_store(home), list(users))}


def assert_lists(home: Path, engine: Engine, histories: dict[str, list[str]] = USERS) -> None:
    """Every user's list is what the policy says of the history, bought items left out, and not stale."""
    found = online(home, histories)
    for (user, history), expected in zip(
        histories.items(), engine.recommend(list(histories.values()), ONE_LIST), strict=True
    ):
        top_k = found[user].top_k
        assert top_k is not None
        assert top_k.item_ids == [one.item_id for one in expected]
        assert not set(history) & set(top_k.item_ids)
        assert top_k.sids == [one.sid for one in expected]
        assert top_k.scores == pytest.approx([one.score for one in expected], abs=1e-4)
        assert (top_k.policy_version, top_k.tokenizer_version) == (engine.policy_version, "tok-1")
        assert not top_k.stale


def test_every_user_is_decoded_and_later_only_who_needs_it(home: Path, tmp_path: Path, policies: list[Path]) -> None:
    users = {**USERS, "stranger": ["gone-1", "gone-2"]}
    engine = promote(home, tmp_path, policies[0], users)
    done = precompute(home, batch_size=8, chunk=12)
    assert {name: done[name] for name in ("users", "decoded", "fresh", "unknown")} == {
        "users": 31, "decoded": 30, "fresh": 0, "unknown": 1,
    }  # fmt: skip
    assert done["policy_version"] == engine.policy_version
    assert_lists(home, engine)
    assert online(home, users)["stranger"].top_k is None

    assert precompute(home)["decoded"] == 0
    bought = [*USERS["u3"], ITEMS[39]]
    assert publish.push_history(home, "u3", [ITEMS[39]]) == bought
    publish.push_history(home, "new", [ITEMS[5]])
    done = precompute(home)
    assert (done["decoded"], done["fresh"]) == (2, 29)
    assert_lists(home, engine, {**USERS, "u3": bought, "new": [ITEMS[5]]})

    other = promote(home, tmp_path, policies[1], users)
    assert all(user.top_k is not None and user.top_k.stale for user in online(home).values())
    done = precompute(home, chunk=10)
    assert (done["decoded"], done["policy_version"]) == (31, other.policy_version)
    assert_lists(home, other, {**USERS, "u3": bought, "new": [ITEMS[5]]})
    assert engine.recommend([bought], 5) != other.recommend([bought], 5)
    assert precompute(home, everyone=True)["decoded"] == 31


def test_a_killed_run_goes_on_where_it_was(
    home: Path, tmp_path: Path, policies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    many = {f"user-{number:03}": [ITEMS[number % 37], ITEMS[number % 11]] for number in range(400)}
    engine = promote(home, tmp_path, policies[0], many)
    command = [str(TESSERA), "precompute", f"--home={home}", "--chunk=10"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while writer.published(home / "feast", "user_topk").num_rows < 30:  # two chunks are online, the third is on its way
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = sum(user.top_k is not None for user in online(home, many).values())
    assert 20 <= there < 400
    capsys.readouterr()
    main(["precompute", f"--home={home}"])
    said = capsys.readouterr()
    assert f"{400 - there} of 400 users decoded with policy {engine.policy_version}, {there} lists were" in said.out
    assert "400/400" in said.err  # the bar
    assert_lists(home, engine, many)


def test_what_cannot_be_precomputed(
    home: Path, tmp_path: Path, policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(home, tmp_path, policies[0])
    for wrong in ({"k": 0}, {"batch_size": 0}, {"chunk": -1}):
        with pytest.raises(InputError, match="must be at least 1"):
            precompute(home, **wrong)
    # A promotion that began meanwhile: lists of the policy that is on its way out are not accepted.
    monkeypatch.setattr(precomputing, "put_in_place", lambda *_: None)
    publish.run(home, **tables(tmp_path, USERS), policy_version="next")
    with pytest.raises(InputError, match="but policy next serves"):
        precompute(home)
    assert all(user.top_k is None for user in online(home).values())


@pytest.fixture
def serve(home: Path, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """`tessera serve` as a process of its own on free ports."""
    started: list[Server] = []

    def start() -> Server:
        started.append(Server(home, tmp_path / "serve.log"))
        return started[-1]

    yield start
    for server in started:
        server.end()


class Server:
    """A running `tessera serve`."""

    def __init__(self, home: Path, log: Path) -> None:
        with socket.socket() as a, socket.socket() as b, socket.socket() as c, socket.socket() as d:
            for one in (a, b, c, d):
                one.bind(("127.0.0.1", 0))
            self.http, self.grpc, metrics, self.features = (one.getsockname()[1] for one in (a, b, c, d))
        ports = {"http": self.http, "grpc": self.grpc, "metrics": metrics, "features": self.features}
        command = [str(TESSERA), "serve", f"--home={home}"]
        command += [f"--platform.{name}-port={port}" for name, port in ports.items()]
        self.home, self.log = home, log
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self.wait_for("stop with Ctrl-C", 120)

    def wait_for(self, words: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def told(capsys: pytest.CaptureFixture[str], server: Server, *arguments: str, protocol: str = "grpc") -> list[str]:
    port = server.grpc if protocol == "grpc" else server.http
    where = f"--url=127.0.0.1:{port}", f"--features-url=127.0.0.1:{server.features}", f"--protocol={protocol}"
    capsys.readouterr()
    main(["recommend", *arguments, *where])
    return capsys.readouterr().out.splitlines()


def test_a_platform_serves_survives_and_stops(
    home: Path, tmp_path: Path, policies: list[Path], serve: Callable[[], Server], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = promote(home, tmp_path, policies[0])
    precompute(home)
    server = serve()
    header = f"policy {engine.policy_version}, tokenizer tok-1"
    (expected,) = engine.recommend([USERS["u4"]], 3)
    by_user = told(capsys, server, "--user=u4", "--k=3")
    assert by_user[0] == header
    assert [line.split()[:3] for line in by_user[1:]] == [
        [str(place), one.item_id, one.sid] for place, one in enumerate(expected, 1)
    ]
    history = [f"--history={item}" for item in USERS["u4"]]
    assert len(history) > 1
    assert told(capsys, server, *history, "--k=3", protocol="http") == by_user

    # kill -9: from the cache meanwhile, and within 15 seconds from the policy again, on the same ports.
    killed = time.monotonic()
    os.kill(read_json(home / "triton" / "server.json")["pid"], signal.SIGKILL)
    cached = told(capsys, server, "--user=u4", "--k=3")
    assert re.fullmatch(f"{header}; from the cache, because the server failed, computed [0-9]+ s ago", cached[0])
    assert cached[1:] == by_user[1:]
    publish.push_history(home, "u4", [expected[0].item_id])
    cached = told(capsys, server, "--user=u4", "--k=2")
    assert cached[0].endswith(" ago, out of date")
    assert [line.split()[1] for line in cached[1:]] == [one.item_id for one in expected[1:]]
    while "cache" in told(capsys, server, "--user=u4")[0]:
        assert time.monotonic() - killed < 15, server.log.read_text()
        time.sleep(0.2)
    (expected,) = engine.recommend([[*USERS["u4"], expected[0].item_id]], 3)
    now = told(capsys, server, "--user=u4", "--k=3", protocol="http")
    assert [line.split()[1] for line in now[1:]] == [one.item_id for one in expected]

    assert server.end() == 128 + signal.SIGTERM
    assert server.log.read_text().rstrip().endswith("stopped.")
    with pytest.raises(SystemExit):
        told(capsys, server, "--user=u4")
    said = capsys.readouterr().err
    assert said.startswith("tessera: no server answers at ")
    assert "nor could the user be looked up: no server answers at " in said
