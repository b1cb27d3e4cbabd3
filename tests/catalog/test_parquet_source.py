import datetime
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessera.catalog import ingest
from tessera.catalog.database import Catalogue
from tessera.catalog.sources import parquet
from tessera.config import CatalogueSettings, Settings
from tessera.errors import InputError, ServiceError
from tessera.schema import read_table

ITEMS = {"item_id": [1, 2, 3], "title": ["Red &amp; blue  ball", "Lamp", "Mug"]}


def folder_of(path: Path, items: dict[str, Any], **tables: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(items), path / "items.parquet")
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), path / f"{name}.parquet")
    return path


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return path


def run(source: Path, out: Path, k_core: int = 0) -> dict[str, Any]:
    """The tables of a source, and as if a gate had passed them, the database."""
    settings = Settings(source="parquet", path=source, catalogue=CatalogueSettings(k_core=k_core))
    counts = ingest.run(settings, f"sqlite:///{out}/home/catalogue.db", out)
    ingest.fill(out, f"sqlite:///{out}/home/catalogue.db")
    return counts


def test_fields_in_all_their_forms(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path, {
            **ITEMS, "description": [" A\nball ", None, "<b>"], "brand": ["Acme", "", None], "extra": [1, 2, 3],
            "categories": ["Toys, Balls", None, "Kitchen"], "attributes": [["red", "red", ""], [], None],
        },
    )
    items = parquet.read(source).items.to_pylist()
    assert items[0] == {
        "item_id": "1", "title": "Red & blue ball", "description": "A ball", "brand": "Acme",
        "categories": ["Toys", "Balls"], "attributes": ["red"], "image": None,
    }
    assert items[1]["categories"] == items[1]["attributes"] == []
    assert items[2]["description"] == "<b>"


def test_pandas_types_are_understood(tmp_path: Path) -> None:
    items = {
        "item_id": pa.array(["x", "y"], pa.large_string()), "title": pa.array(["a", "b"]).dictionary_encode(),
        "categories": pa.array([["c"], ["d"]], pa.large_list(pa.large_string())),
    }
    users, histories = pa.array(["u"]).dictionary_encode(), pa.array([["x", "y"]], pa.large_list(pa.string()))
    raw = parquet.read(folder_of(tmp_path, items, sequences={"user_id": users, "item_ids": histories}))
    assert raw.items["title"].to_pylist() == ["a", "b"]
    assert raw.interactions["item_id"].to_pylist() == ["x", "y"]


def test_sequences_keep_their_order_and_repeats(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", ITEMS, sequences={"user_id": [7], "item_ids": [[3, 1, 3, 3, 2]]})
    assert run(source, tmp_path / "out")["interactions"] == 5
    table = read_table("interactions", tmp_path / "out" / "interactions.parquet")
    assert table["item_id"].to_pylist() == ["3", "1", "3", "3", "2"]
    assert table["position"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(table["timestamp"].to_pylist()) == {0}
    (split,) = read_table("splits", tmp_path / "out" / "splits.parquet").to_pylist()
    assert split == {"user_id": "7", "train": ["3", "1", "3"], "validation": "3", "test": "2"}


DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    "times",
    [
        [1704067202, 1704067200, 1704067201],
        [1704067202000, 1704067200999, 1704067201000],
        [1704067202.0, 1704067200.0, 1704067201.0],
        [DAY + datetime.timedelta(seconds=s) for s in (2, 0, 1)],
    ],
)
def test_clocks(tmp_path: Path, times: list[Any]) -> None:
    clocked = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": times}
    run(folder_of(tmp_path / "in", ITEMS, interactions=clocked), tmp_path / "out")
    table = read_table("interactions", tmp_path / "out" / "interactions.parquet")
    assert table["item_id"].to_pylist() == ["2", "3", "1"]
    assert table["timestamp"].to_pylist() == [1704067200, 1704067201, 1704067202]


def test_milliseconds_order_what_seconds_cannot(tmp_path: Path) -> None:
    clocked = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1704067200900, 1704067200100]}
    raw = parquet.read(folder_of(tmp_path, ITEMS, interactions=clocked))
    assert raw.interactions["item_id"].to_pylist() == ["2", "1"]


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    items = {"item_id": [1, 2, 1], "title": ["a", "b", " a "]}
    clocked = {"user_id": [1, 1, 1], "item_id": [1, 1, 1], "timestamp": [5, 5, 6]}
    counts = run(folder_of(tmp_path / "in", items, interactions=clocked), tmp_path / "out")
    assert (counts["items"], counts["dropped_duplicate_items"]) == (2, 1)
    assert (counts["interactions"], counts["dropped_duplicate_interactions"]) == (2, 1)


def test_no_interactions_is_a_catalogue_too_and_is_not_filtered(tmp_path: Path) -> None:
    counts = run(folder_of(tmp_path / "in", ITEMS), tmp_path / "out", k_core=5)
    assert (counts["items"], counts["users"], counts["interactions"]) == (3, 0, 0)
    assert read_table("splits", tmp_path / "out" / "splits.parquet").num_rows == 0


