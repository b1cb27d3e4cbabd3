import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.catalog.sources import amazon
from tessera.catalog.sources.amazon_files import detect
from tessera.catalog.sources.amazon_items import item_of
from tessera.errors import InputError

Line = Callable[[dict[str, Any]], str]

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "B000000001", "reviewerName": "J. \"Jo\" Doe", "helpful": [0, 0], "overall": 5.0,
     "reviewText": "it's ok", "summary": "ok", "unixReviewTime": 1390000002, "reviewTime": "01 18, 2014"},
    {"reviewerID": "A1", "asin": "B000000002", "overall": 1.0, "unixReviewTime": 1390000001},
    {"reviewerID": "A2", "asin": "B000000001", "overall": 3.0, "unixReviewTime": 1390000000},
    {"reviewerID": "A2", "asin": "B00000GONE", "overall": 3.0, "unixReviewTime": 1390000003},
]
META_2014 = [
    {"asin": "B000000001", "title": "Rose &amp; Thorn  Soap", "description": "It's <b>soap</b>.<br>Nice.", "price": 3.5,
     "imUrl": "http://img.example/I/1._SX300_.jpg", "related": {"also_bought": ["x"]}, "salesRank": {"Beauty": 5},
     "brand": "Rose", "categories": [["Beauty", "Bath", "Soaps"], ["Gifts"]]},
    {"asin": "B000000002", "categories": [["Beauty", "Hair"]], "brand": "Acme"},
    {"asin": "B00NEVERED", "title": "Nobody reviewed this", "categories": [["Beauty"]]},
]
REVIEWS_2018 = [
    {"overall": 5.0, "verified": True, "reviewTime": "01 1, 2018", "reviewerID": "A1", "asin": "B000000001",
     "style": {"Size:": " 4"}, "image": ["https://img.example/r.jpg"], "unixReviewTime": 1514764800},
    {"overall": 4.0, "verified": False, "reviewerID": "A1", "asin": "B000000002", "style": None,
     "unixReviewTime": 1514764801, "vote": "3"},
]
META_2018 = [
    {"category": ["Industrial", "Lab &amp; Scientific"], "tech1": "", "description": ["First.", "<p>Second</p>"],
     "title": "Beaker, 100 ml", "also_buy": [], "image": [], "brand": "Glass", "asin": "B000000001",
     "feature": ["Heat proof", "<span>50%</span>"],
     "imageURL": ["https://img.example/small.jpg"], "imageURLHighRes": ["https://img.example/big.jpg"]},
    {"category": [], "description": [], "title": "Beaker, 100 ml", "brand": "Other", "asin": "B000000001"},
    {"category": ["Industrial"], "description": [], "feature": [], "brand": "Acme", "asin": "B000000002",
     "title": "var aPageStart = (new Date()).getTime();", "image": []},
]
REVIEWS_2023 = [
    {"rating": 5.0, "title": "Such a lovely scent", "text": "…", "images": [], "asin": "B0CHILD001",
     "parent_asin": "B000000001", "user_id": "AG1", "timestamp": 1588687728923, "verified_purchase": True},
    {"rating": 4.0, "title": "t", "text": "x", "images": [], "asin": "B0CHILD002", "parent_asin": "B000000002",
     "user_id": "AG1", "timestamp": 1588687728100, "helpful_vote": 0, "verified_purchase": True},
]
META_2023 = [
    {"main_category": "All Beauty", "title": "Howard LC0008 Conditioner", "average_rating": 4.8, "price": None,
     "features": ["Soft", "Shiny"], "description": ["One.", "Two."], "store": "Howard Products",
     "categories": ["Beauty", "Hair"],
     "images": [{"thumb": "https://i.example/t2.jpg", "large": "https://i.example/l2.jpg", "variant": "PT01",
                 "hi_res": None},
                {"thumb": "https://i.example/t.jpg", "large": "https://i.example/l.jpg", "variant": "MAIN",
                 "hi_res": "https://i.example/h.jpg"}],
     "videos": [], "details": {"Brand": "Howard"}, "parent_asin": "B000000001", "bought_together": None},
    {"main_category": "All Beauty", "title": "Plain", "features": [], "description": [], "store": None,
     "categories": [], "parent_asin": "B000000002",
     "images": [{"thumb": "https://i.example/t3.jpg", "large": "https://i.example/l3.jpg", "hi_res": None}]},
]
RELEASES = {
    "2014 literals": ("reviews_Beauty_5.json.gz", REVIEWS_2014, "meta_Beauty.json.gz", META_2014, repr, 2014),
    "2014 JSON": ("reviews_Beauty_5.json", REVIEWS_2014, "meta_Beauty.json", META_2014, json.dumps, 2014),
    "2018": ("Industrial_5.json.gz", REVIEWS_2018, "meta_Industrial.json.gz", META_2018, json.dumps, 2018),
    "2023": ("All_Beauty.jsonl.gz", REVIEWS_2023, "meta_All_Beauty.jsonl.gz", META_2023, json.dumps, 2023),
}


