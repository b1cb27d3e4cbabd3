"""What each section of the report shows, from the files of a run; a section whose files are absent is None."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.report import figures, mosaic
from components.report.thumbnails import Album

Section = dict[str, Any] | None
ENRICHED, GROUPS, GROUP_ITEMS, USERS, HISTORY, ANSWERS = 8, 8, 6, 8, 8, 10
MEASURES = tuple(f"{name}@{k}" for name in ("hr", "ndcg") for k in (1, 5, 10, 20))


def data(items: pa.Table, splits: pa.Table | None) -> dict[str, Any]:
    """Counts, photo states, and how purchases spread over users and items."""
    states = {row["values"]: row["counts"] for row in pc.value_counts(items["image_status"]).to_pylist()}
    found: dict[str, Any] = {"items": items.num_rows, "photos": states, "plots": [], "users": None}
    if splits is None or not splits.num_rows:
        return found
    bought = pa.concat_arrays([pc.list_flatten(splits["train"]).combine_chunks(), *(
        splits[name].drop_null().combine_chunks() for name in ("validation", "test")
    )])
    lengths = np.asarray(pc.fill_null(pc.list_value_length(splits["train"]), 0)).astype(np.int64)
    lengths = lengths + np.asarray(splits["validation"].is_valid()) + np.asarray(splits["test"].is_valid())
    counts = np.zeros(items.num_rows, dtype=np.int64)
    known = np.asarray(pc.value_counts(bought).field("counts"))[: items.num_rows]
    counts[: len(known)] = known
    return found | {
        "users": splits.num_rows, "interactions": len(bought),
        "density": len(bought) / max(1, splits.num_rows * items.num_rows),
        "plots": [figures.history_lengths(lengths), figures.popularity(counts)],
    }


def enrichment(items: pa.Table, album: Album, captions: pa.Table | None, intents: pa.Table | None,
               quality: pa.Table | None) -> Section:
    """What was made of some items: spread over the catalogue, photographed and described ones first."""
    tables = {"captions": captions, "intents": intents, "quality": quality}
    given = {name: table for name, table in tables.items() if table is not None}
    if not given:
        return None
    kinds = [{"kind": name, **_provenance(table)} for name, table in given.items()]
    chosen = spread(_describable(items, album, given), ENRICHED)
    cards = []
    for item_id in chosen:
        row = items.slice(pc.index(items["item_id"], item_id).as_py(), 1).to_pylist()[0]
        made = {name: _row(table, item_id) if table is not None else None for name, table in tables.items()}
        cards.append({"tile": album.tile(item_id), "item": row, **made, "descriptors": _descriptors(made)})
    return {"kinds": kinds, "cards": cards}


def gates(reports: Sequence[dict[str, Any]]) -> Section:
    """Every gate's verdict and checks, with its Data Docs where they are on this machine."""
    rows = []
    for report in reports:
        checks = report.get("expectations", [])
        docs = Path(report["data_docs"]) if report.get("data_docs") else None
        rows.append({
            "name": report.get("suite") or str(report.get("stage", "gate")).removeprefix("gate-"),
            "passed": bool(report.get("success", report.get("passed"))),
            "reason": report.get("reason", ""),
            "checks": sorted(checks, key=lambda check: check.get("success", False)),
            "failed": sum(not check.get("success", False) for check in checks),
            "docs": docs.resolve().as_uri() if docs and docs.exists() else "",
        })
    return {"rows": rows} if rows else None


def semantic_ids(sids: pa.Table | None, items: pa.Table, album: Album, metrics: dict[str, Any] | None) -> Section:
    """The tokenizer's numbers, the tree of SIDs as a mosaic, and what lies under the largest first codes."""
    if sids is None and metrics is None:
        return None
    metrics = metrics or {}
    levels = [
        {"level": number, "utilisation": used, "perplexity": spread}
        for number, (used, spread) in enumerate(
            zip(metrics.get("utilisation", []), metrics.get("perplexity", []), strict=False), 1
        )
    ]
    plot = figures.curves("Loss while fitting", metrics.get("curve", []), ("loss", "reconstruction"))
    found: dict[str, Any] = {"levels": levels, "metrics": metrics, "plots": [plot] if plot else []}
    found |= {"pieces": [], "groups": []}
    if sids is None or not sids.num_rows:
        return found
    codes = np.stack(sids["codes"].combine_chunks().to_numpy(zero_copy_only=False)).astype(np.int64)
    ids, titles = sids["item_id"], dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    pieces = mosaic.mosaic(codes, lambda row: titles.get(ids[row].as_py(), ids[row].as_py()))
    values, counts = np.unique(codes[:, 0], return_counts=True)
    for place in np.argsort(-counts, kind="stable")[:GROUPS]:
        members = np.flatnonzero(codes[:, 0] == values[place])
        members = members[np.lexsort(codes[members].T[::-1])]
        shown = [album.tile(ids[int(row)].as_py()) for row in spread(members.tolist(), GROUP_ITEMS)]
        seconds = len(np.unique(codes[members, 1])) if codes.shape[1] > 1 else 0
        found["groups"].append({"code": int(values[place]), "items": len(members), "second": seconds, "tiles": shown})
    return found | {"pieces": pieces, "width": mosaic.WIDTH, "height": mosaic.HEIGHT, "first": len(values)}


