"""The refresh pipeline on a copy of a platform trained on the shop: what is new is served, and nothing else moves."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.promote import promotion
from components.refresh.refreshing import find_changes
from feature_repo import lookup
from pipelines.cli import main
from pipelines.serve import servers
from serving.registry import Registry
from tessera.config import PlatformSettings, load_settings
from tessera.errors import InputError
from tessera.files import read_json
from tessera.schema import SCHEMAS, read_table, write_table
from tessera_rec_client import Recommendations, Recommender

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1200)]
NEW = {"new-1": "Cobalt picnic blanket", "new-2": "Copper camping kettle", "new-3": "Striped beach towel"}
ANY_PORT = PlatformSettings(http_port=0, grpc_port=0, metrics_port=0, features_port=0)


@dataclass
class Shop:
    """A platform's home, and the source that it is refreshed from."""

    home: Path
    source: Path
    out: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.source / f"{name}.parquet").to_pylist()

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows), self.source / f"{name}.parquet")

    def refresh(self) -> dict[str, Any]:
        """Run the pipeline; what each step of it said."""
        main(["run", "refresh", "--source=parquet", f"--path={self.source}", f"--out={self.out}", "--preset=demo",
              f"--platform.home={self.home}", "--enrichment.batch-size=8"])  # fmt: skip
        newest = max((self.out / "artifacts").iterdir())
        # The steps of the second branch are numbered.
        return {re.sub(r"-\d+$", "", path.parent.name): read_json(path) for path in newest.rglob("stats")}

    def item(self, item_id: str) -> lookup.Item:
        return lookup.item(self.home, item_id)

    def user(self, user_id: str) -> lookup.User:
        return lookup.user(self.home, user_id)