def write(path: Path, records: list[dict[str, Any]], line: Line = json.dumps) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def release(folder: Path, name: str) -> Path:
    reviews, review_records, meta, meta_records, line, _ = RELEASES[name]
    write(folder / reviews, review_records, line)
    write(folder / meta, meta_records, line)
    return folder


@pytest.mark.parametrize("name", RELEASES)
def test_the_files_and_their_year_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "README.txt").write_text("notes")
    files = detect(release(tmp_path, name))
    reviews, _, meta, _, _, year = RELEASES[name]
    assert (files.reviews.name, files.meta.name, files.year) == (reviews, meta, year)


@pytest.mark.parametrize("name", ["2014 literals", "2014 JSON"])
def test_2014(tmp_path: Path, name: str) -> None:
    raw = amazon.read(release(tmp_path, name))
    assert raw.items.to_pylist() == [
        {"item_id": "B000000001", "title": "Rose & Thorn Soap", "description": "It's soap . Nice.", "brand": "Rose",
         "categories": ["Beauty", "Bath", "Soaps"], "attributes": [], "image": "http://img.example/I/1._SX300_.jpg"},
        {"item_id": "B000000002", "title": "Acme, Beauty, Hair", "description": "", "brand": "Acme",
         "categories": ["Beauty", "Hair"], "attributes": [], "image": None},
    ]
    assert raw.interactions.to_pylist() == [
        {"user_id": "A1", "item_id": "B000000001", "timestamp": 1390000002},
        {"user_id": "A1", "item_id": "B000000002", "timestamp": 1390000001},
        {"user_id": "A2", "item_id": "B000000001", "timestamp": 1390000000},
    ]
    assert raw.stats["dropped_interactions_of_unknown_items"] == 1
    assert raw.stats["titles_filled"] == 1


def test_2018(tmp_path: Path) -> None:
    raw = amazon.read(release(tmp_path, "2018"))
    first, second = raw.items.to_pylist()
    assert first == {
        "item_id": "B000000001", "title": "Beaker, 100 ml", "description": "First. Second", "brand": "Glass",
        "categories": ["Industrial", "Lab & Scientific"], "attributes": ["Heat proof", "50%"],
        "image": "https://img.example/big.jpg",
    }
    assert second["title"] == "Acme, Industrial"  # a piece of script is no title
    assert raw.stats["dropped_duplicate_items"] == 1
    assert raw.interactions["timestamp"].to_pylist() == [1514764800, 1514764801]


def test_2023_orders_by_milliseconds_and_keeps_seconds(tmp_path: Path) -> None:
    raw = amazon.read(release(tmp_path, "2023"))
    assert raw.interactions.to_pylist() == [
        {"user_id": "AG1", "item_id": "B000000002", "timestamp": 1588687728},
        {"user_id": "AG1", "item_id": "B000000001", "timestamp": 1588687728},
    ]
    assert raw.items["brand"].to_pylist() == ["Howard Products", ""]
    assert raw.items["description"].to_pylist() == ["One. Two.", ""]
    assert raw.items["attributes"].to_pylist() == [["Soft", "Shiny"], []]
    assert raw.items["image"].to_pylist() == ["https://i.example/h.jpg", "https://i.example/l3.jpg"]


