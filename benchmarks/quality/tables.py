"""Cells to Markdown: mean and spread over seeds, and how sure the difference to the best peer is."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.quality.store import unpack_ranks
from benchmarks.quality.systems import PEERS, TABLES
from tessera.evaluation.significance import Comparison, paired_bootstrap

Ranks = Literal["ranks", "served_ranks"]
Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""The cells of each system, one a seed."""


def mean_and_spread(cells: Sequence[Mapping[str, Any]], part: str, name: str) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds of one number; None where some cell lacks it."""
    values = [cell.get(part, {}).get(name) for cell in cells]
    if not values or any(value is None for value in values):
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def hits(cells: Sequence[Mapping[str, Any]], ranks: Ranks = "ranks", k: int = 10) -> np.ndarray:
    """[users] share of the seeds whose first k hold the user's held-out item."""
    return np.mean([unpack_ranks(cell[ranks]) < k for cell in cells], axis=0)


def best(cells: Cells, among: Sequence[str]) -> str | None:
    """The system with the highest mean validation NDCG@10; the test plays no part in choosing."""
    scored = {name: mean_and_spread(cells[name], "validation", "ndcg@10") for name in among if cells.get(name)}
    known = {name: found[0] for name, found in scored.items() if found}
    return max(known, key=known.__getitem__) if known else None


def compared(
    cells: Cells, system: str, peer: str, member: np.ndarray | None = None, ranks: Ranks = "ranks"
) -> Comparison:
    """A system's hits in the first ten against a peer's, in the same users and the seeds that both have.

    Args:
        member: [users] bool, takes some of the users.

    Raises:
        ValueError: they have no seed in common.
    """
    seeds = shared_seeds(cells, system, peer)
    a, b = (hits([cell for cell in cells[name] if cell["seed"] in seeds], ranks) for name in (system, peer))
    return paired_bootstrap(a if member is None else a[member], b if member is None else b[member])


def shared_seeds(cells: Cells, system: str, peer: str) -> set[int]:
    """The seeds that both were measured with."""
    return {cell["seed"] for cell in cells[system]} & {cell["seed"] for cell in cells[peer]}


def ranking_table(
    cells: Cells, table: str, titles: Mapping[str, str], notes: Mapping[str, str], hard: np.ndarray
) -> str:
    """One table of systems; bold is the highest mean of a column.

    Args:
        notes: why a system has no cell, where that is known.
        hard: [users] bool, whose held-out item has a twin.
    """
    names = TABLES[table][1]
    against = best(cells, PEERS) if table == "main" else names[0] if cells.get(names[0]) else None
    columns = [
        ("test", "hr@5", "HR@5"), ("test", "ndcg@5", "NDCG@5"), ("test", "hr@10", "HR@10"),
        ("test", "ndcg@10", "NDCG@10"), ("hard", "hr@10", "hard HR@10"), ("cold", "hr@10", "cold HR@10"),
        ("served", "hr@10", "HR@10 served"), ("served", "ndcg@10", "NDCG@10 served"),
        ("validation", "ndcg@10", "validation NDCG@10"),
    ]
    rows = [name for name in names if cells.get(name)]
    found = {
        (name, at): mean_and_spread(cells[name], part, key)
        for name in rows for at, (part, key, _) in enumerate(columns)
    }
    top = [max((v[0] for n in rows if (v := found[n, at])), default=None) for at in range(len(columns))]
    members = [None, hard] if hard.any() else [None]
    versus = [f"{what}HR@10 against {titles[against]} (95%, p)" for what in ("", "hard ")] if against else []
    head = ["system", *(title for *_, title in columns), *versus[: len(members)]]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name in rows:
        shown = [_shown(found[name, at], top[at]) for at in range(len(columns))]
        if against and name != against:
            shown += [_versus(cells, name, against, member) for member in members]
        elif against:
            shown += [""] * len(members)
        lines.append("| " + " | ".join([titles[name], *shown]) + " |")
    if absent := [f"{titles[n]} ({notes[n]})" if n in notes else titles[n] for n in names if n not in rows]:
        lines += ["", f"Not measured: {', '.join(absent)}."]
    return "\n".join(lines)


