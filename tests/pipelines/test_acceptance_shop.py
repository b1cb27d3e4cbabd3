"""What enrichment is worth on the demo shop, whose truth is known: SIDs must part twins that are for other uses."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.config import Settings, load_settings
from tessera.enrichment.encoders import open_text_encoder
from tessera.schema import read_table, write_table
from tessera.tokenizer.fit import run as fit

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1200)]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def twins(calm: Any) -> list[tuple[str, str]]:
    """Pairs of one family of near-twin titles whose items are for different intents."""
    truth = pq.read_table(calm.out / "catalogue" / "truth.parquet").to_pylist()
    pairs = itertools.combinations(truth, 2)
    found = [(a["item_id"], b["item_id"]) for a, b in pairs
             if a["family"] == b["family"] and a["intent"] != b["intent"]]  # fmt: skip
    assert len(found) >= 50
    return found


@pytest.fixture(scope="module")
def settings(calm: Any) -> Settings:
    return load_settings(calm.out / "settings.json")


@pytest.fixture(scope="module")
def title_embeddings(calm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of nothing but the titles, by the encoder of the run."""
    items = read_table("items", calm.out / "catalogue" / "items.parquet")
    vectors = open_text_encoder("embedded").encode(items["title"].to_pylist())
    path = tmp_path_factory.mktemp("titles") / "embeddings.parquet"
    columns = [items["item_id"], pa.array(list(vectors), pa.list_(pa.float32()))]
    nothing = pa.nulls(items.num_rows, pa.list_(pa.float32()))
    write_table("embeddings", pa.table([*columns, nothing], ["item_id", "text", "image"]), path)
    return path


def parted(sids: Path, pairs: list[tuple[str, str]]) -> float:
    """Share of pairs with different codes at the first two levels."""
    code = {row["item_id"]: row["codes"][:2] for row in read_table("sids", sids).to_pylist()}
    return float(np.mean([code[a] != code[b] for a, b in pairs]))


def test_enriched_sids_part_twice_as_many_twins_as_titles(
    calm: Any, twins: list[tuple[str, str]], settings: Settings, title_embeddings: Path, tmp_path: Path
) -> None:
    enriched = parted(calm.out / "sids.parquet", twins)
    alone = replace(settings.tokenizer, use_images=False)
    titles = []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        fit(title_embeddings, folder / "tokenizer", folder / "sids", alone, seed, folder / "work")
        titles.append(parted(folder / "sids", twins))
    said = json.dumps({"enriched": enriched, "titles": titles, "pairs": len(twins)})
    assert enriched >= 2 * max(titles), said
    assert enriched > 0.5, said


def test_titles_of_different_families_are_told_apart(
    calm: Any, settings: Settings, title_embeddings: Path, tmp_path: Path
) -> None:
    """The comparison is fair: SIDs of titles fail on twins, not in general."""
    truth = pq.read_table(calm.out / "catalogue" / "truth.parquet").to_pylist()
    strangers = [(a["item_id"], b["item_id"]) for a, b in itertools.combinations(truth, 2)
                 if a["product"] != b["product"]]  # fmt: skip
    alone = replace(settings.tokenizer, use_images=False)
    fit(title_embeddings, tmp_path / "tokenizer", tmp_path / "sids", alone, 0, tmp_path / "work")
    assert parted(tmp_path / "sids", strangers) > 0.9
