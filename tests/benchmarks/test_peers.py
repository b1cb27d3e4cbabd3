"""Peers read our split and are measured with our metrics; RecBole itself is asked where its environment is there."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import environment, peers
from benchmarks.peers.recbole_run import Cut, Similar, evaluation_history, rows_of, training_cases
from benchmarks.quality import bench
from benchmarks.quality.measures import Ground
from benchmarks.quality.peer import answers
from benchmarks.quality.world import World
from tessera.config import CatalogueSettings, Settings
from tessera.errors import InputError, ServiceError
from tessera.evaluation.data import Split
from tessera.schema import SCHEMAS

SCIENTIFIC = Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon_scientific"


def items_table(*rows: tuple[str, str, list[str]]) -> pa.Table:
    """Title, brand and categories of each item."""
    listed = [
        {"item_id": str(number), "title": title, "description": "", "brand": brand, "categories": categories,
         "attributes": [], "image_status": "none", "image": None}
        for number, (title, brand, categories) in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(listed, SCHEMAS["items"])


ITEMS = items_table(
    ("Red wool hat", "Nord", ["Clothing", "Hats"]), ("Blue hat", "", ["Clothing"]), ("Red mug", "Nord", ["Kitchen"]),
    ("Oak table", "Solo", []),
)  # fmt: skip
SPLIT = Split(
    ["a", "b", "c"], [np.array([0, 1]), np.array([2]), np.array([3, 1])], np.array([2, 0, -1]), np.array([3, 1, -1])
)


def test_export_by_hand(tmp_path: Path) -> None:
    job = peers.export("FDSA", SPLIT, ITEMS, tmp_path, 7, "smoke")
    assert (job["model"], job["seed"], job["features"]) == ("FDSA", 7, ["brand", "category", "word"])
    with np.load(tmp_path / "data.npz") as data:
        read = {name: data[name].tolist() for name in data.files}
    assert (read["items"], read["train"], read["train_lengths"]) == (4, [0, 1, 2, 3, 1], [2, 1, 2])
    # User c is too short to hold anything out; the validation item joins the history of the test.
    assert (read["validation_histories"], read["validation_lengths"]) == ([0, 1, 2], [2, 1])
    assert (read["test_histories"], read["test_lengths"]) == ([0, 1, 2, 2, 0], [3, 2])
    assert (read["validation_targets"], read["test_targets"]) == ([2, 0], [3, 1])
    assert (read["feature_brand"], read["feature_brand_lengths"]) == ([1, 0, 1, 0], [1, 1, 1, 1])
    assert (read["feature_word"], read["feature_word_lengths"]) == ([2, 1, 1, 2, 0], [2, 1, 1, 1])


def test_only_the_catalogue_that_was_split(tmp_path: Path) -> None:
    older = Split(["a"], [np.array([0])], np.array([1]), np.array([-2]))
    with pytest.raises(InputError, match="outside the catalogue"):
        peers.export("SASRec", older, ITEMS, tmp_path, 0, "smoke")
    with pytest.raises(InputError, match="no peer is called 'sasrec'"):
        peers.run_peer("sasrec", SPLIT, ITEMS, tmp_path, 0, "smoke")


def test_cases_by_hand() -> None:
    train = rows_of(np.array([4, 5, 6, 7]), np.array([3, 1]))
    assert [(h.tolist(), t) for h, t in training_cases(train, cloze=False)] == [([4], 5), ([4, 5], 6)]
    assert [(h.tolist(), t) for h, t in training_cases(train, cloze=True)] == [([4, 5], 5), ([4, 5, 6], 6)]
    history = np.array([1, 2, 3])
    assert evaluation_history(history, False, 2).tolist() == [2, 3]
    # BERT4Rec drops the first place, and needs one for its mask: of `longest` places, all but one hold the history.
    assert evaluation_history(history, True, 3).tolist() == [1, 2, 3]
    assert evaluation_history(history, True, 9).tolist() == [1, 1, 2, 3]


@given(lengths=st.lists(st.integers(1, 20), max_size=200), batch=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_row_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    sampler = Similar(np.array(lengths, dtype=np.int64), batch, seed)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(len(lengths)))
    if len(lengths) > 60 and batch < 5:
        assert first != second


def test_batches_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 21, 640)
    order = torch.tensor(list(Similar(lengths, 20, 0))).numpy()
    assert np.ptp(lengths[order].reshape(-1, 20), axis=1).mean() < 4 < np.ptp(lengths.reshape(-1, 20), axis=1).mean()


def test_cut_by_hand() -> None:
    columns = {
        "item_length": torch.tensor([2, 3]), "item_id_list": torch.tensor([[5, 6, 0, 0], [1, 2, 3, 0]]),
        "Mask_item_id_list": torch.tensor([[9, 6, 0, 0], [1, 9, 9, 0]]),
        "MASK_INDEX": torch.tensor([[0, 0, 0], [0, 1, 2]]),
        "Pos_item_id": torch.tensor([[0, 0, 5], [0, 2, 3]]), "Neg_item_id": torch.tensor([[0, 0, 7], [0, 8, 4]]),
    }  # fmt: skip
    made = Cut(lambda _, batch: batch)(None, SimpleNamespace(interaction=columns)).interaction
    assert made["item_id_list"].tolist() == [[5, 6, 0], [1, 2, 3]]
    assert made["Mask_item_id_list"].tolist() == [[9, 6, 0], [1, 9, 9]]
    assert (made["MASK_INDEX"].tolist(), made["Pos_item_id"].tolist()) == ([[0, 0], [1, 2]], [[0, 5], [2, 3]])


def test_popularity_by_hand(tmp_path: Path) -> None:
    nothing = np.zeros(4, dtype=bool)
    ground = Ground(ITEMS, ["0", "1", "2", "3"], SPLIT, nothing, nothing, np.zeros(4), np.full(4, -1), pictured=False)
    validation, test, _ = answers("popularity", ground, tmp_path, 0, "smoke")
    # Item 1 was bought most, then 0, 2, 3: the targets 3 and 1 of the test are at places 3 and 0.
    assert validation.tolist() == test.tolist() == [[1, 0, 2, 3]] * 2
    found = ground.measure(validation, test)
    assert found["test"]["hr@1"] == 0.5
    assert found["test"]["ndcg@5"] == pytest.approx((1 + 1 / np.log2(5)) / 2)


def test_answers_of_another_split_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "result.npz", validation_rows=np.zeros((3, 4)), test_rows=np.zeros((2, 4)))
    with pytest.raises(ServiceError, match="another split"):
        peers.read_back(tmp_path, SPLIT, {})


def ingested(settings: Settings, folder: Path) -> World:
    world = World(settings, folder, users=0)
    world.ingest()
    return world


@pytest.mark.skipif(not SCIENTIFIC.is_dir(), reason="the Scientific data set is not beside the repository")
def test_popularity_on_scientific_counted_another_way(tmp_path: Path) -> None:
    settings = Settings(source="parquet", path=SCIENTIFIC, catalogue=CatalogueSettings(k_core=0))
    ground = Ground.of(ingested(settings, tmp_path))
    validation, test, _ = answers("popularity", ground, tmp_path, 0, "small")
    found = ground.measure(validation, test)["test"]
    sequences = [one for one in pq.read_table(SCIENTIFIC / "sequences.parquet")["item_ids"].to_pylist() if len(one) > 2]
    bought = Counter(item for one in sequences for item in one[:-2])
    tenth = sorted(bought.values(), reverse=True)[9]
    assert sum(count >= tenth for count in bought.values()) == 10  # no tie at the tenth place
    top = {item for item, count in bought.items() if count >= tenth}
    assert found["hr@10"] == pytest.approx(np.mean([one[-1] in top for one in sequences]))
    # Measured before, by other code. At the fifth place there is a tie, so that only the first ten can be compared.
    assert [round(found[name], 4) for name in ("hr@10", "ndcg@10")] == [0.0231, 0.0162]


@pytest.fixture(scope="module")
def shop(plain_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> World:
    return ingested(plain_shop, tmp_path_factory.mktemp("world"))


def test_an_absent_environment_is_said_in_the_report(
    shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_RECBOLE_ENV", str(tmp_path / "none"))

    def measured(*systems: str) -> str:
        return bench.run(shop.settings, "smoke", 1, systems, tmp_path / "out", shop.folder, "").read_text()

    assert "not installed: make bench-setup" in measured("popularity", "sasrec")
    with pytest.raises(InputError, match="nothing was measured: sasrec is not installed: make bench-setup"):
        measured("sasrec")
    with pytest.raises(ServiceError, match="make bench-setup"):
        peers.run_peer("SASRec", SPLIT, ITEMS, tmp_path, 0, "smoke")


@pytest.mark.integration
@pytest.mark.skipif(environment.find() is None, reason="RecBole's environment is not there: make bench-setup")
@pytest.mark.parametrize("name", ["BERT4Rec", "FDSA"])  # the two that are fed otherwise
def test_recbole_agrees_with_our_metrics(
    name: str, shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground.of(shop)
    split = ground.split
    monkeypatch.setitem(peers.BUDGETS, "smoke", {**peers.BUDGETS["smoke"], "epochs": 2})
    peer = peers.run_peer(name, split, ground.items, tmp_path, 0, "smoke")
    assert peer.test.shape == peer.validation.shape == (len(split.users), 20)
    assert all(len(set(row)) == 20 and 0 <= min(row) <= max(row) < 80 for row in peer.test.tolist())
    ours = ground.measure(peer.validation, peer.test)["validation"]
    theirs = peer.facts["recbole_validation"]
    assert peer.facts["epochs"] == len(peer.facts["curve"]) == 2
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-5)
    assert ours["hr@10"] == pytest.approx(theirs["hit@10"], abs=1e-5)
    assert max(peer.facts["curve"]) == pytest.approx(theirs["ndcg@10"], abs=1e-5)
    with np.load(tmp_path / "result.npz") as found:
        ranked, rows = found["test_ranks"], found["test_rows"]
    inside = ranked < 20
    assert (rows[inside, ranked[inside]] == split.test[inside]).all()
