"""The report stage: the files of a run as one self-contained HTML page."""

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from components.report import mosaic, sections
from components.report.thumbnails import Album
from tessera.files import read_json, write_text
from tessera.schema import read_table

ENRICHMENTS = ("captions", "intents", "quality")
# Characters that HTML does not have; titles come from the wild.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def run(
    items: Path,
    images: Path | None,
    captions: Path | None,
    intents: Path | None,
    quality: Path | None,
    sids: Path | None,
    gates: Sequence[Path],
    tokenizer_metrics: Path | None,
    policy_metrics: Path | None,
    evaluation: Path | None,
    stages: Sequence[Path],
    out_html: Path,
    *,
    align_metrics: Path | None = None,
    splits: Path | None = None,
    settings: Path | None = None,
    metrics: Path | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Write the report. Only samples of the catalogue are embedded, so the page stays below 5 MB; it loads nothing.

    Args:
        items, captions, intents, quality, sids, splits: parquet files of those schemas; images: folder of the photos.
        gates: what `validation.gate.run` returned, as JSON, and the promotion gate's {"passed", "reason"}.
        tokenizer_metrics, policy_metrics, align_metrics: what the fits returned, as JSON.
        evaluation: what `tessera.evaluation.evaluate.run` wrote.
        stages: what each stage said of itself, {"stage", "seconds"} and, of an enrichment, its model calls.
        settings, metrics: settings.json and metrics.json; title: name of the run.
        A part that is None, or a file that is not there, leaves its section out.

    Returns: {"bytes": size of the page}.

    Raises:
        InputError: `items` is missing, or a file that is there cannot be read.
    """
    table = read_table("items", items)
    optional = {"captions": captions, "intents": intents, "quality": quality, "sids": sids, "splits": splits}
    tables = {name: read_table(name, path) if path and path.exists() else None for name, path in optional.items()}
    album = Album(table, images if images and images.is_dir() else None, tables["sids"])
    evaluated, tokenizer = _json(evaluation), _json(tokenizer_metrics)
    policy, aligned = _json(policy_metrics), _json(align_metrics)
    verdicts, said = ([read_json(path) for path in paths if path.exists()] for paths in (gates, stages))
    makers = {
        "data": lambda: sections.data(table, tables["splits"]),
        "enrichment": lambda: sections.enrichment(table, album, *(tables[n] for n in ENRICHMENTS)),
        "gates": lambda: sections.gates(verdicts),
        "ids": lambda: sections.semantic_ids(tables["sids"], table, album, tokenizer),
        "training": lambda: sections.training(policy, aligned),
        "results": lambda: sections.results(evaluated),
        "users": lambda: sections.recommendations(evaluated, album),
        "cost": lambda: sections.cost(said),
    }
    page = {name: make() for name, make in tqdm(makers.items(), desc="report", unit="section")}
    raw = {"settings": _json(settings), "metrics": _json(metrics)}
    write_text(out_html, render(page, album, title or "A run", raw, tables["sids"]))
    return {"bytes": out_html.stat().st_size}


def render(page: dict[str, Any], album: Album, title: str, raw: dict[str, Any], sids: pa.Table | None) -> str:
    """The page as text; everything that comes from a file is escaped. `raw`: files shown as they are."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_clean,
    )
    environment.filters |= {"n": _integer, "pct": _percent, "num": _number, "duration": _duration}
    environment.globals |= {"colour": mosaic.colour, "pretty": partial(json.dumps, indent=2, ensure_ascii=False)}
    return environment.get_template("report.html.j2").render(
        **page, title=title, raw=raw, css=album.css(), strip=_strip(sids),
        written=datetime.now(timezone.utc).strftime("%-d %B %Y, %H:%M UTC"),
    )


def _strip(sids: pa.Table | None) -> list[list[str]]:
    """Rows of colours for the head of the page: the codes of some items, one row a level."""
    if sids is None or not sids.num_rows:
        return []
    codes = sections.spread(sids["codes"].to_pylist(), 56)
    return [[mosaic.colour(code, level, 0.35 * ((code * 7) % 5 - 2)) for code in row]
            for level, row in enumerate(zip(*codes, strict=True))]


def _json(path: Path | None) -> Any:
    return read_json(path) if path and path.exists() else None


def _clean(value: Any) -> Any:
    return _CONTROL.sub("", value) if type(value) is str else value


def _integer(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"
