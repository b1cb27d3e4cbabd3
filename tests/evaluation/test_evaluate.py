"""The evaluation stage on a policy that knows chains: after item n of a chain comes item n + 1."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera.config import EvaluationSettings, PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.evaluation import evaluate
from tessera.policy import backbone as backbones
from tessera.policy import sft
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table

SIZE, ITEMS, CHAIN = 8, 30, 5
SETTINGS = EvaluationSettings(beam=20, batch_size=4)
CODES = np.stack(np.unravel_index(np.random.default_rng(1).choice(SIZE**3, ITEMS, replace=False), (SIZE,) * 3), axis=1)


def rows_of(codes: np.ndarray) -> pa.Table:
    fixed = {"moved": False, "tokenizer_version": "tok"}
    rows = [
        {"item_id": f"item-{n}", "sid": "_".join(map(str, row)), "codes": row, **fixed}
        for n, row in enumerate(codes.tolist())
    ]
    return pa.Table.from_pylist(rows, SCHEMAS["sids"])


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has seen every chain whole: items 0 to 4, 5 to 9, and so on."""
    root = tmp_path_factory.mktemp("chains")
    settings = PolicySettings(
        hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0, max_history=5, epochs=60, validate_every=60,
        batch_tokens=64, learning_rate=1e-2, weight_decay=0.0,
    )
    backbone = backbones.build(settings, ["words"], 3, SIZE, seed=0)
    whole = [np.arange(start, start + CHAIN) for start in range(0, ITEMS, CHAIN)]
    sft.train(backbone, whole, CODES, lambda: {"ndcg@10": 1.0}, settings, 0, root / "work", "chains")
    save_policy(
        root / "policy", backbone, rows_of(CODES), codebook_size=SIZE, max_history=5, config={}, metrics={}
    )
    return root / "policy"


def splits(path: Path, users: list[tuple[list[int], int | None, int | None]]) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "user_id": f"u{n}",
            "train": [f"item-{i}" for i in train],
            "validation": None if validation is None else f"item-{validation}",
            "test": None if test is None else f"item-{test}",
        }
        for n, (train, validation, test) in enumerate(users)
    ]
    write_table("splits", pa.Table.from_pylist(rows, SCHEMAS["splits"]), path)
    return path


def test_validation_history_ends_before_the_validation_item_and_test_history_with_it(
    chains: Path, tmp_path: Path
) -> None:
    """The policy names the item after the last one. With the validation item in its own history it would name the test
    item, and without it in the test history the validation item: either would miss at the first place."""
    users = [([start, start + 1, start + 2], start + 3, start + 4) for start in range(0, ITEMS, CHAIN)]
    report = evaluate.run(chains, splits(tmp_path / "s.parquet", users), tmp_path / "out.json", SETTINGS)
    assert report["validation"]["hr@1"] == 1.0
    assert report["test"]["hr@1"] == 1.0
    assert report["test"]["ndcg@20"] == 1.0
    assert report["samples"][0]["history"] == [f"item-{n}" for n in range(4)]


def test_a_report_by_hand(chains: Path, tmp_path: Path) -> None:
    """Two users whose next item the policy knows, one with another one held out, and one too short to evaluate."""
    users = [([0, 1], 2, 3), ([5, 6], 7, 8), ([10, 11], 12, 0), ([20], None, None)]
    report = evaluate.run(chains, splits(tmp_path / "s.parquet", users), tmp_path / "out" / "report.json", SETTINGS)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    recommender = Recommender.load(chains)
    assert (report["policy_version"], report["tokenizer_version"]) == (recommender.policy_version, "tok")
    assert (report["items"], report["users"], report["beam"]) == (ITEMS, 4, 20)
    measures = {f"{name}@{k}" for name in ("hr", "ndcg") for k in (1, 5, 10, 20)}
    for part in ("test", "validation"):
        assert set(report[part]) == measures | {"coverage@10", "invalid_rate", "users"}
        assert report[part]["users"] == 3
        assert report[part]["invalid_rate"] == 0.0
        assert set(report["popularity"][part]) == measures
    assert report["validation"]["hr@1"] == 1.0
    assert report["test"]["hr@1"] == pytest.approx(2 / 3)
    answers = [
        {r.item_id for r in answer}
        for answer in recommender.recommend(
            [["item-0", "item-1", "item-2"], ["item-5", "item-6", "item-7"], ["item-10", "item-11", "item-12"]],
            10, exclude_history=False,
        )
    ]
    assert report["test"]["coverage@10"] == pytest.approx(len(set.union(*answers)) / ITEMS)
    # Popularity: items 0, 1, 5, 6, 10, 11 and 20 once each, in this order, then the rest by number: 2, 3, 4, 7, 8, ...
    # Targets of the test are 3 (rank 8), 8 (rank 11) and 0 (rank 0).
    assert report["popularity"]["test"]["hr@1"] == pytest.approx(1 / 3)
    assert report["popularity"]["test"]["hr@10"] == pytest.approx(2 / 3)
    assert report["popularity"]["test"]["hr@20"] == 1.0
    assert report["popularity"]["test"]["ndcg@10"] == pytest.approx((1 + 1 / np.log2(10)) / 3)
    by_user = {sample["user_id"]: sample for sample in report["samples"]}
    assert set(by_user) == {"u0", "u1", "u2"}
    assert by_user["u2"]["target"] == "item-0"
    assert by_user["u0"]["recommended"][0] == {"item_id": "item-3", "sid": recommender.sids[3]}
    assert len(by_user["u0"]["recommended"]) == 10


def test_a_split_of_another_catalogue_is_refused(chains: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="item 'item-30' has no SID"):
        evaluate.run(chains, splits(tmp_path / "s.parquet", [([0, 30], 2, 3)]), tmp_path / "out.json", SETTINGS)
    assert not (tmp_path / "out.json").exists()


def test_an_older_policy_misses_what_it_does_not_know(chains: Path, tmp_path: Path) -> None:
    """The champion on a newer catalogue: unknown targets count as misses at every K, even one above the catalogue."""
    recommender = Recommender.load(chains)
    path = splits(tmp_path / "s.parquet", [([0, 1], 2, 3), ([40, 5], 6, 41)])
    split = evaluate.read_split(path, recommender.item_ids, allow_unknown=True)
    measured, _ = evaluate.measure(recommender, split, "test", SETTINGS)
    assert measured["users"] == 2
    assert {name: value for name, value in measured.items() if name.startswith(("hr", "ndcg"))} == {
        f"{name}@{k}": 0.5 for name in ("hr", "ndcg") for k in (1, 5, 10, 20)
    }


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        ([[0, 1, 2], [3, 4, 5]], 0.0),
        ([[0, 1, -1], [-1, -1, -1]], 0.0),  # a short answer is no invalid one
        ([[0, 1, 30], [3, 4, 5]], 1 / 6),  # no item has the number 30
        ([[0, 0, 0], [3, 4, 5]], 2 / 6),  # two of the three repeat
        ([[7, 1, 7, 30], [30, 31, -1, 2]], 4 / 7),
        ([[0, 1], [1, 0]], 0.0),  # two users may have the same items
        ([[-1, -1]], 0.0),
    ],
)
def test_invalid_rate_by_hand(rows: list[list[int]], rate: float, chains: Path) -> None:
    assert evaluate.invalid_rate(Recommender.load(chains), np.array(rows)) == pytest.approx(rate)
