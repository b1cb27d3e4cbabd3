"""The report: well-formed, self-contained, escaped, small, and readable from whatever parts of a run there are."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.report import mosaic
from components.report.report import run
from tessera.errors import InputError
from tessera.files import write_json
from tessera.schema import SCHEMAS, read_table, write_table

HOSTILE = '<script>alert("x")</script> & "Co" \x07\x0b'
MADE = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok", "reason": None}
SECTIONS = ["data", "enrichment", "gates", "ids", "training", "results", "users", "cost", "files"]


def save(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), folder / f"{name}.parquet")


def write_run(folder: Path, items: int = 60, photos: bool = True, title: str = "Ball, size 4") -> dict[str, Any]:
    """A run's files for `items` items; returns the arguments of `run`."""
    rng, images = np.random.default_rng(0), folder / "images"
    images.mkdir(parents=True)
    ids = [f"i{n:05d}" for n in range(items)]
    rows = []
    for number, item in enumerate(ids):
        if photos and number < 40:
            Image.fromarray(rng.integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(images / f"{item}.jpg")
        rows.append({
            "item_id": item, "title": title if number == 0 else f"Item {number}", "description": "", "brand": HOSTILE,
            "categories": ["Sports"], "attributes": [], "image": f"{item}.jpg" if photos else None,
            "image_status": "ok" if photos else "none",
        })
    save(folder, "items", rows)
    histories = [[ids[i] for i in rng.integers(0, items, 5)] for _ in range(30)]
    save(folder, "splits", [
        {"user_id": f"u{n}", "train": h[:3], "validation": h[3], "test": h[4]} for n, h in enumerate(histories)
    ])
    save(folder, "captions", [{"item_id": i, **MADE, "caption": "A red ball on a lawn."} for i in ids])
    descriptors = [{"text": "school sports", "confidence": 0.92}, {"text": "nice thing", "confidence": None}]
    save(folder, "intents", [
        {"item_id": i, **MADE, "surface": ["red"], "motives": ["play outside"], "descriptors": descriptors} for i in ids
    ])
    save(folder, "quality", [{"item_id": i, **MADE, "labels": [1, 0], "score": 0.5} for i in ids])
    flat = rng.choice(32**3, items, replace=False)
    codes = np.stack(np.unravel_index(flat, (32, 32, 32)), axis=1).tolist()
    sid_of = {i: "_".join(map(str, c)) for i, c in zip(ids, codes, strict=True)}
    save(folder, "sids", [
        {"item_id": i, "sid": sid_of[i], "codes": c, "moved": False, "tokenizer_version": "t"}
        for i, c in zip(ids, codes, strict=True)
    ])
    numbers = {f"{name}@{k}": 0.1 + k / 100 for name in ("hr", "ndcg") for k in (1, 5, 10, 20)}
    popular = {name: value / 2 for name, value in numbers.items()}
    answers = [{"item_id": i, "sid": sid_of[i]} for i in ids[:12]]
    samples = [
        {"user_id": user, "history": history, "target": target, "recommended": answers}
        for user, history, target in (("hits", ids[10:25], ids[2]), ("misses", [ids[3], "gone"], ids[50]))
    ]
    write_json(folder / "evaluation.json", {
        "test": numbers | {"invalid_rate": 0.0, "coverage@10": 0.4, "users": 30}, "validation": numbers,
        "popularity": {"test": popular, "validation": popular}, "samples": samples,
    })
    check = {
        "expectation": "expect_caption_to_be_long", "table": "captions", "column": "caption", "observed": "3 of 60",
        "severity": "warning", "success": False, "unexpected_count": 3, "examples": [{"row": "i1", "value": "<b>"}],
    }
    (folder / "docs").mkdir()
    (folder / "docs" / "index.html").write_text("")
    docs = str(folder / "docs" / "index.html")
    curve = [{"epoch": n, "train_loss": 3 / n, "hr@10": n / 10, "ndcg@10": n / 20} for n in range(1, 6)]
    fitted = {"utilisation": [1.0, 0.5, 0.25], "perplexity": [30.0, 12.0, 6.0], "collision_rate_before": 0.2,
              "collision_rate_after": 0.0, "reconstruction_cosine": 0.9, "epochs": 2, "moved": 0.1,
              "curve": [{"epoch": 1, "loss": 2.0, "reconstruction": 1.0, "utilisation": [0.0]}]}
    steps = [
        {"stage": "caption", "seconds": 75.0, "model_calls": 60, "reused": 0, "failed": 0},
        {"stage": "embed", "seconds": 2.0, "model_calls": {"text": 60, "image": 40}, "reused": {"text": 0, "image": 0}},
        {"stage": "gate-captions", "seconds": 1.0, "suite": "captions", "success": True, "expectations": [check],
         "data_docs": docs},
        {"stage": "fit-tokenizer", "seconds": 3.0, **fitted},
        {"stage": "train-policy", "seconds": 9.0, "best_epoch": 4, "parameters": 200_000, "curve": curve},
        {"stage": "align-policy", "seconds": 4.0, "best_step": 20, "steps": 40, "curve": [
            {"epoch": n, "hr@10": 0.5, "ndcg@10": 0.3} | ({"reward": 0.1, "kl": 0.01} if n else {}) for n in (0, 20, 40)
        ]},
        {"stage": "gate-policy", "seconds": 1.0, "passed": False, "reason": "policy 2 is not promoted: too weak."},
    ]
    for step in steps:
        write_json(folder / f"{step['stage']}.json", step)
    write_json(folder / "settings.json", {"source": "shop", "seed": 0, "path": HOSTILE})
    tables = ("items", "captions", "intents", "quality", "sids", "splits")
    return {
        **{name: folder / f"{name}.parquet" for name in tables},
        "images": images, "evaluation": folder / "evaluation.json",
        "gates": [folder / "gate-captions.json", folder / "gate-policy.json"],
        "tokenizer_metrics": folder / "fit-tokenizer.json", "policy_metrics": folder / "train-policy.json",
        "align_metrics": folder / "align-policy.json",
        "stages": [folder / f"{step['stage']}.json" for step in steps], "out_html": folder / "report.html",
        "settings": folder / "settings.json", "title": "Demo <1>",
    }


def page_of(arguments: dict[str, Any]) -> tuple[str, ElementTree.Element]:
    """The page as text and as a tree; parsing it as XML refuses any tag that is not closed and any stray < or &."""
    run(**arguments)
    text = arguments["out_html"].read_text(encoding="utf-8")
    return text, ElementTree.fromstring(text)


def ids_of(page: ElementTree.Element) -> list[str]:
    return [section.get("id", "") for section in page.iter("section")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ElementTree.Element]:
    return page_of(write_run(tmp_path_factory.mktemp("run"), title=HOSTILE))


def test_all_sections_are_there(hostile: tuple[str, ElementTree.Element]) -> None:
    text, page = hostile
    assert ids_of(page) == SECTIONS
    linked = {link.get("href") for link in next(page.iter("nav")).iter("a")}
    assert linked == {f"#{name}" for name in SECTIONS if name != "files"}
    words = " ".join("".join(page.itertext()).split())
    for expected in ("Demo <1>", "60 items", "30 users", "150 purchases", "test HR@10", "2.0× popularity", "hit at 3",
                     "miss", "A red ball on a lawn.", "play outside", "school sports", "1 min 15 s", "perplexity 12.0",
                     "policy 2 is not promoted: too weak.", "caption to be long", "160",
                     "Then 40 steps of alignment; the weights of step 20 are kept."):
        assert expected in words, expected
    assert text.count('<svg class="plot"') == 9
    assert text.count("background-image:url(data:image/webp;base64,") > 20


def test_the_page_loads_nothing_and_runs_nothing(hostile: tuple[str, ElementTree.Element]) -> None:
    text, page = hostile

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append(tag)
            assert not [name for name, _ in attrs if name.startswith("on")]

    parser = Tags()
    parser.feed(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(parser.seen)
    assert not re.findall(r'(?:src|href)\s*=\s*"(?:https?:)?//', text)
    assert not re.findall(r"url\(\s*[\"']?(?!data:|#)", text)
    assert not re.findall(r"@import", text)
    links = [link.get("href", "") for link in page.iter("a")]
    assert [link for link in links if not link.startswith(("#", "file://"))] == []
    assert [link for link in links if link.endswith("docs/index.html")]


def test_titles_from_the_wild_are_text(hostile: tuple[str, ElementTree.Element]) -> None:
    text, page = hostile
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") >= 2
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    titles = [figure.text for figure in page.iter("figcaption")]
    assert '<script>alert("x")</script> & "Co" ' in titles
    identifiers = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))


