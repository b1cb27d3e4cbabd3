"""The same publish, lookups and push with the online store in a real Redis."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.redis_server import redis_binary, redis_server
from feature_repo import lookup, publish
from feature_repo.server import FeatureServer
from feature_repo.store import feast_folder, settings_file
from tessera.errors import InputError

pytestmark = pytest.mark.integration
redis = pytest.importorskip("redis", reason="Redis' client is not installed")


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Redis that this process and its children use."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server")
    with redis_server(binary, tmp_path) as address:
        monkeypatch.setenv("TESSERA_REDIS", f"{address},socket_timeout=5")
        yield address


def test_publish_lookup_push_and_rollback_over_redis(address: str, tmp_path: Path, make_run: Callable) -> None:
    home = tmp_path / "home"
    first, second = make_run("first"), make_run("second", version="tok-2", sids={"b1": "9_9_9", "b2": "1_2_4"})
    assert publish.run(home, **first)["changed"]
    assert not publish.run(home, **first)["changed"]
    host, port = address.split(":")
    client = redis.Redis(host, int(port))
    assert client.dbsize() > 0
    assert not (feast_folder(home) / "online.db").exists()
    item = lookup.item(home, "b1")
    assert (item.title, item.sid, item.codes, item.tokenizer_version) == ("Ball size 4", "1_2_3", [1, 2, 3], "tok-1")
    assert [found and found.item_id for found in lookup.items(home, ["l1", "nobody", "b1"])] == ["l1", None, "b1"]
    assert publish.push_history(home, "ann", ["l1"]) == ["b1", "l1", "b2", "l1"]
    assert lookup.user(home, "ann").history == ["b1", "l1", "b2", "l1"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    with FeatureServer(home, port=own) as server:
        body = {"features": ["item_sid:sid"], "entities": {"item_id": ["b1", "b2"]}}
        reply = httpx.post(f"{server.url}/get-online-features", json=body, timeout=30).raise_for_status().json()
        assert reply["results"][1]["values"] == ["1_2_3", "1_2_4"]
    publish.run(home, **second)
    assert lookup.sid(home, "9_9_9").item_ids == ["b1"]
    for gone in ("1_2_3", "7_0_5"):
        with pytest.raises(InputError, match="no published item has"):
            lookup.sid(home, gone)
    publish.run(home, **first)
    assert lookup.item(home, "b1").sid == "1_2_3"


def test_a_move_to_redis_fills_it(tmp_path: Path, make_run: Callable, request: pytest.FixtureRequest) -> None:
    home, tables = tmp_path / "home", make_run()
    publish.run(home, **tables)
    assert settings_file().name == "feature_store.yaml"
    request.getfixturevalue("address")
    assert settings_file().name == "feature_store_redis.yaml"
    assert publish.run(home, **tables)["changed"]
    assert lookup.item(home, "l1").sid == "7_0_5"
