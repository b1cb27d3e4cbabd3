"""Feast's feature server: readers read, writers have the home's key, web pages get nothing, floods are refused."""

import asyncio
import json
import socket
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.shop import item_id, publish_features, sids_table
from feature_repo.front import Front
from feature_repo.server import FeatureServer
from tessera.files import read_key

ANN = [item_id(0), item_id(1), item_id(2)]
NEW = [item_id(2), item_id(0)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureServer]:
    home = tmp_path_factory.mktemp("features") / "home"
    publish_features(home, sids_table(np.array([[0, 1], [0, 2], [1, 1]])), {"ann": ANN}, "policy", 0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FeatureServer(home, port=port, start_timeout_s=300) as server:
        yield server


def look_up(server: FeatureServer, feature: str, **entity: str) -> Any:
    body = {"features": [feature], "entities": {name: [value] for name, value in entity.items()}}
    reply = httpx.post(f"{server.url}/get-online-features", json=body, timeout=30).raise_for_status().json()
    return reply["results"][reply["metadata"]["feature_names"].index(feature.partition(":")[2])]["values"][0]


def pushed(history: list[str], moment: datetime | None = None) -> dict[str, Any]:
    stamp = (moment or datetime.now(timezone.utc)).isoformat()
    frame = {"user_id": ["ann"], "item_ids": [history], "event_timestamp": [stamp]}
    return {"push_source_name": "user_history_push", "df": frame, "to": "online"}


def retitled(title: str) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [[]] for name in ("categories", "motives", "descriptors", "confidences")}
    columns |= {name: [title] for name in ("title", "brand", "image", "caption")} | {"quality_score": [0.1]}
    columns |= {"item_id": [ANN[0]], "event_timestamp": [datetime.now(timezone.utc).isoformat()]}
    return {"feature_view_name": "item_enrichment", "df": columns}


def authorised(server: FeatureServer) -> dict[str, str]:
    return {"Authorization": f"Bearer {read_key(server.key_file)}"}


WRITES = {"/push": pushed(["stolen"]), "/write-to-online-store": retitled("BUY ELSEWHERE")}
INTERVAL = {"start_ts": "2020-01-01T00:00:00", "end_ts": "2020-01-02T00:00:00"}


