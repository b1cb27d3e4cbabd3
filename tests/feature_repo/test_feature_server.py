"""A real feature server over HTTP, asked as a downstream service would."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from feature_repo import lookup, publish
from feature_repo.server import FeatureServer
from tessera.errors import ServiceError
from tessera.files import read_key

pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(server: FeatureServer, service: str, **entity: str) -> dict:
    body = {"feature_service": service, "entities": {k: [v] for k, v in entity.items()}, "full_feature_names": True}
    reply = httpx.post(f"{server.url}/get-online-features", json=body, timeout=30).raise_for_status().json()
    names = reply["metadata"]["feature_names"]
    return {name: result["values"][0] for name, result in zip(names, reply["results"], strict=True)}


def test_a_proxy_for_others_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        healthy = FeatureServer(tmp_path, port=server.server_port).healthy()
        server.shutdown()
        thread.join()
    assert healthy


@pytest.fixture
def served(tmp_path: Path, make_run: Callable) -> Iterator[FeatureServer]:
    home = tmp_path / "the home"
    publish.run(home, **make_run())
    with FeatureServer(home, port=free_port()) as server:
        yield server


def test_lookups_pushes_and_a_version_switch_over_http(served: FeatureServer, make_run: Callable) -> None:
    assert ask(served, "item_lookup", item_id="b1") == {
        "item_id": "b1",
        "item_enrichment__title": "Ball size 4",
        "item_enrichment__brand": "acme",
        "item_enrichment__categories": ["toys"],
        "item_enrichment__image": "b1.jpg",
        "item_enrichment__caption": "A photo of b1",
        "item_enrichment__motives": ["play"],
        "item_enrichment__descriptors": ["b1 for gardens", "gift"],
        "item_enrichment__confidences": [0.5, "NaN"],
        "item_enrichment__quality_score": 0.5,
        "item_sid__sid": "1_2_3",
        "item_sid__codes": [1, 2, 3],
        "item_sid__tokenizer_version": "tok-1",
    }
    assert ask(served, "item_lookup", item_id="zz")["item_enrichment__title"] is None
    assert ask(served, "sid_lookup", sid="7_0_5")["sid_items__item_ids"] == ["l1"]
    user = ask(served, "serving", user_id="ann")
    assert user["user_history__item_ids"] == ["b1", "l1", "b2"]
    assert user["user_topk__item_ids"] is None

    writer = {"Authorization": f"Bearer {read_key(served.key_file)}"}
    for target in ("online", "online_and_offline"):
        now = datetime.now(timezone.utc).isoformat()
        frame = {"user_id": ["ann"], "item_ids": [["b1", target]], "event_timestamp": [now]}
        body = {"push_source_name": "user_history_push", "df": frame, "to": target}
        assert httpx.post(f"{served.url}/push", json=body, headers=writer, timeout=30).status_code == 200
        assert ask(served, "serving", user_id="ann")["user_history__item_ids"] == ["b1", target]

    # A running server answers from the new version at once, and every request in between gets an answer of one version.
    expected = {"tok-1": ("7_0_5", ["b1"]), "tok-2": ("8_8_8", [])}
    seen: list[tuple[str, list[str]]] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                item, sid = ask(served, "item_lookup", item_id="l1"), ask(served, "sid_lookup", sid="1_2_3")
                assert item["item_sid__sid"] == expected[item["item_sid__tokenizer_version"]][0]
                assert sid["sid_items__item_ids"] == expected[sid["sid_items__tokenizer_version"]][1]
                seen.append((item["item_sid__tokenizer_version"], sid["sid_items__item_ids"]))
            except Exception as error:
                errors.append(error)

    client = threading.Thread(target=keep_asking)
    client.start()
    old, new = make_run("run"), make_run("new", version="tok-2", sids={"b1": "9_9_1", "b2": "1_2_4", "l1": "8_8_8"})
    for tables in (new, old, new):
        publish.run(served.home, **tables)
        time.sleep(0.2)
    stop.set()
    client.join()
    assert not errors
    assert {version for version, _ in seen} == {"tok-1", "tok-2"}
    assert ask(served, "sid_lookup", sid="1_2_3")["sid_items__item_ids"] == []
    assert ask(served, "sid_lookup", sid="8_8_8")["sid_items__item_ids"] == ["l1"]

    with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{served.port}"):
        FeatureServer(served.home, port=served.port).start()
    pid = served.pid
    assert pid is not None
    served.stop()
    served.stop()
    # Its guard belongs to nobody: the system takes it away a moment later.
    left = [one for one in psutil.process_iter(["status"]) if _group_of(one.pid) == pid]
    assert psutil.wait_procs([one for one in left if one.info["status"] != psutil.STATUS_ZOMBIE], timeout=10)[1] == []
    assert not served.healthy()
    assert lookup.sid(served.home, "8_8_8").item_ids == ["l1"]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServiceError, match="no published features yet"):
        FeatureServer(tmp_path, port=free_port()).start()
    publish.run(tmp_path, **make_run())
    slow = FeatureServer(tmp_path, port=free_port(), start_timeout_s=0.3)
    with pytest.raises(ServiceError, match=r"did not answer within 0\.3 s"):
        slow.start()
    assert slow.pid is None
    broken = tmp_path / "broken.yaml"
    broken.write_text("project: tessera\nprovider: local\nregistry: {registry_type: sql, path: 'nosuch://x'}\n")
    monkeypatch.setenv("TESSERA_FEATURE_STORE", str(broken))
    with pytest.raises(ServiceError, match=r"ended while starting; see .*server\.log \(.*nosuch"):
        FeatureServer(tmp_path, port=free_port()).start()