@pytest.fixture(scope="module")
def shop(calm: Any, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A copy of the platform, whose source has three new items, a changed one, and a purchase of a new one."""
    folder = tmp_path_factory.mktemp("refresh")
    shop = Shop(folder / "home", folder / "source", folder / "run")
    shutil.copytree(calm.home, shop.home, symlinks=True)
    promotion.promote(shop.home, ANY_PORT, "champion")  # features are published to a place
    shutil.copytree(calm.out / "catalogue", shop.source, ignore=shutil.ignore_patterns("splits*", "truth*"))
    return shop


def grow(shop: Shop) -> tuple[str, str]:
    """Change the source; returns the changed item and the user who bought a new one."""
    items, bought = shop.rows("items"), shop.rows("interactions")
    items[5] |= {"description": "Now with a lid."}
    like = dict(zip(NEW, items[10:40:12], strict=False))
    items += [like[new] | {"item_id": new, "title": title} for new, title in NEW.items()]
    user = bought[0]["user_id"]
    last = max(row["timestamp"] for row in bought)
    bought.append({"user_id": user, "item_id": "new-1", "timestamp": last + 1, "position": 0})
    shop.write("items", items)
    shop.write("interactions", [{k: row[k] for k in ("user_id", "item_id", "timestamp")} for row in bought])
    return items[5]["item_id"], user


def asked(triton: Any, **given: Any) -> Recommendations:
    with Recommender(triton.grpc_url, timeout=60) as client:
        return client.recommend(**given)


@pytest.fixture(scope="module")
def serving(shop: Shop) -> Iterator[Any]:
    with servers(shop.home, ANY_PORT) as (triton, _):
        yield triton


def test_new_items_are_served_and_nothing_else_moves(
    calm: Any, shop: Shop, serving: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["precompute", f"--home={shop.home}"])
    users = sorted({row["user_id"] for row in shop.rows("interactions")})
    before = {user: shop.user(user).top_k for user in users}
    history = [row["item_id"] for row in shop.rows("interactions")][:3]
    with pytest.raises(Exception, match="none of the history's 1 items"):  # not known yet
        asked(serving, history=["new-1"], k=3)
    changed, buyer = grow(shop)
    capsys.readouterr()
    said = shop.refresh()
    assert "3 items are new, 1 changed, 0 gone, 0 failed before" in capsys.readouterr().out

    # Models were asked about the four items alone.
    assert {step: said[step]["model_calls"] for step in ("caption", "mine-intents", "label-quality")} == {
        "caption": 4, "mine-intents": 4, "label-quality": 4,  # whoever captions a photo reads the text, too
    }  # fmt: skip
    assert said["embed"]["model_calls"] == {"text": 4, "image": 3}
    assert {key: said["append-sids"][key] for key in ("published", "kept", "withdrawn", "added")} == {
        "published": len(calm.sids), "kept": len(calm.sids), "withdrawn": 0, "added": 3,
    }  # fmt: skip

    # No published SID has moved, the new ones are looked up both ways, and the changed item says something new.
    assert {item: shop.item(item).sid for item in calm.sids} == calm.sids
    found = {new: shop.item(new) for new in NEW}
    assert {new: one.title for new, one in found.items()} == NEW
    for new, one in found.items():
        assert one.caption
        assert one.descriptors
        assert one.tokenizer_version == calm.versions[0]
        assert lookup.sid(shop.home, str(one.sid)).item_ids == [new]
    assert len({*calm.sids.values(), *(one.sid for one in found.values())}) == len(calm.sids) + 3

    # The server that was up recommends them, by the same policy.
    answer = asked(serving, history=history, k=3, allow=list(NEW))
    assert {one.item_id: one.sid for one in answer.items} == {new: one.sid for new, one in found.items()}
    assert (answer.policy_version, answer.tokenizer_version) == (calm.versions[1], calm.versions[0])
    assert len(asked(serving, history=["new-2"], k=5).items) == 5
    assert len(asked(serving, user=buyer, k=5).items) == 5

    # Only the buyer's list was made anew.
    now = {user: shop.user(user).top_k for user in users}
    assert [user for user in users if now[user] != before[user]] == [buyer]
    assert said["precompute-users"]["decoded"] == 1
    assert not now[buyer].stale
    assert "new-1" not in now[buyer].item_ids
    assert changed in calm.sids


def test_a_promotion_keeps_what_a_refresh_added(calm: Any, shop: Shop, serving: Any) -> None:
    promotion.promote(shop.home, ANY_PORT, "champion")
    assert shop.item("new-3").title == NEW["new-3"]
    assert asked(serving, history=["new-2"], k=3, allow=["new-1", "new-3"]).policy_version == calm.versions[1]
    assert Registry(shop.home).resolve("champion").version == "1"


def test_items_that_are_gone_are_withdrawn_and_no_model_is_asked(shop: Shop, serving: Any) -> None:
    items, bought = shop.rows("items"), shop.rows("interactions")
    shop.write("items", [row for row in items if row["item_id"] != "new-3"])
    shop.write("interactions", bought)
    said = shop.refresh()
    assert said["find-changes"]["gone"] == 1
    assert "caption" not in said
    with pytest.raises(InputError, match="not in the published catalogue"):
        shop.item("new-3")
    assert shop.item("new-2").sid
    answer = asked(serving, history=["new-2"], k=20)
    assert "new-3" not in [one.item_id for one in answer.items]


@pytest.mark.parametrize(
    ("items", "changed", "says"),
    [
        (10, {}, "of which it has only 10: that is another catalogue"),
        (None, {"text_encoder": "other"}, "embedded with another enrichment.text_encoder"),
    ],
)
def test_another_catalogue_and_another_encoder_are_refused(
    shop: Shop, tmp_path: Path, items: int | None, changed: dict[str, str], says: str
) -> None:
    table = read_table("items", _ingested(shop))
    write_table("items", table.slice(0, items), tmp_path / "items.parquet")
    settings = load_settings(shop.out / "settings-refresh.json")
    settings = replace(settings, enrichment=replace(settings.enrichment, **changed))
    made = (tmp_path / name for name in ("changed", "published", "tokenizer"))
    with pytest.raises(InputError, match=says):
        find_changes(tmp_path / "items.parquet", *made, settings, str(shop.home))


def test_a_catalogue_may_grow_beyond_its_double(shop: Shop, tmp_path: Path) -> None:
    rows = read_table("items", _ingested(shop)).to_pylist()
    more = [{**row, "item_id": f"{row['item_id']}-{copy}"} for row in rows for copy in (1, 2)]
    write_table("items", pa.Table.from_pylist(rows + more, SCHEMAS["items"]), tmp_path / "items.parquet")
    made = (tmp_path / name for name in ("changed", "published", "tokenizer"))
    settings = load_settings(shop.out / "settings-refresh.json")
    found = find_changes(tmp_path / "items.parquet", *made, settings, str(shop.home))
    assert found["new"] == len(more)


def _ingested(shop: Shop) -> Path:
    """The items table that the last refresh read."""
    newest = max((shop.out / "artifacts").iterdir())
    return next(newest.glob("ingest/items"))
