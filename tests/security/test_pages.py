"""What sellers, customers and models write is text in every page: it runs nothing, and no page asks a foreign host."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.report.report import run as report
from tessera.errors import GateError
from tessera.files import write_json
from tessera.schema import SCHEMAS, write_table
from validation.gate import run
from validation.suites import TABLES, Suite

pytestmark = pytest.mark.integration

RAN = "ran(1)"
PAYLOADS = [
    f"<script>{RAN}</script>", f"<SCRIPT>{RAN}</SCRIPT>", f"<script\n>{RAN}</script\n>",
    f"<scr<script>ipt>{RAN}</script>", f"</script><script>{RAN}</script>", f"</title><script>{RAN}</script>",
    f"</style><script>{RAN}</script>", f"</textarea><script>{RAN}</script>", f"--><script>{RAN}</script>",
    f"]]><script>{RAN}</script>", f"'><script>{RAN}</script>", f'"><script>{RAN}</script>',
    f"`><script>{RAN}</script>", f"</td></tr></table><script>{RAN}</script>",
    "<script src=//cdn.example/x.js></script>", "<script src=data:text/javascript,ran(1)></script>",
    '<script type=module>import "https://cdn.example/m.js"</script>', f"<img src=x onerror={RAN}>",
    f"<img src=x:x onerror='{RAN}'>", f"<IMG SRC=x OnErRoR={RAN}>", f"<img/src=x/onerror={RAN}>",
    "<img src=https://cdn.example/pixel.gif>", '<img srcset="https://cdn.example/a 1x">', f"<svg onload={RAN}>",
    f"<svg><script>{RAN}</script></svg>", f"<svg><animate onbegin={RAN} attributeName=x dur=1s></svg>",
    f"<math><mtext></mtext><mglyph><img src=x onerror={RAN}></math>", f"<body onload={RAN}>",
    f"<details open ontoggle={RAN}>x</details>", f"<input autofocus onfocus={RAN}>",
    f"<video><source onerror={RAN}></video>", f"<audio src=x onerror={RAN}>", f"<marquee onstart={RAN}>x</marquee>",
    f"<a href=javascript:{RAN}>go</a>", f'<a href="java\tscript:{RAN}">go</a>',
    f"<iframe src=javascript:{RAN}></iframe>", f"<iframe srcdoc='<script>parent.{RAN}</script>'></iframe>",
    f"<object data=javascript:{RAN}></object>", f"<form action=javascript:{RAN}><button>go</button></form>",
    f"<meta http-equiv=refresh content=0;url=javascript:{RAN}>",
    "<link rel=stylesheet href=https://cdn.example/x.css>", "<style>@import 'https://cdn.example/x.css';</style>",
    "<base href=https://cdn.example/>", f'" onmouseover="{RAN}" autofocus onfocus="{RAN}',
    f"' onfocus='{RAN}' autofocus '", f"javascript:{RAN}", f"&lt;script&gt;{RAN}&lt;/script&gt;",
    f"&#60;script&#62;{RAN}&#60;/script&#62;", f"\\u003cscript\\u003e{RAN}", "$value ${icon} $$ $x",
    "{{ 7 * 7 }} {% raw %} {# c #}", f"${{alert`{RAN}`}} <%= {RAN} %>",
]  # fmt: skip
MADE = {"provider": PAYLOADS[0], "model": PAYLOADS[23], "prompt_version": PAYLOADS[17], "status": "ok", "reason": None}
TABLE_NAMES = ("items", "captions", "intents", "quality")


def tables() -> dict[str, list[dict[str, Any]]]:
    """A catalogue whose every text is a payload, each said of two items: captions repeat, which is but a warning."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLE_NAMES}
    for number, text in enumerate([text for text in PAYLOADS for _ in range(2)]):
        key = {"item_id": f"{number:03d} {text}"}
        rows["items"].append(
            {**key, "title": text, "description": text, "brand": text, "categories": PAYLOADS, "attributes": [text],
             "image_status": "ok" if number % 2 else "missing", "image": f"{text}.png" if number % 2 else None}
        )  # fmt: skip
        rows["captions"].append({**key, **MADE, "caption": f"{text} and as many words as it takes"})
        described = [{"text": each, "confidence": 0.5} for each in PAYLOADS[number % 40 : number % 40 + 6] + [text]]
        rows["intents"].append({**key, **MADE, "surface": [text], "motives": PAYLOADS, "descriptors": described})
        labels = [(number + place) % 2 for place in range(len(described))]
        rows["quality"].append({**key, **MADE, "labels": labels, "score": sum(labels) / len(labels)})
    return rows


