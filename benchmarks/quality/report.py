"""The bench's report: Markdown to read, JSON to compute with, figures to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import figures, tables
from benchmarks.quality.measures import LIST, Ground
from benchmarks.quality.slices import COLD, TWIN
from benchmarks.quality.systems import BUDGETS, PEERS, PICTURED, SYSTEMS, TABLES
from tessera.config import Settings
from tessera.files import write_json, write_text

PEER_TITLES = {
    "popularity": "popularity", "gru4rec": "GRU4Rec", "sasrec": "SASRec", "bert4rec": "BERT4Rec", "fdsa": "FDSA",
}
PAPERS = ("deepinterestgr", "trialigngr", "sigma", "convergence")


def write_report(
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    notes: Mapping[str, str],
    ground: Ground,
    settings: Settings,
    budget: str,
    command: str,
    out: Path,
) -> None:
    """Write report.md, report.json and the figures into `out`."""
    titles = {**PEER_TITLES, **{name: system.title for name, system in SYSTEMS.items()}}
    catalogue = settings.path.name if settings.path else settings.source
    parts = [f"# Quality on {catalogue}, budget {budget}", _facts(cells, ground, settings, budget, command)]
    hard = ground.twins[ground.split.test_cases()[1]]
    if not ground.pictured:
        notes = {**dict.fromkeys(PICTURED, "needs photos"), **notes}
    shown = [
        table for table, (_, names) in TABLES.items()
        if any(name in cells for name in names) and (table == "main" or sum(name in cells for name in names) > 1)
    ]  # fmt: skip
    for table in shown:
        title = TABLES[table][0]
        parts += [f"## {title}", tables.ranking_table(cells, table, titles, notes, hard), f"![{title}]({table}.svg)"]
    if (found := _papers_against_peers(cells, titles, hard)) is not None:
        parts += ["## The best of the papers' systems against the best peer", found]
    parts += ["## Diversity, over the first ten", tables.diversity_table(cells, titles)]
    for name, of in cells.items():
        if all("tasks" in cell for cell in of):
            parts += [f"## {titles[name]}: each task behind its own prompt, beam {LIST}", tables.task_table(of)]
    for name, of in cells.items():
        if all("dial" in cell for cell in of):
            parts += [f"## {titles[name]}: accuracy against diversity", tables.dial_table(of), "![dial](dial.svg)"]
    if any("gain" in cell for of in cells.values() for cell in of):
        parts += ["## What training after SFT did on validation", tables.gain_table(cells, titles)]
    parts += ["## Size and cost", tables.cost_table(cells, titles)]
    out.mkdir(parents=True, exist_ok=True)
    figures.draw(cells, titles, shown, out)
    write_text(out / "report.md", "\n\n".join(parts) + "\n")
    kept = {name: [{k: v for k, v in cell.items() if "ranks" not in k} for cell in of] for name, of in cells.items()}
    write_json(out / "report.json", {"command": command, "budget": budget, "catalogue": catalogue, "cells": kept})


def _facts(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], ground: Ground, settings: Settings, budget: str, command: str
) -> str:
    split, most = ground.split, BUDGETS[budget].users
    machines = {
        f"{h['cpu']}, {h['cores']} cores, {h['memory_gb']:.0f} GB, {h['threads']} threads"
        for of in cells.values() for cell in of if (h := cell["hardware"])
    }
    seeds = sorted({cell["seed"] for of in cells.values() for cell in of})
    asked = split.test_cases()[1]
    share = f"{most} users drawn from the catalogue" if most and len(split.users) == most else "all users"
    return "\n".join([
        f"`{command}`", "",
        f"- {len(split.users)} users ({share}), {len(ground.item_ids)} items, leave-last-out, every item ranked, "
        f"bought items not removed; beam {settings.evaluation.beam} for every system of this code. Served: the same "
        f"answers of {LIST} items with bought items left out, as the service does.",
        f"- Seeds {', '.join(map(str, seeds))}; ± is the standard deviation over seeds. The standard error of an HR@10 "
        f"of 0.1 from {len(asked)} test users is {np.sqrt(0.09 / len(asked)):.4f}. p: paired bootstrap over users, of "
        "hits averaged over the seeds that both have.",
        "- Of every training the weights that were best on validation are kept; it ends when validation stops rising "
        f"or the budget is spent. Hard: {ground.twins[asked].mean():.0%} of the test cases, whose "
        f"target's title has a twin (TF-IDF cosine at least {TWIN}). Cold: {ground.cold[asked].mean():.0%}, whose "
        f"target was bought fewer than {COLD} times in training.",
        f"- Enrichment: {_enrichment(settings)}.",
        f"- Machine: {'; '.join(sorted(machines))}.",
        *([] if ground.pictured else [
            "- This catalogue has no photos: captions are empty, CMSA's branches are one and the same, and tasks about "
            "photos are left out of every mixture."
        ]),
    ])  # fmt: skip


def _enrichment(settings: Settings) -> str:
    """Who made what the systems read beside the catalogue."""
    chosen = settings.enrichment
    rules = "the embedded provider's rules over small encoders, no LLM"
    told = {"captions": chosen.captions, "intents, summaries and paraphrases": chosen.intents, "labels": chosen.quality}
    models = [f"{what} by {one.model or rules}" for what, one in told.items()]
    return ", ".join([*models, f"text encoder {chosen.text_encoder}, image encoder {chosen.image_encoder}"])


def _papers_against_peers(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str], hard: np.ndarray
) -> str | None:
    """The system and the peer that were best on validation, over all test users and the hard ones."""
    ours, peer = tables.best(cells, PAPERS), tables.best(cells, PEERS)
    if ours is None or peer is None or not tables.shared_seeds(cells, ours, peer):
        return None
    lines = [f"{titles[ours]} against {titles[peer]}, both chosen by validation NDCG@10; hits in the first ten:", ""]
    everyone = np.ones_like(hard)
    asked: tuple[tuple[str, np.ndarray, tables.Ranks], ...] = (
        ("all test users", everyone, "ranks"), ("hard", hard, "ranks"),
        ("all test users, served", everyone, "served_ranks"), ("hard, served", hard, "served_ranks"),
    )  # fmt: skip
    for what, member, ranks in asked:
        if member.any():
            found = tables.compared(cells, ours, peer, member, ranks)
            lines.append(f"- {what}: {tables.shown_versus(found)}")
    return "\n".join(lines)