def diversity_table(cells: Cells, titles: Mapping[str, str]) -> str:
    """Coverage, evenness, popularity bias and categories of the systems of the main table."""
    columns = {
        "coverage": "coverage@10", "gini": "Gini@10", "head_share": "share of the 20% most bought",
        "categories_per_list": "categories a list", "category_coverage": "categories covered",
    }
    lines = ["| system | " + " | ".join(columns.values()) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in TABLES["main"][1]:
        if cells.get(name):
            found = [mean_and_spread(cells[name], "diversity", key) for key in columns]
            lines.append("| " + " | ".join([titles[name], *(_shown(one, None) for one in found)]) + " |")
    return "\n".join(lines)


def task_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Test HR@10 of every task that a system was trained on, behind its own prompt; each seed draws its cases."""
    lines = ["| task | HR@10 | NDCG@10 | cases |", "| --- | ---: | ---: | ---: |"]
    for task in cells[0]["tasks"]:
        flat = [{"task": cell["tasks"][task]} for cell in cells]
        hr, ndcg = (_shown(mean_and_spread(flat, "task", key), None) for key in ("hr@10", "ndcg@10"))
        lines.append(f"| {task} | {hr} | {ndcg} | {cells[0]['tasks'][task]['cases']} |")
    return "\n".join(lines)


def dial_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against diversity along the fusion's dial."""
    lines = [
        "| diversity setting | HR@10 | NDCG@10 | categories covered | categories a list | coverage@10 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for at, one in enumerate(cells[0]["dial"]):
        flat = [{"dial": cell["dial"][at]} for cell in cells]
        keys = ("hr@10", "ndcg@10", "category_coverage", "categories_per_list", "coverage")
        shown = [_shown(mean_and_spread(flat, "dial", key), None) for key in keys]
        lines.append(f"| {one['setting']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(found: tuple[float, float] | None, top: float | None) -> str:
    if found is None:
        return ""
    text = f"{found[0]:.4f}"
    if top is not None and found[0] == top:
        text = f"**{text}**"
    return f"{text} ± {found[1]:.4f}" if found[1] else text


def _versus(cells: Cells, system: str, peer: str, member: np.ndarray | None) -> str:
    """The comparison, and with which seeds where not all of them are shared."""
    seeds = shared_seeds(cells, system, peer)
    if not seeds:
        return "no seed in common"
    told = "" if len(seeds) == max(len(cells[system]), len(cells[peer])) else f", {len(seeds)} in common"
    return shown_versus(compared(cells, system, peer, member)) + told


def shown_versus(found: Comparison) -> str:
    """Difference, 95% interval and p."""
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p = {found.p:.2g}"


def gain_table(cells: Cells, titles: Mapping[str, str]) -> str:
    """Validation of the SFT start and of the step that was kept, seed by seed."""
    lines = [
        "| system | seed | HR@5 at the start | HR@5 | NDCG@10 at the start | NDCG@10 | step kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, of in cells.items():
        for cell in of:
            if gain := cell.get("gain"):
                start, kept = gain["start"], gain["kept"]
                shown = [f"{one[key]:.4f}" for key in ("hr@5", "ndcg@10") for one in (start, kept)]
                lines.append(f"| {titles[name]} | {cell['seed']} | {' | '.join(shown)} | {gain['step']} |")
    return "\n".join(lines)


def cost_table(cells: Cells, titles: Mapping[str, str]) -> str:
    """Parameters and what a cell cost, mean over seeds; a stage that systems share is counted in each."""
    stages = ("policy", "align", "rank")
    lines = ["| system | parameters | " + " | ".join(f"{stage}, s" for stage in stages) + " |"]
    lines.append("| --- |" + " ---: |" * (len(stages) + 1))
    for name, of in cells.items():
        parameters = f"{of[0]['parameters']:,}" if "parameters" in of[0] else ""
        found = [mean_and_spread(of, "seconds", stage) for stage in stages]
        shown = ["" if one is None else f"{one[0]:.0f}" for one in found]
        lines.append("| " + " | ".join([titles[name], parameters, *shown]) + " |")
    return "\n".join(lines)
