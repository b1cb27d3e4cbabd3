"""Tokenizers side by side on one catalogue: collisions, use of codes, reconstruction, neighbours, intents, seconds.

    python -m benchmarks.tokenizers                    the demo shop, whose true intents are known
    python -m benchmarks.tokenizers --path FOLDER      a folder of parquet files, intents as they are mined

SIDs published beside a catalogue (FOLDER/sids/*.index.json.gz) become rows. Writes tokenizers-NAME.json and .md.
"""

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.machine import hardware
from tessera.catalog import ingest
from tessera.config import CatalogueSettings, Settings, TokenizerSettings, preset
from tessera.enrichment import stages
from tessera.files import write_json, write_text
from tessera.schema import read_table
from tessera.tokenizer import collaborative
from tessera.tokenizer.comparison import Contender, compare, measure, to_markdown
from tessera.tokenizer.inputs import read_inputs

METHODS = ("rqvae", "rqkmeans", "rqkmeans_balanced", "rqkmeans_plus", "opq", "aligned")


def main(
    path: Path | None = None,
    methods: tuple[str, ...] = METHODS,
    tokenizer: TokenizerSettings | None = None,
    seed: int = 0,
    out: Path = Path("benchmarks/results"),
    work: Path = Path("runs/bench-tokenizers"),
) -> None:
    """Compare tokenizers.

    Args:
        path: folder of the catalogue; without it, the demo shop.
        methods: quantizers to fit.
        tokenizer: sizes shared by all of them; without it, the preset's.
        seed: seed of the shop and of every fit.
        out: folder of the tables.
        work: folder of what is computed on the way; captions, intents and embeddings there are used again.
    """
    settings = preset("catalogue" if path else "demo")
    settings = replace(settings, path=path, seed=seed, catalogue=CatalogueSettings(k_core=0 if path else 5))
    name = path.name if path else "shop"
    embeddings, intents = prepare(settings, work / name)
    inputs = read_inputs(read_table("embeddings", embeddings))
    rows = published(path / "sids", inputs.item_ids) if path else []
    sizes = tokenizer or settings.tokenizer
    if "aligned" in methods:
        bought = work / name / "collaborative.parquet"
        collaborative.run(embeddings, work / name / "splits.parquet", bought, seed)
    for method in methods:
        read = bought if method == "aligned" else embeddings
        # Semantic Convergence has four levels.
        levels = 4 if method == "aligned" and tokenizer is None else sizes.levels
        rows.append(measure(method, replace(sizes, method=method, levels=levels), read, seed))
    records = compare(rows, inputs, [intents.get(item) for item in inputs.item_ids])
    table = to_markdown(records)
    print(table)
    facts = {"catalogue": name, "seed": seed, "threads": torch.get_num_threads(), **hardware()}
    write_json(out / f"tokenizers-{name}.json", {**facts, "tokenizers": records})
    write_text(out / f"tokenizers-{name}.md", f"{_heading(name, path is not None, facts)}\n\n{table}")


def _heading(name: str, stored: bool, facts: Mapping[str, Any]) -> str:
    command = f"python -m benchmarks.tokenizers{f' --path {name}' if stored else ''} --seed {facts['seed']}"
    return f"# Tokenizers on {name}\n\n`{command}`, on {facts['cpu']}, {facts['threads']} threads."


def prepare(settings: Settings, folder: Path) -> tuple[Path, dict[str, str]]:
    """Ingest and enrich; the path of the embeddings, and an item's intent: the true one, else its surest descriptor."""
    url = f"sqlite:///{folder.resolve() / 'catalogue.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = ingest.run(settings, url, folder)
    items, captions, intents, embeddings = (
        folder / f"{table}.parquet" for table in ("items", "captions", "intents", "embeddings")
    )
    stages.run_captions(items, folder / "images", captions, settings, url)
    stages.run_intents(items, captions, intents, settings, url)
    stages.run_embeddings(items, folder / "images", captions, intents, embeddings, settings, url)
    if "truth" in facts:
        import pyarrow.parquet as pq

        truth = pq.read_table(facts["truth"])
        return embeddings, dict(zip(truth["item_id"].to_pylist(), truth["intent"].to_pylist(), strict=True))
    mined = {row["item_id"]: row["descriptors"] for row in read_table("intents", intents).to_pylist()}
    return embeddings, {
        item: max(tags, key=lambda tag: tag["confidence"] or 0.0)["text"] for item, tags in mined.items() if tags
    }


def published(folder: Path, item_ids: list[str]) -> list[Contender]:
    """Rows of `*.index.json.gz`: {item number: ["<a_12>", "<b_3>", ...]}, numbered from 0 where ids may start at 1."""
    first = min(map(int, item_ids)) if all(item.isdigit() for item in item_ids) else 0
    rows = []
    for path in sorted(folder.glob("*.index.json.gz")):
        index: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        tokens = [index[str(int(item) - first)] for item in item_ids]
        codes = np.array([[int(re.sub(r"\D", "", token)) for token in row] for row in tokens], dtype=np.int64)
        size = 1 << int(codes.max()).bit_length()
        rows.append(Contender(f"published {path.name.removesuffix('.index.json.gz')}", codes, size))
    return rows


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
