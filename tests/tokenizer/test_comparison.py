"""The report's numbers by hand, and real tokenizers in one table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.config import TokenizerSettings
from tessera.schema import read_table, write_table
from tessera.tokenizer import fit
from tessera.tokenizer.comparison import (
    Contender,
    compare,
    intent_purity,
    measure,
    nearest,
    neighbour_recall,
    prefix_groups,
    to_markdown,
)
from tessera.tokenizer.inputs import Inputs, read_inputs

CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])


def test_prefixes_are_numbered_at_every_depth() -> None:
    one, two = prefix_groups(CODES)
    assert one.tolist() == [0, 0, 0, 1]
    assert two.tolist() == [0, 0, 1, 2]


def test_neighbour_recall_by_hand() -> None:
    # Item 0's neighbours are 1 and 3, and so on; at depth 1, items 0, 1 and 2 are mates: 1, 1, 2 and 0 of 2 each.
    near = np.array([[1, 3], [0, 3], [0, 1], [0, 1]])
    one, two = prefix_groups(CODES)
    assert neighbour_recall(one, near) == pytest.approx(4 / 8)
    assert neighbour_recall(two, near) == pytest.approx(2 / 8)
    assert neighbour_recall(np.zeros(4, dtype=int), near) == 1.0


def test_intent_purity_by_hand() -> None:
    # Prefix 0 holds gift, gift, camp: a gift's mates are half gifts, camp's none: (1/2 + 1/2 + 0) / 3; item 3 is alone.
    one, two = prefix_groups(CODES)
    assert intent_purity(one, ["gift", "gift", "camp", "gift"]) == pytest.approx(1 / 3)
    assert intent_purity(two, ["gift", "gift", "camp", "gift"]) == 1.0
    # Unknown intents are no mates: only the two gifts are left of prefix 0.
    assert intent_purity(one, ["gift", "gift", None, "gift"]) == 1.0
    assert intent_purity(np.arange(4), ["gift"] * 4) is None
    assert intent_purity(one, [None] * 4) is None


def test_neighbours_are_the_nearest_others() -> None:
    text = np.array([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0]], dtype=np.float32)
    inputs = Inputs(list("abcd"), text, np.zeros((4, 0), np.float32), np.zeros(4, bool))
    assert nearest(inputs, 1).squeeze(1).tolist() == [1, 0, 3, 2]


def test_unknown_costs_stay_unknown() -> None:
    inputs = Inputs(list("abcd"), np.eye(4, dtype=np.float32), np.zeros((4, 0), np.float32), np.zeros(4, bool))
    record = compare([Contender("published", CODES, 2)], inputs, ["x", "x", "y", None], neighbours=2)[0]
    assert record["collision_rate"] == 0.5
    assert record["utilisation"] == [1.0, 1.0]
    assert record["entropy_bits"] == pytest.approx([0.8113, 0.8113], abs=1e-4)  # shares of 3/4 and 1/4
    assert record["prefix_mates"] == [1.5, 0.5]
    assert record["fit_seconds"] is None
    assert "| published | 0.500 | 1.000 / 1.000 | 0.811 / 0.811 | – |" in to_markdown([record])


def test_fitted_tokenizers_beat_codes_at_random(
    make_embeddings: Callable, small: TokenizerSettings, tmp_path: Path
) -> None:
    table = make_embeddings(image_dim=16)
    write_table("embeddings", table, tmp_path / "embeddings.parquet")
    methods = ("rqkmeans", "rqkmeans_balanced", "opq")
    rows = [measure(m, replace(small, method=m), tmp_path / "embeddings.parquet", 0) for m in methods]
    rows.append(Contender("random", np.random.default_rng(0).integers(0, 8, (200, 3)), 8))
    families = [f"family {row % 8}" for row in range(200)]
    kmeans, bounded, opq, chance = compare(rows, read_inputs(table), families)
    assert kmeans["intent_purity"][0] > 0.9
    assert chance["intent_purity"][0] < 0.25
    for fitted in (kmeans, bounded, opq):
        assert fitted["neighbour_recall"][0] > 2 * chance["neighbour_recall"][0]
        assert fitted["reconstruction_cosine"] > 0.7
        assert fitted["fit_seconds"] > fitted["encode_seconds"] > 0
        assert np.diff(fitted["neighbour_recall"]).max() <= 0
    assert min(bounded["entropy_bits"]) == pytest.approx(3.0, abs=0.01)


def test_aligned_is_measured_on_the_vectors_that_it_was_fitted_on(
    make_embeddings: Callable, small: TokenizerSettings, tmp_path: Path
) -> None:
    """Collaborative ones, though to an item that comes later it has only a text."""
    write_table("embeddings", make_embeddings(image_dim=16), tmp_path / "embeddings.parquet")
    settings = replace(small, method="aligned", epochs=5, codebook_size=16)
    measured = measure("aligned", settings, tmp_path / "embeddings.parquet", 0)
    places = tmp_path / "bundle", tmp_path / "sids.parquet"
    fit.run(tmp_path / "embeddings.parquet", *places, settings, 0, tmp_path / "work")
    sids = read_table("sids", places[1])
    codes, moved = np.array(sids["codes"].to_pylist()), np.array(sids["moved"])
    assert (measured.codes == codes)[~moved].all()
    assert (measured.codes != codes)[moved].any(1).all()
