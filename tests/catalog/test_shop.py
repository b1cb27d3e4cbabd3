"""What the demo shop promises: determinism, twins alike in text and unlike in photos, histories worth modelling."""

from collections import Counter
from itertools import combinations, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessera.catalog import ingest
from tessera.catalog.shop import customers, definition
from tessera.catalog.shop.definition import INTENTS, PRODUCTS, Item, stock
from tessera.catalog.shop.photos import LOOKS, SCENES, render, render_all
from tessera.catalog.shop.shapes import SHAPES
from tessera.config import Settings, ShopSettings
from tessera.errors import InputError
from tessera.schema import read_table


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return stock(600, 0)


def twins(items: list[Item]) -> list[tuple[Item, Item]]:
    """Pairs within a family that are bought for different reasons."""
    families = groupby(sorted(items, key=lambda item: item.family), key=lambda item: item.family)
    return [pair for _, family in families for pair in combinations(family, 2) if pair[0].intent != pair[1].intent]


def test_everything_that_is_named_exists() -> None:
    assert set(SHAPES) == set(PRODUCTS)
    assert {intent.scene for intent in INTENTS.values()} == set(SCENES) == set(LOOKS)
    for product in PRODUCTS:
        assert 2 <= sum(product in intent.journey for intent in INTENTS.values()) <= 4, product


@pytest.mark.parametrize("count", [60, 61, 63, 64, 100, 600])
def test_the_shop_has_as_many_items_as_asked_in_families_over_several_intents(count: int) -> None:
    items = stock(count, 3)
    assert len({item.item_id for item in items}) == len(items) == count
    families = Counter(item.family for item in items)
    assert 4 <= min(families.values()) <= max(families.values()) <= 8
    assert all(len({i.intent for i in items if i.family == family}) >= 2 for family in families)


def test_too_small_a_shop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--shop\.items must be at least 60"):
        stock(59, 0)
    with pytest.raises(InputError, match=r"--shop\.users"):
        ingest.run(Settings(shop=ShopSettings(60, 0)), f"sqlite:///{tmp_path}/c.db", tmp_path)


def test_twins_say_the_same_and_mean_something_else(items: list[Item]) -> None:
    pairs = twins(items)
    assert len(pairs) > 1000
    assert all(first.description == second.description for first, second in pairs)
    assert all(first.title.split(",")[0] == second.title.split(",")[0] for first, second in pairs)
    same_title = np.mean([first.title == second.title for first, second in pairs])
    assert 0.6 < same_title < 0.9
    hinted = np.mean([len(item.attributes) > 2 for item in items])
    assert abs(hinted - definition.HINT_SHARE) < 0.06


def test_variants_do_not_give_the_intent_away(items: list[Item]) -> None:
    balls = [item for item in items if item.product == "ball" and "," in item.title]
    by_variant: dict[str, set[str]] = {}
    for item in balls:
        by_variant.setdefault(item.title.split(", ")[1], set()).add(item.intent)
    assert len(by_variant) == 2
    assert all(len(intents) >= 3 for intents in by_variant.values())


def colours(content: bytes, path: Path) -> Any:
    """A coarse colour histogram, all that a very simple look at a photo gives."""
    path.write_bytes(content)
    pixels = np.asarray(Image.open(path).convert("RGB")) // 64
    histogram = np.bincount((pixels @ [16, 4, 1]).ravel(), minlength=64).astype(float)
    return histogram / np.linalg.norm(histogram)


def test_colours_alone_tell_the_scene_of_a_photo(items: list[Item], tmp_path: Path) -> None:
    seen = [item for scene in SCENES for item in [i for i in items if i.scene == scene][:10:2]]
    vectors = np.stack([colours(render(item, 0), tmp_path / "photo.jpg") for item in seen])
    likeness = vectors @ vectors.T - 2 * np.eye(len(seen))
    nearest = likeness.argmax(1)
    hits = np.mean([seen[i].scene == seen[j].scene for i, j in enumerate(nearest)])
    assert hits > 0.85  # by chance 1 in 8