def test_a_catalogue_without_photos(tmp_path: Path) -> None:
    text, page = page_of(write_run(tmp_path / "run", photos=False, title="Kettle Corn"))
    assert "data:image" not in text
    blanks = [one for one in page.iter("span") if "blank" in (one.get("class") or "")]
    assert "KC" in [one.findtext("b") for one in blanks]
    assert all(one.get("aria-label") for one in blanks)
    assert "60 without a photo" in text


def test_unusable_photos_become_tiles(tmp_path: Path) -> None:
    arguments = write_run(tmp_path / "run")
    images = tmp_path / "run" / "images"
    for photo in images.iterdir():
        photo.write_bytes(b"not a photo")
    assert "data:image" not in page_of(arguments)[0]
    secret = Image.new("RGB", (20, 20))
    secret.save(tmp_path / "secret.jpg")
    rows = read_table("items", arguments["items"]).to_pylist()
    save(tmp_path / "run", "items", [{**row, "image": "../../secret.jpg"} for row in rows])
    assert "data:image" not in page_of(arguments)[0]


@pytest.mark.parametrize(
    ("left_out", "gone"),
    [
        ("captions", []), ("intents", []), ("quality", []), ("captions intents quality", ["enrichment"]),
        ("sids", []), ("images", []), ("splits", []), ("tokenizer_metrics", []), ("tokenizer_metrics sids", ["ids"]),
        ("evaluation", ["results", "users"]), ("align_metrics", []), ("policy_metrics align_metrics", ["training"]),
        ("settings", ["files"]),
    ],
)
def test_a_missing_part_leaves_its_section_out(tmp_path: Path, left_out: str, gone: list[str]) -> None:
    arguments = write_run(tmp_path / "run")
    arguments |= dict.fromkeys(left_out.split())
    assert ids_of(page_of(arguments)[1]) == [name for name in SECTIONS if name not in gone]


