"""The chain through the command line: run, run again, kill, look up, serve, promote and roll back under traffic."""

import itertools
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.serve import servers
from serving.model_repository import releases
from serving.registry import Registry
from tessera.bundle import load_manifest
from tessera.catalog.database import Catalogue
from tessera.config import PlatformSettings
from tessera.decoding.recommender import Recommender as Engine
from tessera.files import read_json, sha256_file
from tessera.schema import read_table
from tessera.tokenizer.bundle import GROUNDING
from tessera_rec_client import Features, Recommendations, Recommender
from tests.background import Background

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1200)]
KINDS = ("caption", "intents", "quality", "text_embedding", "image_embedding")
COUNTED = ("captions", "intents", "quality", "text_embeddings", "image_embeddings", "knowledge_embeddings")
KS = (1, 5, 10, 20)
CACHED = 15  # steps but fill-catalogue, register, gate-policy, promote, and the report, which tells of them


def test_metrics_hold_every_number(calm: Any) -> None:
    metrics = calm.metrics
    for measure in ("hr", "ndcg"):
        values = [metrics[f"{measure}@{k}"] for k in KS]
        assert values == sorted(values)
        assert 0 < values[-1] <= 1
    assert metrics["hr@1"] == metrics["ndcg@1"]
    assert metrics["hr@10"] > metrics["popularity_hr@10"] > 0
    assert metrics["invalid_rate"] == 0
    assert metrics["collision_rate_after"] == 0 <= metrics["collision_rate_before"] < 1
    assert len(metrics["utilisation"]) == 3
    assert all(0 < share <= 1 for share in metrics["utilisation"])
    items = read_table("items", calm.out / "catalogue" / "items.parquet").num_rows
    users = read_table("splits", calm.out / "catalogue" / "splits.parquet").num_rows
    assert (metrics["items"], metrics["users"]) == (items, users)
    assert metrics["model_calls"] == dict.fromkeys(COUNTED, items) | {"knowledge_embeddings": 0}
    steps = {"ingest", "caption", "mine-intents", "label-quality", "embed", "fit-tokenizer", "train-policy"}
    steps |= {"align-policy", "evaluate"}
    assert steps <= set(metrics["seconds"])
    assert sum(metrics["seconds"][step] for step in steps) < metrics["seconds"]["total"]
    assert (metrics["tokenizer_version"], metrics["policy_version"]) == calm.versions
    assert metrics["promotion"]["passed"]
    assert "is the first" in calm.said


def test_sids_are_unique_and_of_the_catalogue(calm: Any) -> None:
    items = read_table("items", calm.out / "catalogue" / "items.parquet")["item_id"].to_pylist()
    assert sorted(calm.sids) == sorted(items)
    assert len(set(calm.sids.values())) == len(items)