def training(metrics: dict[str, Any] | None, aligned: dict[str, Any] | None = None) -> Section:
    """The policy's curves, and those of the alignment after it where there was one."""
    curve = (metrics or {}).get("curve", [])
    best = (metrics or {}).get("best_epoch")
    plots = [
        figures.curves("Training loss", curve, ("train_loss", "loss"), best),
        figures.curves("Validation while training", curve, ("hr@10", "ndcg@10"), best),
    ]
    further = aligned if (aligned or {}).get("curve") else None
    if further:
        curve, best = further["curve"], further["best_step"]
        plots += [
            figures.curves("While aligning", curve, ("reward", "kl", "loss", "accuracy"), best, "step"),
            figures.curves("Validation while aligning", curve, ("hr@10", "ndcg@10"), best, "step"),
        ]
    plots = [plot for plot in plots if plot]
    return {"plots": plots, "metrics": metrics, "aligned": further} if plots else None


def results(evaluation: dict[str, Any] | None) -> Section:
    """The metrics table: test beside validation beside popularity."""
    if not evaluation or "test" not in evaluation:
        return None
    test, validation = evaluation["test"], evaluation.get("validation") or {}
    popular = evaluation.get("popularity") or {}
    popular = popular.get("test", popular)
    rows = [
        {"name": name, "test": test[name], "validation": validation.get(name), "popularity": popular.get(name),
         "lift": test[name] / popular[name] if popular.get(name) else None}
        for name in MEASURES if name in test
    ]
    series = {"test": test, "validation": validation, "popularity, test": popular}
    series = {name: part for name, part in series.items() if part}
    plots = [figures.hit_rates(series, measure) for measure in ("HR", "NDCG")] if rows else []
    top = max((row["test"] for row in rows), default=0) or 1
    return {"rows": rows, "top": top, "plots": plots, "test": test, "validation": validation, "popularity": popular}


def recommendations(evaluation: dict[str, Any] | None, album: Album) -> Section:
    """Some users' histories, what they bought next, and what the policy answered."""
    users = []
    for sample in _mixed((evaluation or {}).get("samples", [])):
        history, answers, target = sample["history"], sample["recommended"][:ANSWERS], sample.get("target")
        ranks = [one["item_id"] for one in answers]
        users.append({
            "user_id": sample["user_id"], "earlier": max(0, len(history) - HISTORY),
            "history": [album.tile(item) for item in history[-HISTORY:]],
            "target": album.tile(target) if target else None,
            "rank": ranks.index(target) + 1 if target in ranks else None,
            "answers": [{"tile": album.tile(one["item_id"]), "score": one.get("score")} for one in answers],
        })
    return {"users": users} if users else None


def cost(stages: Sequence[dict[str, Any]]) -> Section:
    """Seconds and model calls of each stage."""
    seconds = {str(stage["stage"]): float(stage.get("seconds", 0)) for stage in stages if "stage" in stage}
    calls = [call for stage in stages if "stage" in stage for call in _calls(str(stage["stage"]), stage)]
    if not seconds:
        return None
    return {"seconds": seconds, "slowest": max(seconds.values(), default=0) or 1, "total": sum(seconds.values()),
            "calls": calls, "called": sum(int(call["calls"]) for call in calls)}


def _mixed(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some hits and some misses, in turns, so that both can be looked at."""
    hits = [s for s in samples if s.get("target") in [one["item_id"] for one in s["recommended"][:ANSWERS]]]
    misses = [s for s in samples if s not in hits]
    turns = [one for pair in zip_longest(hits, misses) for one in pair if one is not None]
    return turns[:USERS]


def _calls(name: str, stage: dict[str, Any]) -> list[dict[str, Any]]:
    made, reused = stage.get("model_calls"), stage.get("reused")
    if made is None:
        return []
    if isinstance(made, dict):
        old = reused if isinstance(reused, dict) else {}
        return [{"kind": f"{name}: {part}", "calls": n, "reused": old.get(part)} for part, n in made.items()]
    return [{"kind": name, "calls": made, "reused": reused, "failed": stage.get("failed")}]


def _provenance(table: pa.Table) -> dict[str, Any]:
    makers = pc.value_counts(pa.array([
        f"{provider} · {model}" if model else provider
        for provider, model in zip(table["provider"].to_pylist(), table["model"].to_pylist(), strict=True)
    ], pa.string())).to_pylist()
    failed = pc.sum(pc.equal(table["status"], "failed")).as_py() or 0
    return {"makers": [row["values"] for row in makers][:3], "rows": table.num_rows, "failed": failed}


def _describable(items: pa.Table, album: Album, tables: dict[str, pa.Table]) -> list[str]:
    good = {
        row_id for name in ("intents", "captions") if name in tables
        for row_id in tables[name].filter(pc.equal(tables[name]["status"], "ok"))["item_id"].to_pylist()
    }
    ids = items["item_id"].to_pylist()
    for wanted in (lambda i: i in good and album.has_photo(i), lambda i: i in good):
        chosen = [item for item in ids if wanted(item)]
        if chosen:
            return chosen
    return ids


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """Up to `most` values, evenly over the sequence."""
    places = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)) if len(values) else []
    return [values[int(place)] for place in places]


def _row(table: pa.Table, item_id: str) -> dict[str, Any] | None:
    place = pc.index(table["item_id"], item_id).as_py()
    return table.slice(place, 1).to_pylist()[0] if place >= 0 else None


def _descriptors(made: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    described = (made.get("intents") or {}).get("descriptors") or []
    labels = (made.get("quality") or {}).get("labels") or []
    labels = labels if len(labels) == len(described) else [None] * len(described)
    return [{**one, "label": label} for one, label in zip(described, labels, strict=True)]