@pytest.mark.integration
@pytest.mark.parametrize("wrong", [{}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic guess"}])
def test_a_stranger_writes_nothing(server: FeatureServer, wrong: dict[str, str]) -> None:
    title = look_up(server, "item_enrichment:title", item_id=ANN[0])
    history = look_up(server, "user_history:item_ids", user_id="ann")
    for path, body in WRITES.items():
        assert httpx.post(server.url + path, json=body, headers=wrong, timeout=30).status_code == 401
    for path in ("/materialize", "/materialize-incremental"):
        assert httpx.post(server.url + path, json=INTERVAL, headers=wrong, timeout=30).status_code == 404
    assert look_up(server, "item_enrichment:title", item_id=ANN[0]) == title
    assert look_up(server, "user_history:item_ids", user_id="ann") == history


@pytest.mark.integration
def test_a_writer_has_the_key_of_the_home(server: FeatureServer) -> None:
    assert stat.S_IMODE(server.key_file.stat().st_mode) == 0o600
    for path, body in {"/push": pushed(NEW), "/write-to-online-store": retitled("A new title")}.items():
        assert httpx.post(server.url + path, json=body, headers=authorised(server), timeout=30).status_code == 200
    assert look_up(server, "user_history:item_ids", user_id="ann") == NEW
    assert look_up(server, "item_enrichment:title", item_id=ANN[0]) == "A new title"
    assert look_up(server, "item_enrichment:title", item_id=ANN[1]) != "A new title"


@pytest.mark.integration
def test_a_web_page_of_another_origin_neither_reads_nor_writes(server: FeatureServer) -> None:
    lookup = json.dumps({"features": ["user_history:item_ids"], "entities": {"user_id": ["ann"]}})
    typed = {"Content-Type": "application/json"}
    for headers in (
        typed | {"Origin": "https://elsewhere.example"},
        typed | {"Origin": "null"},
        typed | {"Host": f"elsewhere.example:{server.port}"},  # a name that was made to lead here
        typed | {"Host": "127.0.0.1.elsewhere.example"},
        typed | {"Host": ""},
    ):
        reply = httpx.post(f"{server.url}/get-online-features", content=lookup, headers=headers, timeout=30)
        assert reply.status_code in {400, 403}, headers
        assert ANN[0] not in reply.text
    simple = {"Content-Type": "text/plain"} | authorised(server)  # what a page sends without asking the server first
    before = look_up(server, "user_history:item_ids", user_id="ann")
    reply = httpx.post(f"{server.url}/push", content=json.dumps(WRITES["/push"]), headers=simple, timeout=30)
    assert reply.status_code == 415
    assert look_up(server, "user_history:item_ids", user_id="ann") == before
    asked = httpx.options(f"{server.url}/push", headers={"Origin": "https://elsewhere.example"})
    assert (asked.status_code, [name for name in asked.headers if "access-control" in name]) == (403, [])


@pytest.mark.integration
def test_pages_documents_and_sockets_of_feast_are_not_there(server: FeatureServer) -> None:
    gets = ("/", "/docs", "/openapi.json", "/chat", "/static/chat/index.html", "/v1/vector_stores", "/metrics")
    posts = ("/search", "/retrieve-online-documents", "/chat", "/materialize", "/v1/vector_stores/x/search", "/mcp")
    with httpx.Client(base_url=server.url, headers=authorised(server), timeout=30) as client:
        assert {path: client.get(path).status_code for path in gets} == dict.fromkeys(gets, 404)
        assert {path: client.post(path, json={}).status_code for path in posts} == dict.fromkeys(posts, 404)
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    with socket.create_connection((server.host, server.port), timeout=30) as raw:
        head = f"GET /ws/chat HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}Sec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(4096).split()[1] in {b"403", b"404"}


@pytest.mark.integration
def test_a_flood_in_one_request_is_refused(server: FeatureServer) -> None:
    many = {"features": ["user_history:item_ids"], "entities": {"user_id": ["ann"] * 1001}}
    wide = {"features": ["user_history:item_ids"] * 101, "entities": {"user_id": ["ann"]}}
    long = {"features": ["user_history:item_ids"], "entities": {"user_id": ["a" * (4 << 20)]}}
    bodies = [json.dumps(body).encode() for body in (many, wide, long)]
    bodies += [b"[" * 200_000, b'{"entities": ' + b"9" * 10_000 + b"}", b"not JSON"]
    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        codes = [client.post("/get-online-features", content=body).status_code for body in bodies]
        # Without a length, as chunks.
        codes.append(client.post("/get-online-features", content=iter([bodies[2]])).status_code)
    assert codes == [413, 413, 413, 400, 400, 400, 413]
    assert server.healthy(timeout_s=30)


@pytest.mark.integration
def test_a_write_from_the_future_is_refused(server: FeatureServer) -> None:
    before, now = look_up(server, "user_history:item_ids", user_id="ann"), datetime.now(timezone.utc)
    for moment in (now + timedelta(minutes=6), now + timedelta(days=1500)):
        reply = httpx.post(f"{server.url}/push", json=pushed(["x"], moment), headers=authorised(server), timeout=30)
        assert (reply.status_code, "correct the writer's clock" in reply.text) == (422, True)
    for stamp in (2_000_000_000_000_000_000, "soon", None):
        body = pushed(["x"])
        body["df"]["event_timestamp"] = [stamp]
        assert httpx.post(f"{server.url}/push", json=body, headers=authorised(server), timeout=30).status_code == 422
    assert look_up(server, "user_history:item_ids", user_id="ann") == before
    within = pushed(ANN, now + timedelta(minutes=1))
    assert httpx.post(f"{server.url}/push", json=within, headers=authorised(server), timeout=30).status_code == 200


ALLOWED = {("GET", "/health"), ("POST", "/get-online-features")}
_PIECES = st.sampled_from(["/", "push", "PUSH", "health", "get-online-features", "%2e", "..", "%2F", ";", "\\"])


def statuses(front: Callable[..., Any], method: str, path: str, headers: dict[str, str], body: Any) -> list[int]:
    """Ask an ASGI application without a server between, which might tidy a path up."""
    host = {"host": "localhost:6566", "content-type": "application/json"}
    raw = [(name.encode(), value.encode()) for name, value in (host | headers).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b"", "root_path": ""}
    found: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        found.extend([message["status"]] if "status" in message else [])

    asyncio.run(front(scope, receive, send))
    return found


class Feast:
    """An application that takes everything, and notes what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.asked.append((scope["method"], scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})


@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "X"]), st.lists(_PIECES, max_size=4).map("".join))
@example("POST", "push")
@example("POST", "get-online-features")
@example("POST", "materialize")
@example("GET", "health")
def test_only_what_is_named_gets_to_feast(method: str, name: str) -> None:
    path, body, feast = f"/{name}", {"df": {"event_timestamp": []}}, Feast()
    for key in ("wrong", "right"):
        headers = {"authorization": f"Bearer {key}", "x-http-method-override": "POST"}
        (status,) = statuses(Front(feast, "right", loopback=True), method, path, headers, body)
        written = key == "right" and (method, path) in {("POST", where) for where in WRITES}
        passes = written or (method, path) in ALLOWED
        assert (status == 200, len(feast.asked)) == (passes, 1 if passes else 0)
        feast.asked.clear()


@pytest.mark.parametrize("given_key", ["", "Bearer", "Bearer ", "Bearer x"])
def test_without_a_key_nobody_writes(given_key: str) -> None:
    front = Front(Feast(), "", loopback=False)
    assert statuses(front, "POST", "/push", {"authorization": given_key}, pushed(["x"])) == [403]