def test_the_report_is_one_page_with_photos(calm: Any) -> None:
    page = (calm.out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:|//|/)""", page)
    assert page.count("data:image/") > 10
    for told in (calm.versions[1], f"{calm.metrics['hr@10']:.4f}"[:5]):
        assert told in page


def test_the_ledger_holds_one_answer_an_item_and_kind(calm: Any) -> None:
    assert calm.calls() == dict.fromkeys(KINDS, calm.metrics["items"])


def test_the_same_command_calls_no_model_and_says_so(calm: Any, later: tuple[Any, ...]) -> None:
    again = later[0]
    assert "no enrichment model was called: nothing was new." in again.said
    assert "no enrichment model was called" not in calm.said
    assert len(re.findall("reused from an earlier run", again.said)) >= CACHED
    assert again.metrics["model_calls"] == dict.fromkeys(COUNTED, 0)
    assert {"ingest", "caption", "mine-intents", "embed", "fit-tokenizer", "train-policy", "align-policy"} <= set(
        again.metrics["reused_steps"]
    )
    assert "is the champion already" in again.said
    assert [one.version for one in Registry(again.home).versions()] == ["1", "1"]  # a policy and a tokenizer, once


class TestKilled:
    """kill -9 in the middle, then the same command."""

    def test_in_captions_finished_calls_are_not_repeated(self, killed: Any) -> None:
        before, items = killed.captions, killed.platform.metrics["items"]
        assert 0 < len(before) < items  # it was in the middle
        assert len(before) % 8 == 0  # whole batches
        # The rows of before, with the times at which they were written, are rows of now.
        assert set(before) < set(killed.ledger)
        (stats,) = [read_json(path) for path in killed.platform.out.glob("artifacts/*/caption/stats")]
        assert (stats["reused"], stats["model_calls"]) == (len(before), items - len(before))

    def test_in_the_tokenizers_fit_it_goes_on_from_the_checkpoint(self, killed: Any) -> None:
        assert killed.checkpoint
        assert "the tokenizer's fit continues at epoch" in killed.log

    def test_in_sft_it_goes_on_from_the_checkpoint(self, killed: Any) -> None:
        assert 0 < killed.policy_epoch < 16
        assert "resuming policy training after epoch" in killed.log

    def test_it_ends_as_the_undisturbed_run_does(self, calm: Any, killed: Any) -> None:
        assert killed.platform.versions == calm.versions
        assert killed.platform.sids == calm.sids
        timeless = {"seconds", "model_calls", "reused", "reused_steps"}
        assert {k: v for k, v in killed.platform.metrics.items() if k not in timeless} == {
            k: v for k, v in calm.metrics.items() if k not in timeless
        }

    def test_each_item_was_asked_once(self, calm: Any, killed: Any) -> None:
        def answers(rows: list[Any]) -> list[Any]:
            return [row[:6] + row[7:] for row in rows]  # all but the times

        assert answers(killed.ledger) == answers(calm.ledger())


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(list(arguments))
    return capsys.readouterr().out


def test_lookups_and_versions(calm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home = f"--home={calm.home}"
    item_id, sid = next(iter(calm.sids.items()))
    item = json.loads(told(capsys, "lookup", "item", item_id, home))
    titles = read_table("items", calm.out / "catalogue" / "items.parquet").to_pylist()
    assert item["title"] == next(row["title"] for row in titles if row["item_id"] == item_id)
    assert (item["sid"], item["tokenizer_version"]) == (sid, calm.versions[0])
    assert item["caption"]
    assert item["descriptors"]
    found = json.loads(told(capsys, "lookup", "sid", sid, home))
    assert found["item_ids"] == [item_id]
    split = read_table("splits", calm.out / "catalogue" / "splits.parquet").to_pylist()[0]
    user = json.loads(told(capsys, "lookup", "user", split["user_id"], home))
    assert user["history"] == [*split["train"], split["validation"], split["test"]]
    table = told(capsys, "versions", home)
    policy = next(line.split() for line in table.splitlines() if line.startswith("sid-policy"))
    assert policy[1:4] == ["1", calm.versions[1], calm.versions[0]]
    assert policy[4] == f"{calm.metrics['ndcg@10']:.4f}"
    assert policy[5] == "champion"


@dataclass
class Traffic(Background):
    """Clients that keep asking, over both protocols, by history and by user, until told to stop."""

    urls: dict[str, str]
    histories: list[list[str]]
    users: list[str]
    callers: Iterable[str] = ("http", "grpc")
    answers: list[tuple[int, str, Recommendations]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def ask(self, caller: Any) -> None:
        with Recommender(self.urls[caller], caller, timeout=60) as client:
            for number in itertools.cycle(range(len(self.histories))):
                if self.done.wait(0.02):  # a shopper's pause; the machine has a promotion to do, too
                    return
                for by, asked in (("history", self.histories[number]), ("user", self.users[number])):
                    try:
                        self.answers.append((number, by, client.recommend(**{by: asked}, k=10)))
                    except Exception as error:  # any failed request is what the test is about
                        self.failures.append(f"{caller} {by}: {error!r}")

    def seen(self) -> list[str]:
        """Policy versions in the order in which they came."""
        return [version for version, _ in itertools.groupby(answer.policy_version for _, _, answer in self.answers)]

    def wait_for(self, version: str) -> None:
        """Until both protocols have answered with a version some times."""
        start, deadline = len(self.answers), time.monotonic() + 60
        while sum(answer.policy_version == version for _, _, answer in self.answers[start:]) < 20:
            assert time.monotonic() < deadline, (version, self.seen(), self.failures[:3])
            time.sleep(0.05)


def test_promotion_and_rollback_while_clients_keep_asking(
    calm: Any, killed: Any, later: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    second, home = later[1], killed.platform.home
    assert second.versions[0] != calm.versions[0]  # another tokenizer, so other SIDs
    assert "does not beat champion 1's" in second.said
    words = dict.fromkeys(COUNTED, 0) | {"knowledge_embeddings": second.metrics["items"]}
    assert second.metrics["model_calls"] == words
    config = load_manifest(second.out / "policy", "policy").config
    assert (config["grpo"]["bonus"], config["tasks"]) == ("quality", "next,intents_to_sid,caption_to_sid")
    assert load_manifest(second.out / "policy", "policy").extra["codebook_size"] == [16, 16, second.metrics["items"]]
    assert (second.out / "tokenizer" / GROUNDING).is_file()
    assert {"grpo", "start"}.isdisjoint(load_manifest(calm.out / "policy", "policy").config)
    engines = {platform.versions[1]: Engine.load(platform.out / "policy") for platform in (calm, second)}
    tokenizer_of = {platform.versions[1]: platform.versions[0] for platform in (calm, second)}
    sids = {platform.versions[1]: platform.sids for platform in (calm, second)}
    first, challenger = calm.versions[1], second.versions[1]
    rows = read_table("splits", calm.out / "catalogue" / "splits.parquet").to_pylist()[:8]
    histories = [[*row["train"], row["validation"], row["test"]] for row in rows]
    any_port = PlatformSettings(http_port=0, grpc_port=0, metrics_port=0, features_port=0)
    with servers(home, any_port) as (triton, feast), Features(feast.url, timeout=60) as features:
        urls = {"grpc": triton.grpc_url, "http": triton.http_url}
        with Traffic(urls, histories, [row["user_id"] for row in rows]) as traffic:
            traffic.wait_for(first)
            assert features.item(rows[0]["test"]).sid == sids[first][rows[0]["test"]]
            said = told(capsys, "promote", f"--home={home}")
            assert f"champion is version 2 (policy {challenger})" in said
            traffic.wait_for(challenger)
            assert features.item(rows[0]["test"]).sid == sids[challenger][rows[0]["test"]]
            assert features.item(rows[0]["test"]).tokenizer_version == tokenizer_of[challenger]
            said = told(capsys, "rollback", f"--home={home}")
            assert f"champion is version 1 (policy {first})" in said
            traffic.wait_for(first)
            assert features.item(rows[0]["test"]).sid == sids[first][rows[0]["test"]]
        recommended = told(capsys, "recommend", f"--user={rows[0]['user_id']}", "--k=3", f"--url={triton.grpc_url}")
        by_history = told(
            capsys, "recommend", *(f"--history={item}" for item in histories[0]), "--k=3", "--protocol=http",
            f"--url={triton.http_url.removeprefix('http://')}",
        )  # fmt: skip
    assert recommended == by_history
    assert recommended.splitlines()[0] == f"policy {first}, tokenizer {calm.versions[0]}"
    assert len(recommended.splitlines()) == 4
    assert not traffic.failures
    # While a release is loaded the one before still answers; each thread sees a clean hand-over.
    assert set(traffic.seen()) == {first, challenger}
    expected = {version: engine.recommend(histories, 10) for version, engine in engines.items()}
    for number, by, answer in traffic.answers:
        version = answer.policy_version
        assert answer.tokenizer_version == tokenizer_of[version]
        assert len(answer.items) == 10
        assert all(sids[version][one.item_id] == one.sid for one in answer.items), (version, by)
        assert [one.item_id for one in answer.items] == [one.item_id for one in expected[version][number]]
    champions = {one.bundle_version: one.aliases for one in Registry(home).versions() if one.model == "sid-policy"}
    assert champions == {first: ("champion",), challenger: ("previous",)}


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A catalogue whose one title says nothing, which only the gate can tell, and with a photo that is none."""
    titles = ["Red ball", "Blue ball", "?!?", "Green lamp", "Chair"]
    ids = [f"i{number}" for number in range(len(titles))]
    (tmp_path / "images").mkdir()
    for item in ids:
        Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / f"{item}.jpg")
    (tmp_path / "images" / "i3.jpg").write_bytes(b"\xff\xd8\xff no photo")
    table = pa.table({"item_id": ids, "title": titles, "image": [f"{item}.jpg" for item in ids]})
    pq.write_table(table, tmp_path / "items.parquet")
    return tmp_path


@pytest.mark.usefixtures("later")
def test_a_refusal_names_the_rows_and_leaves_what_was_there(
    calm: Any, refused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder and on the platform of a good run; also: a corrupt photo is recorded, and is not fatal."""
    catalogue = Catalogue(f"sqlite:///{calm.home / 'catalogue.db'}")

    def state() -> dict[str, Any]:
        files = ("metrics.json", "report.html", "settings.json", "sids.parquet", "evaluation.json")
        bundles = ("tokenizer/manifest.json", "policy/manifest.json")
        return {
            **{name: sha256_file(calm.out / name) for name in (*files, *bundles)},
            "releases": releases(calm.home / "triton" / "models"),
            "versions": Registry(calm.home).versions(),
            "item": told(capsys, "lookup", "item", next(iter(calm.sids)), f"--home={calm.home}"),
            "ledger": calm.ledger(),
            "catalogue": (catalogue.items(), catalogue.interactions()),
        }

    before = state()
    assert before["catalogue"][0] == read_table("items", calm.out / "catalogue" / "items.parquet")
    with pytest.raises(SystemExit) as ended:
        main(["run", "training", "--source=parquet", f"--path={refused}", "--catalogue.k-core=0",
              f"--out={calm.out}", f"--platform.home={calm.home}"])  # fmt: skip
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("tessera: step 'gate-catalogue' failed: the catalogue gate refused the data")
    assert "(items.title)" in said.err
    assert "rows i2: ?!?" in said.err
    assert "Traceback" not in said.out + said.err
    (page,) = re.findall(r"/\S+\.html", said.err)
    assert "?!?" in Path(page).read_text(encoding="utf-8")
    assert "caption" not in said.out  # no step after the gate
    assert state() == before
    newest = max((calm.out / "artifacts").iterdir())
    items = {row["item_id"]: row for row in read_table("items", newest / "ingest" / "items").to_pylist()}
    assert (items["i3"]["image_status"], items["i3"]["image"]) == ("corrupt", None)
    assert items["i1"]["image_status"] == "ok"