def test_k_core_drops_items_users_and_those_never_bought(tmp_path: Path) -> None:
    clocked = {"user_id": [1, 1, 2, 2, 3], "item_id": [1, 2, 1, 2, 1], "timestamp": range(5)}
    counts = run(folder_of(tmp_path / "in", ITEMS, interactions=clocked), tmp_path / "out", k_core=2)
    assert (counts["items"], counts["users"], counts["interactions"]) == (2, 2, 4)
    assert counts["dropped_by_k_core_items"] == counts["dropped_by_k_core_users"] == 1
    with pytest.raises(InputError, match=r"lower --catalogue\.k-core"):
        run(tmp_path / "in", tmp_path / "out2", k_core=5)


def test_an_empty_title_is_filled_visibly(tmp_path: Path) -> None:
    items = {"item_id": [1, 2], "title": ["", None], "brand": ["Acme", ""], "categories": ["Hair,Spray", None],
             "description": ["", "Only words"]}
    raw = parquet.read(folder_of(tmp_path, items))
    assert raw.items["title"].to_pylist() == ["Acme, Hair, Spray", "Only words"]
    assert raw.stats["titles_filled"] == 2


def test_photos_of_a_folder_are_linked_and_read(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"item_id": [1, 2, 3, 4], "title": list("abcd"),
                                         "image": ["a.png", "images/sub/b.jpg", "gone.jpg", None]})
    photo(source / "images" / "a.png")
    broken = photo(source / "images" / "sub" / "b.jpg")
    broken.write_bytes(broken.read_bytes()[:600])
    counts = run(source, tmp_path / "out")
    assert counts["images"] == {"corrupt": 1, "missing": 1, "none": 1, "ok": 1}
    items = read_table("items", tmp_path / "out" / "items.parquet")
    assert items["image"].to_pylist() == ["a.png", None, None, None]
    assert items["image_status"].to_pylist() == ["ok", "corrupt", "missing", "none"]
    assert (tmp_path / "out" / "images" / "a.png").samefile(source / "images" / "a.png")
    assert sorted(p.name for p in (tmp_path / "out" / "images").rglob("*") if p.is_file()) == ["a.png"]


def test_photos_named_after_their_items(tmp_path: Path) -> None:
    source = folder_of(tmp_path, ITEMS)
    photo(source / "images" / "2.png")
    assert parquet.read(source).items["image"].to_pylist() == [None, "2.png", None]


def test_a_replaced_photo_replaces_the_old_one_and_never_alters_the_source(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"item_id": [1], "title": ["a"], "image": ["a.png"]})
    photo(source / "images" / "a.png")
    run(source, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(source / "new.png")
    (source / "new.png").replace(source / "images" / "a.png")
    run(source, tmp_path / "out")
    assert Image.open(tmp_path / "out" / "images" / "a.png").size == (8, 8)


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_photos_of_a_zip(tmp_path: Path) -> None:
    whole = photo(tmp_path / "a.png").read_bytes()
    items = {"item_id": [1, 2, 3], "title": list("abc"), "image": ["a.png", "b.png", "no.png"]}
    source = folder_of(tmp_path / "in", items)
    zipped(source / "images.zip", {"images/a.png": whole, "images/b.png": whole[:100], "images/unused.png": whole})
    assert run(source, tmp_path / "out")["images"] == {"corrupt": 1, "missing": 1, "ok": 1}
    assert [p.name for p in (tmp_path / "out" / "images").iterdir()] == ["a.png"]
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == whole


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_no_name_leads_out_of_the_photo_folder(tmp_path: Path, name: str) -> None:
    whole = photo(tmp_path / "a.png").read_bytes()
    source = folder_of(tmp_path / "zip", {"item_id": [1], "title": ["a"], "image": ["a.png"]})
    zipped(source / "images.zip", {"a.png": whole, name: whole})
    assert run(source, tmp_path / "out")["images"] == {"ok": 1}  # what the archive holds besides is nobody's photo
    with pytest.raises(InputError, match=r"item 1 .*leads out"):
        parquet.read(folder_of(tmp_path / "column", {"item_id": [1], "title": ["a"], "image": [name]}))
    assert not list(tmp_path.rglob("evil*"))


BOUGHT = {"user_id": [1], "item_id": [1], "timestamp": [1]}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no title column": ({"item_id": [1]}, {}, r"no column 'title' \(it has item_id\)"),
    "title of another type": ({"item_id": [1], "title": [5]}, {}, "'title' .* is int64"),
    "float ids": ({"item_id": [1.5], "title": ["a"]}, {}, "ids must be integers or text"),
    "null id": ({"item_id": ["a", None], "title": ["a", "b"]}, {}, "row 1"),
    "blank id": ({"item_id": ["a", " "], "title": ["a", "b"]}, {}, "row 1"),
    "no rows": ({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}, {}, "no rows"),
    "white space title": ({"item_id": [1, 2], "title": ["a", " \t"], "brand": ["A", "B"]}, {}, "item 2 is only"),
    "escaped white space": ({"item_id": [1], "title": ["&nbsp;"]}, {}, "item 1 is only white"),
    "nothing at all": ({"item_id": [1], "title": [""]}, {}, "without a title .*item_id 1"),
    "same id, other content": ({"item_id": [1, 1], "title": ["a", "b"]}, {}, r"different content \(1\)"),
    "unknown item": (ITEMS, {"interactions": {**BOUGHT, "item_id": [9]}}, "1 items .*item_id 9"),
    "unknown in sequence": (ITEMS, {"sequences": {"user_id": [1], "item_ids": [[1, 8]]}}, "item_id 8"),
    "wrong column": (ITEMS, {"interactions": {"user": [1], "item_id": [1], "timestamp": [1]}}, "no column 'user_id'"),
    "null time": (ITEMS, {"interactions": {**BOUGHT, "timestamp": pa.array([None], pa.int64())}}, "every interaction"),
    "text time": (ITEMS, {"interactions": {**BOUGHT, "timestamp": ["now"]}}, "'timestamp' .* is string"),
    "NaN time": (ITEMS, {"interactions": {**BOUGHT, "timestamp": [float("nan")]}}, "not a time"),
    "sequence of no list": (ITEMS, {"sequences": {"user_id": [1], "item_ids": [1]}}, "must be a list"),
    "null in sequence": (ITEMS, {"sequences": {"user_id": [1], "item_ids": [[1, None]]}}, "'item_ids' .* blank"),
    "user twice": (ITEMS, {"sequences": {"user_id": [1, 1], "item_ids": [[1], [2]]}}, "more than one row .*user_id 1"),
    "both kinds": (ITEMS, {"sequences": {"user_id": [1], "item_ids": [[1]]}, "interactions": BOUGHT}, "keep one"),
}