def write(rows: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, Path]:
    folder.mkdir()
    rows = rows | {"interactions": [], "splits": []}
    for name, table in rows.items():
        write_table(name, pa.Table.from_pylist(table, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in rows}


def gate(suite: Suite, paths: dict[str, Path], docs: Path) -> dict[str, Any]:
    return run(suite, {name: paths[name] for name in TABLES[suite]}, docs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data Docs of a gate that passes, and of one that refuses."""
    folder = tmp_path_factory.mktemp("pages")
    docs, rows = folder / "docs", tables()
    paths = write(rows, folder / "good")
    assert gate("captions", paths, docs)["success"]
    for row in rows["quality"]:
        row |= {"status": "failed", "reason": row["item_id"], "item_id": row["item_id"] + "!"}
    bad = write(rows, folder / "bad")
    with pytest.raises(GateError):
        gate("intents", bad, docs)
    return docs / "site"


def poke(page: Any) -> None:
    """Do what a reader may: open all that is folded, point at, focus and click everything that takes it."""
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate("""document.querySelectorAll('a, button, input, td, span').forEach(one => {
        one.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})); one.focus();
        if (one.protocol === 'javascript:') one.click();
    })""")


def test_data_docs_run_nothing_and_ask_nobody(site: Path, browser: Any) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 11  # two tables and three: suites, results, and the index
    shown = ""
    for page in pages:
        visit = browser.visit(page.as_uri(), poke)
        assert (visit.ran, visit.foreign) == ([], []), page
        assert "default-src 'none'" in visit.html
        shown += visit.text
    # Great Expectations lists the first values only.
    assert len([text for text in PAYLOADS if text in shown]) >= 40


def test_data_docs_lead_from_the_index_to_every_result(site: Path, browser: Any) -> None:
    index = browser.visit((site / "index.html").as_uri(), lambda page: page.eval_on_selector_all(
        "a[href]", "links => links.map(link => link.href)"))
    linked = set(index.found)
    assert linked >= {page.as_uri() for page in (site / "validations").rglob("*.html")}
    followed = browser.visit(sorted(linked)[-1], lambda page: page.inner_text("body"))
    assert "Expectation" in followed.found
    assert "item_id" in followed.found


def test_the_report_runs_nothing_and_asks_nobody(tmp_path: Path, browser: Any) -> None:
    paths = write(tables(), tmp_path / "tables")
    write_json(tmp_path / "gate.json", {"suite": PAYLOADS[0], "success": False, "expectations": [
        {"expectation": text, "table": text, "column": text, "observed": text, "severity": "critical", "success": False,
         "unexpected_count": 1, "examples": [{"row": text, "value": text}]} for text in PAYLOADS]})
    answers = [{"item_id": row, "sid": "1"} for row in PAYLOADS[:12]]
    write_json(tmp_path / "evaluation.json", {"test": {"hr@10": 0.5, "ndcg@10": 0.3}, "popularity": {}, "samples": [
        {"user_id": text, "history": PAYLOADS[:3], "target": text, "recommended": answers} for text in PAYLOADS]})
    write_json(tmp_path / "stage.json", {"stage": PAYLOADS[0], "seconds": 1.0, "curve": [], "reason": PAYLOADS[1]})
    write_json(tmp_path / "settings.json", {"source": PAYLOADS[2], "seed": PAYLOADS[3], "all": PAYLOADS})
    out = tmp_path / "report.html"
    report(
        **{name: paths[name] for name in ("items", "captions", "intents", "quality")}, images=None, sids=None,
        gates=[tmp_path / "gate.json"], tokenizer_metrics=None, policy_metrics=None,
        evaluation=tmp_path / "evaluation.json", stages=[tmp_path / "stage.json"], out_html=out,
        settings=tmp_path / "settings.json", title=PAYLOADS[5],
    )  # fmt: skip
    visit = browser.visit(out.as_uri(), poke)
    assert (visit.ran, visit.foreign) == ([], [])
    assert "default-src 'none'" in visit.html
    assert [text for text in PAYLOADS if text not in visit.text] == []