@pytest.mark.parametrize(("left_out", "gone"), [("gates", "gates"), ("stages", "cost")])
def test_files_that_are_not_there_leave_their_section_out(tmp_path: Path, left_out: str, gone: str) -> None:
    arguments = write_run(tmp_path / "run") | {left_out: [tmp_path / "nowhere.json"]}
    assert ids_of(page_of(arguments)[1]) == [name for name in SECTIONS if name != gone]


def test_items_alone_are_enough_and_needed(tmp_path: Path) -> None:
    arguments = write_run(tmp_path / "run")
    given = {"items": arguments["items"], "gates": [], "stages": [], "out_html": tmp_path / "a" / "b.html", "title": ""}
    alone = dict.fromkeys(arguments) | given
    _, page = page_of(alone)
    assert ids_of(page) == ["data"]
    with pytest.raises(InputError, match="does not exist"):
        run(**{**alone, "items": tmp_path / "nowhere.parquet"})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.html"]


def test_failed_enrichments_say_why(tmp_path: Path) -> None:
    arguments = write_run(tmp_path / "run")
    failed = MADE | {"status": "failed", "reason": "the answer was no JSON", "caption": None}
    save(tmp_path / "run", "captions", [{"item_id": f"i{n:05d}", **failed} for n in range(60)])
    words = "".join(page_of(arguments)[1].itertext())
    assert "60 failed" in words
    assert "No caption: the answer was no JSON" in words


def test_a_huge_catalogue_stays_small(tmp_path: Path) -> None:
    arguments = write_run(tmp_path / "run", items=20_000, photos=False)
    assert run(**arguments)["bytes"] < 5_000_000


def overlap(a: mosaic.Rect, b: mosaic.Rect) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.floats(1, 2000), st.floats(1, 2000))
def test_a_treemap_has_the_right_areas_inside_its_box(sizes: list[int], width: float, height: float) -> None:
    sizes = sorted(sizes, reverse=True)
    rects = mosaic.squarify(sizes, (3.0, 5.0, width, height))
    scale = width * height / sum(sizes)
    for size, (x, y, w, h) in zip(sizes, rects, strict=True):
        assert w * h == pytest.approx(size * scale, rel=1e-6)
        assert x >= 3 - 1e-6
        assert y >= 5 - 1e-6
        assert x + w <= 3 + width * (1 + 1e-6)
        assert y + h <= 5 + height * (1 + 1e-6)
    for number, one in enumerate(rects):
        assert all(overlap(one, other) < 1e-6 * width * height for other in rects[:number])


def test_the_published_treemap_example() -> None:
    """Bruls, Huizing and van Wijk (2000), figure 4: areas 6 6 4 3 2 2 1 in a box of 6 by 4."""
    rects = mosaic.squarify([6, 6, 4, 3, 2, 2, 1], (0, 0, 6, 4))
    assert [tuple(round(v, 2) for v in rect) for rect in rects[:4]] == [
        (0, 0, 3, 2), (0, 2, 3, 2), (3, 0, 1.71, 2.33), (4.71, 0, 1.29, 2.33),
    ]


def test_every_item_is_in_the_mosaic_once() -> None:
    codes = np.array([[0, 1, 0], [0, 1, 1], [0, 2, 0], [5, 3, 3]])
    pieces = [piece for piece in mosaic.mosaic(codes, lambda row: f"item {row}") if piece.colour != "none"]
    assert sorted(piece.text for piece in pieces) == [
        "0 › 1: 2 items: item 0; item 1", "0 › 2: 1 item: item 2", "5 › 3: 1 item: item 3",
    ]
    areas = {piece.text[:5]: piece.width * piece.height for piece in pieces}
    assert areas["0 › 1"] / areas["0 › 2"] == pytest.approx(2, rel=0.05)
    assert math.isclose(sum(areas.values()), mosaic.WIDTH * mosaic.HEIGHT, rel_tol=0.05)
