"""Publish, lookups, pushes and point in time joins with registry and offline store in PostgreSQL and Redis online."""

import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import create_engine, text

from benchmarks.redis_server import redis_binary, redis_server
from feature_repo import lookup, offline_tables, publish, writer
from feature_repo.server import FeatureServer
from feature_repo.store import feast_folder, open_store, settings_file
from feature_repo.tables import VIEWS
from tessera.errors import InputError, ServiceError

pytestmark = pytest.mark.integration
SECOND = {"version": "tok-2", "sids": {"b1": "9_9_9", "b2": "1_2_4"}}


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def production(
    database: str, feast_environment: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Real servers, which this process and its children use."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server")
    with redis_server(binary, tmp_path) as redis:
        for name, value in feast_environment(database, redis).items():
            monkeypatch.setenv(name, value)
        yield


def rows(database: str, view: str) -> int:
    engine = create_engine(database)
    with engine.connect() as connection:
        count: int = connection.scalar(text(f"SELECT count(*) FROM {view}"))
    engine.dispose()
    return count


def joined(home: Path) -> pd.DataFrame:
    """What was known of two users and of items at this moment, each from the offline store."""
    now = pd.Timestamp(datetime.now(timezone.utc)) + pd.Timedelta(days=1)
    users = pd.DataFrame({"user_id": ["ann", "bob"], "event_timestamp": [now, now]})
    items = pd.DataFrame({"item_id": ["b1", "b2", "l1"], "event_timestamp": [now, now, now]})
    store = open_store(home)
    found = store.get_historical_features(users, ["user_history:item_ids"]).to_df().sort_values("user_id")
    wanted = [f"item_enrichment:{name}" for name in VIEWS["item_enrichment"].names[1:]]
    wanted += ["item_sid:sid", "item_sid:codes", "item_sid:tokenizer_version"]
    more = store.get_historical_features(items, wanted).to_df().sort_values("item_id")
    both = pd.concat([found, more], ignore_index=True).drop(columns="event_timestamp")
    return both.map(lambda cell: list(cell) if hasattr(cell, "__len__") and not isinstance(cell, str) else cell)


@pytest.mark.usefixtures("production")
def test_publish_lookup_push_and_rollback(database: str, tmp_path: Path, make_run: Callable) -> None:
    home, first, second = tmp_path / "home", make_run("first"), make_run("second", **SECOND)
    assert publish.run(home, **first)["changed"]
    assert not publish.run(home, **first)["changed"]
    assert settings_file().name == "feature_store_production.yaml"
    assert not [*feast_folder(home).glob("*.db")]  # nothing is kept in files but the publisher's own record
    item = lookup.item(home, "b1")
    assert (item.title, item.sid, item.codes, item.tokenizer_version) == ("Ball size 4", "1_2_3", [1, 2, 3], "tok-1")
    assert publish.push_history(home, "ann", ["l1"]) == ["b1", "l1", "b2", "l1"]
    assert rows(database, "user_history") == 3
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FeatureServer(home, port=port) as server:
        body = {"feature_service": "serving", "entities": {"user_id": ["ann"]}, "full_feature_names": True}
        reply = httpx.post(f"{server.url}/get-online-features", json=body, timeout=30).raise_for_status().json()
        place = reply["metadata"]["feature_names"].index("user_history__item_ids")
        assert reply["results"][place]["values"] == [["b1", "l1", "b2", "l1"]]
    publish.run(home, **second)
    assert lookup.sid(home, "9_9_9").item_ids == ["b1"]
    with pytest.raises(InputError, match="no published item has"):
        lookup.sid(home, "1_2_3")
    publish.run(home, **first)
    assert lookup.item(home, "b1").sid == "1_2_3"
    assert rows(database, "item_sid") == writer.log_of(feast_folder(home), "item_sid").num_rows


def test_joins_see_what_they_see_with_files(
    tmp_path: Path, make_run: Callable, make_topk: Callable, request: pytest.FixtureRequest
) -> None:
    first, second = make_run("first"), make_run("second", **SECOND)

    def served(home: Path) -> Any:
        for tables in (first, second, first):
            publish.run(home, **tables)
        publish.publish_topk(home, make_topk({"ann": ["b2", "l1"]}, "tok-1", policy=""))
        publish.push_history(home, "bob", ["b2"])
        return joined(home)

    embedded = served(tmp_path / "embedded")
    request.getfixturevalue("production")
    pd.testing.assert_frame_equal(served(tmp_path / "servers"), embedded)
    assert embedded["sid"].tolist()[2:] == ["1_2_3", "1_2_4", "7_0_5"]


def test_a_move_to_the_servers_fills_them(
    database: str, tmp_path: Path, make_run: Callable, request: pytest.FixtureRequest
) -> None:
    home, tables = tmp_path / "home", make_run()
    publish.run(home, **tables)
    request.getfixturevalue("production")
    assert publish.run(home, **tables)["changed"]
    assert lookup.item(home, "l1").sid == "7_0_5"
    assert {view: rows(database, view) for view in VIEWS} == {
        "item_enrichment": 3, "item_sid": 3, "sid_items": 3, "user_history": 2, "user_topk": 0,
    }  # fmt: skip


@pytest.mark.usefixtures("production")
def test_an_interrupted_publish_leaves_no_row_twice(
    database: str, tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, second = tmp_path / "home", make_run("second", **SECOND)
    publish.run(home, **make_run("first"))
    put = offline_tables.put

    def interrupted(store: Any, view: str, table: pa.Table, *, anew: bool) -> None:
        put(store, view, table, anew=anew)
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(offline_tables, "put", interrupted)
        with pytest.raises(ServiceError, match="connection lost"):
            publish.run(home, **second)
    assert publish.run(home, **second)["changed"]
    for view in VIEWS:
        assert rows(database, view) == writer.log_of(feast_folder(home), view).num_rows
    assert lookup.sid(home, "9_9_9").item_ids == ["b1"]


def test_a_variable_that_is_missing_is_named(
    tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEAST_REGISTRY_URL", "postgresql+psycopg://me:s3cret@127.0.0.1:1/feast")
    with pytest.raises(InputError, match=r"needs FEAST_OFFLINE_DATABASE, FEAST_OFFLINE_HOST, .*FEAST_REDIS") as caught:
        publish.run(tmp_path / "home", **make_run())
    assert "s3cret" not in str(caught.value)
