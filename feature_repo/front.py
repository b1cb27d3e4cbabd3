"""Feast's feature server behind an allow-list: everybody who reaches it looks up, nobody writes without the key.

Feast's own server writes for anybody and serves pages besides. Here a request that is not named below never gets to it,
nor does one that a web page of another origin sends through a browser: such a request carries `Origin`, or the page's
own name as `Host`, where a name was made to lead to this machine (DNS rebinding).

    python -m feature_repo.front --home HOME --host 0.0.0.0 --port 6566 --workers 2 --metrics
"""

import argparse
import asyncio
import hmac
import ipaddress
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo import clock
from feature_repo.store import connect
from feature_repo.tables import TIMESTAMP
from tessera.errors import TesseraError

KEY = "TESSERA_FEATURES_KEY"
"""Environment variable: the key of those who may write; without it nobody may."""
READS = {("GET", "/health"), ("POST", "/get-online-features")}
WRITES = {("POST", "/push"), ("POST", "/write-to-online-store")}
MAX_BODY = 4 << 20
"""Bytes of a request."""
MAX_ENTITIES, MAX_FEATURES = 1000, 100
"""Of one lookup: ids, and features that it names one by one."""
BODY_S = 30.0
"""How long a request may take to arrive, in seconds."""


class Front:
    """An ASGI application that passes on what is allowed.

    Args:
        app: Feast's.
        key: what a writer sends as `Authorization: Bearer KEY`; empty: there are no writers.
        loopback: the server is for this machine alone, so `Host` has to name it.
    """

    def __init__(self, app: ASGIApp, key: str, loopback: bool) -> None:
        self._app, self._key, self._loopback = app, key, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                body = await self._admitted(Request(scope, receive))
            except HTTPException as refusal:
                answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
                await answer(scope, receive, send)
            except ClientDisconnect:
                pass
            else:
                await self._app(scope, _again(body, receive), send)

    async def _admitted(self, request: Request) -> bytes:
        """The request's body, as it was understood; HTTPException for what is refused."""
        if "origin" in request.headers or (self._loopback and not _names_loopback(request.headers.getlist("host"))):
            raise HTTPException(403, "this server answers programs of this machine or network, not web pages.")
        asked = request.method, request.scope["path"]
        if asked not in READS | WRITES:
            raise HTTPException(404, "there is no such call here.")
        if asked in WRITES:
            self._check_key(request.headers.getlist("authorization"))
        if request.method == "GET":
            return b""
        # A web page may send other types without asking first (CORS), and Feast reads them as JSON too.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send application/json.")
        content = _parsed(await _read(request))
        (_check_times if asked in WRITES else _check_size)(content)
        return json.dumps(content).encode()  # Feast gets what was checked, however it would read the bytes

    def _check_key(self, given: list[str]) -> None:
        if not self._key:
            raise HTTPException(403, f"this server takes no writes; start it with {KEY} to allow them.")
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), f"Bearer {self._key}".encode()):
            wanted = "writing needs the feature server's key, as Authorization: Bearer KEY."
            raise HTTPException(401, wanted, {"WWW-Authenticate": "Bearer"})


def guard(loopback: bool) -> None:
    """Put the allow-list before every server that Feast starts in this process; `loopback` is as `Front` takes it."""
    from feast import feature_server

    feasts, key = feature_server.get_app, os.environ.pop(KEY, "")
    # Feast starts its web server and its workers itself, with the application that this function makes.
    feature_server.get_app = lambda *args, **named: Front(feasts(*args, **named), key, loopback)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names_loopback(hosts: list[str]) -> bool:
    try:
        return len(hosts) == 1 and is_loopback(urlsplit(f"//{hosts[0]}").hostname or "")
    except ValueError:
        return False


async def _read(request: Request) -> bytes:
    async def collect() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"a request has {MAX_BODY} bytes at most.")
        return bytes(body)

    try:
        return await asyncio.wait_for(collect(), BODY_S)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {BODY_S:g} s.") from None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is no JSON object.")
    return content


def _check_size(lookup: dict[str, Any]) -> None:
    entities, features = lookup.get("entities"), lookup.get("features")
    columns = entities.values() if isinstance(entities, dict) else ()
    ids = sum(len(column) for column in columns if isinstance(column, list))
    if ids > MAX_ENTITIES or (isinstance(features, list) and len(features) > MAX_FEATURES):
        raise HTTPException(413, f"a lookup has {MAX_ENTITIES} ids and names {MAX_FEATURES} features at most.")


def _check_times(write: dict[str, Any]) -> None:
    columns = write.get("df")
    stamps = columns.get(TIMESTAMP) if isinstance(columns, dict) else None
    try:
        if not isinstance(stamps, list):
            raise TypeError
        moments = [datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in stamps]
        seconds = [(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() for moment in moments]
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise HTTPException(422, f"df.{TIMESTAMP} must be a list of times such as 2026-11-21T10:00:00Z.") from None
    if any(map(clock.ahead, seconds)):
        raise HTTPException(
            422, f"df.{TIMESTAMP} is in the future by more than {clock.TOLERANCE_S} s; correct the writer's clock."
        )


def _again(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then whatever comes next."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return first.pop() if first else await receive()

    return next_message


def main(given: list[str] | None = None) -> int:
    """The feature server of a home as a command; the writers' key comes from the environment alone."""
    parser = argparse.ArgumentParser(prog="python -m feature_repo.front", description="Serve the features of a home.")
    parser.add_argument("--home", type=Path, required=True, help="the platform's; any folder if all stores are servers")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=6566, help="port to listen on")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer")
    parser.add_argument("--registry-ttl", type=int, default=60, help="seconds until a changed definition is seen")
    parser.add_argument("--metrics", action="store_true", help="Prometheus metrics on port 8000")
    arguments = parser.parse_args(given)
    try:
        store = connect(arguments.home)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    guard(is_loopback(arguments.host))
    from feast import feature_server

    feature_server.start_server(
        store, arguments.host, arguments.port, no_access_log=True, workers=arguments.workers, worker_connections=1000,
        max_requests=0, max_requests_jitter=0, keep_alive_timeout=30, registry_ttl_sec=arguments.registry_ttl,
        tls_key_path="", tls_cert_path="", metrics=arguments.metrics,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