@pytest.mark.parametrize("images", [None, ["x"], [{}], [{"hi_res": "javascript:1"}]])
def test_odd_image_fields_are_no_photo(images: Any) -> None:
    assert item_of("B1", {"title": "x", "images": images}, 2023)["image"] is None


def test_an_item_without_any_text_is_dropped_with_its_reviews(tmp_path: Path) -> None:
    write(tmp_path / "X.jsonl", REVIEWS_2023)
    write(tmp_path / "meta_X.jsonl", [META_2023[0], {"parent_asin": "B000000002", "title": "  ", "images": []}])
    raw = amazon.read(tmp_path)
    assert raw.items["item_id"].to_pylist() == ["B000000001"]
    assert raw.stats["dropped_items_without_text"] == raw.stats["dropped_interactions_of_unknown_items"] == 1


def test_incomplete_reviews_are_dropped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "X.jsonl", [*REVIEWS_2023, {**REVIEWS_2023[0], "user_id": None}])
    write(tmp_path / "meta_X.jsonl", META_2023)
    assert amazon.read(tmp_path).stats["dropped_incomplete_reviews"] == 1


def test_literals_are_read_and_never_run(tmp_path: Path) -> None:
    write(tmp_path / "reviews_X.json", REVIEWS_2014)
    evil = "{'asin': __import__('pathlib').Path('%s').touch()}" % (tmp_path / "ran")
    (tmp_path / "meta_X.json").write_text(repr(META_2014[0]) + "\n" + evil + "\n")
    with pytest.raises(InputError, match=r"line 2 of .*meta_X\.json"):
        amazon.read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_truncated_archives(tmp_path: Path) -> None:
    for index, cut in enumerate(("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")):
        folder = release(tmp_path / str(index), "2014 literals")
        content = (folder / cut).read_bytes()
        (folder / cut).write_bytes(content[: len(content) - 20])
        with pytest.raises(InputError, match=f"{cut} .*download it again"):
            amazon.read(folder)


def test_a_truncated_archive_of_json_reviews(tmp_path: Path) -> None:
    release(tmp_path, "2018")
    many = [{**REVIEWS_2018[0], "reviewerID": f"A{n}", "reviewText": f"{n * n} words"} for n in range(20_000)]
    path = write(tmp_path / "Industrial_5.json.gz", many)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"Industrial_5\.json\.gz .*download it again"):
        amazon.read(tmp_path)


def test_folders_that_are_no_release(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold one reviews and one metadata file"):
        detect(tmp_path)
    folder = release(tmp_path / "two", "2014 JSON")
    write(folder / "Beauty.json", REVIEWS_2014)
    with pytest.raises(InputError, match=r"of reviews it has 2 \(Beauty\.json, reviews_Beauty_5\.json\)"):
        detect(folder)
    write(tmp_path / "named" / "meta_X.json", REVIEWS_2014)
    with pytest.raises(InputError, match=r"meta_X\.json is not named like the reviews"):
        detect(tmp_path / "named")
    mixed = tmp_path / "mixed"
    write(mixed / "X.json", REVIEWS_2018)
    write(mixed / "meta_X.jsonl", META_2023)
    with pytest.raises(InputError, match="different years"):
        detect(mixed)
    write(tmp_path / "other" / "X.json", [{"name": "something else"}])
    with pytest.raises(InputError, match="not a file of Amazon Reviews"):
        detect(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "X.json").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        detect(tmp_path / "empty")


def test_reviews_and_items_that_do_not_meet(tmp_path: Path) -> None:
    write(tmp_path / "X.json", [{**REVIEWS_2018[0], "asin": "B00OTHER"}])
    write(tmp_path / "meta_X.json", META_2018)
    with pytest.raises(InputError, match="must be of one category"):
        amazon.read(tmp_path)