@pytest.mark.parametrize(("items", "tables", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path, items: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    run(folder_of(tmp_path / "good", ITEMS, interactions=BOUGHT), out)
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    with pytest.raises(InputError, match=message) as caught:
        run(folder_of(tmp_path / "bad", items, **tables), out)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before
    assert Catalogue(f"sqlite:///{out}/home/catalogue.db").history("1") == ["1"]


def test_the_database_says_what_it_said_until_the_tables_have_passed(tmp_path: Path) -> None:
    """The gate comes between reading and filling."""
    out, url = tmp_path / "out", f"sqlite:///{tmp_path}/catalogue.db"
    for name, items, bought in (("first", ITEMS, BOUGHT), ("second", {"item_id": [9], "title": ["Hat"]}, {})):
        folder_of(tmp_path / name, items, **({"interactions": bought} if bought else {}))

    def read(name: str) -> None:
        ingest.run(Settings(source="parquet", path=tmp_path / name, catalogue=CatalogueSettings(k_core=0)), url, out)

    catalogue = Catalogue(url)
    read("first")
    assert catalogue.items().num_rows == catalogue.interactions().num_rows == 0
    assert ingest.fill(out, url) == {"removed_items": 0, "removed_users": 0}
    before = catalogue.items(), catalogue.interactions()
    assert (before[0].num_rows, before[1].num_rows) == (3, 1)
    read("second")
    assert (catalogue.items(), catalogue.interactions()) == before
    assert ingest.fill(out, url) == {"removed_items": 3, "removed_users": 1}
    assert catalogue.items()["title"].to_pylist() == ["Hat"]
    assert catalogue.interactions().num_rows == 0


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path, tmp_path / "out")
    (folder_of(tmp_path / "in", ITEMS) / "items.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a readable parquet"):
        run(tmp_path / "in", tmp_path / "out")
    (folder_of(tmp_path / "zip", ITEMS | {"image": ["a"] * 3}) / "images.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="not a readable zip"):
        run(tmp_path / "zip", tmp_path / "out")
    with pytest.raises(InputError, match="--path"):
        ingest.run(Settings(source="parquet"), "sqlite:///x.db", tmp_path / "out")


def test_a_database_that_is_down_leaves_the_files(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", ITEMS), tmp_path / "out"
    with pytest.raises(ServiceError):
        ingest.run(Settings(source="parquet", path=source), "postgresql+psycopg://u:p@127.0.0.1:1/x", out)
    assert not out.exists() or not list(out.rglob("*.parquet"))


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("amazon_scientific", {"items": 4344, "users": 8317, "interactions": 58492, "titles_filled": 0}),
        ("amazon_beauty", {"items": 12101, "users": 22363, "interactions": 198502, "titles_filled": 7}),
        ("grocery_iconic", {"items": 81, "users": 0, "interactions": 0, "images": {"ok": 81}}),
    ],
)
def test_real_data(tmp_path: Path, name: str, expected: dict[str, Any]) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"the data set {name} is not beside the repository")
    counts = run(DATA / name, tmp_path, k_core=5)
    assert {key: counts[key] for key in expected} == expected
    assert all(value == 0 for key, value in counts.items() if key.startswith("dropped"))
    catalogue = Catalogue(f"sqlite:///{tmp_path}/home/catalogue.db")
    assert catalogue.items() == read_table("items", tmp_path / "items.parquet")
    assert catalogue.interactions() == read_table("interactions", tmp_path / "interactions.parquet")
    assert not any(title != title.strip() or not title for title in catalogue.items()["title"].to_pylist())