def test_photos_are_real_files_and_the_same_each_time(items: list[Item], tmp_path: Path) -> None:
    chosen = [items[0], items[200]]
    names = render_all(chosen, 0, tmp_path)
    assert names == [f"{item.item_id}.jpg" for item in chosen]
    with Image.open(tmp_path / names[0]) as photo:
        assert (photo.format, photo.size, photo.mode) == ("JPEG", (224, 224), "RGB")
    first = (tmp_path / names[0]).read_bytes()
    assert render(chosen[0], 0) == first
    assert render(chosen[0], 1) != first
    assert first != (tmp_path / names[1]).read_bytes()


def test_photos_on_disk_are_kept_unless_they_are_of_another_seed(items: list[Item], tmp_path: Path) -> None:
    (name,) = render_all(items[:1], 0, tmp_path)
    path, before = tmp_path / name, (tmp_path / name).stat().st_ino
    render_all(items[:1], 0, tmp_path)
    assert path.stat().st_ino == before
    render_all(items[:1], 1, tmp_path)
    assert path.read_bytes() == render(items[0], 1)


@pytest.fixture(scope="module")
def histories(items: list[Item]) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for row in customers.purchases(items, 2000, 0).to_pylist():
        found.setdefault(row["user_id"], []).append((row["timestamp"], row["item_id"]))
    return found


def test_histories_have_the_promised_shape(histories: dict[str, list[tuple[int, str]]], items: list[Item]) -> None:
    assert len(histories) == 2000
    lengths = Counter(len(history) for history in histories.values())
    assert (min(lengths), max(lengths)) == (6, 15)
    for history in histories.values():
        times, bought = zip(*history, strict=True)
        assert all(later > earlier for earlier, later in pairwise(times))
        assert len(set(bought)) == len(bought)
    counts = Counter(item for history in histories.values() for _, item in history)
    assert min(counts[item.item_id] for item in items) >= 5  # nothing of the shop falls to 5-core filtering
    assert max(counts.values()) > 3 * np.median(list(counts.values()))


def test_a_sequence_says_more_than_popularity(histories: dict[str, list[tuple[int, str]]], items: list[Item]) -> None:
    by_id = {item.item_id: item for item in items}
    sequences = [[item for _, item in history] for history in histories.values()]
    counts = Counter(item for sequence in sequences for item in sequence[:-1])
    popular = {item for item, _ in counts.most_common(10)}

    def by_journey(history: list[str]) -> set[str]:
        last = by_id[history[-1]]
        journey = INTENTS[last.intent].journey
        product = journey[(journey.index(last.product) + 1) % len(journey)]
        favourite = Counter(by_id[item].brand for item in history).most_common(1)[0][0]
        shelf = [i for i in items if (i.intent, i.product) == (last.intent, product) and i.item_id not in history]
        shelf.sort(key=lambda item: (item.brand != favourite, -counts[item.item_id]))
        return {item.item_id for item in shelf[:10]}

    of_popularity = np.mean([sequence[-1] in popular for sequence in sequences])
    of_journey = np.mean([sequence[-1] in by_journey(sequence[:-1]) for sequence in sequences[:500]])
    assert of_popularity < 0.08
    assert of_journey > 0.35


def test_equal_seeds_give_equal_shops() -> None:
    assert stock(100, 5) == stock(100, 5) != stock(100, 6)
    items = stock(100, 5)
    assert customers.purchases(items, 50, 5) == customers.purchases(items, 50, 5)
    assert customers.purchases(items, 50, 5) != customers.purchases(items, 50, 6)


def test_ingest_of_a_small_shop(tmp_path: Path) -> None:
    settings = Settings(seed=1, shop=ShopSettings(items=60, users=100))
    runs = []
    for _ in range(2):
        counts = ingest.run(settings, f"sqlite:///{tmp_path}/c.db", tmp_path / "out")
        runs.append({path.name: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()})
    assert runs[0] == runs[1]
    assert counts["images"] == {"ok": counts["items"]}
    assert 55 <= counts["items"] <= 60
    assert counts["users"] == 100
    items = read_table("items", tmp_path / "out" / "items.parquet")
    truth = pq.read_table(counts["truth"])
    assert truth["item_id"].to_pylist() == items["item_id"].to_pylist()
    assert truth.column_names == ["item_id", "family", "product", "intent", "scene"]
    splits = read_table("splits", tmp_path / "out" / "splits.parquet")
    assert splits["test"].null_count == 0
