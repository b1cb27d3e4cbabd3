"""Fixtures of the enrichment tests: small item tables, drawn photos, an OpenAI-like server that follows a script."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from tessera.schema import SCHEMAS, write_table


def items_table(rows: list[dict[str, Any]]) -> pa.Table:
    """An `items` table from partial rows."""
    empty = {"description": "", "brand": "", "categories": [], "attributes": [], "image_status": "none", "image": None}
    return pa.Table.from_pylist([empty | row for row in rows], SCHEMAS["items"])


def draw_scene(scene: str, product: tuple[int, int, int], seed: int = 0) -> Image.Image:
    """A ball of the given colour before a drawn scene; independent of the demo shop's renderer."""
    rng = np.random.default_rng(seed)
    size, horizon = 160, 60
    colours = {
        "beach": ((120, 190, 240), (225, 200, 150)),
        "grass": ((150, 200, 245), (70, 150, 55)),
        "wood": ((180, 175, 165), (165, 105, 55)),
        "snow": ((140, 180, 225), (232, 240, 252)),
        "night": ((8, 8, 20), (18, 16, 26)),
        "studio": ((250, 250, 250), (250, 250, 250)),
    }[scene]
    pixels = np.empty((size, size, 3), np.float32)
    pixels[:horizon], pixels[horizon:] = colours
    if scene != "studio":
        pixels += rng.normal(0, 9, (size, size, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((45, 55, 115, 125), fill=product)
    return image


@dataclass
class Catalogue:
    """A folder with an items table, photos and a ledger, and paths for what stages write."""

    folder: Path
    items: Path = field(init=False)
    images: Path = field(init=False)

    def __post_init__(self) -> None:
        self.items, self.images = self.folder / "items.parquet", self.folder / "images"
        self.images.mkdir(exist_ok=True)

    @property
    def ledger(self) -> str:
        return f"sqlite:///{self.folder / 'catalogue.db'}"

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def write_items(self, rows: list[dict[str, Any]]) -> None:
        write_table("items", items_table(rows), self.items)

    def write_captions(self, captions: dict[str, str | None]) -> None:
        made_by = {"provider": "embedded", "model": "m", "prompt_version": "v", "status": "ok", "reason": None}
        rows = [made_by | {"item_id": i, "caption": caption} for i, caption in captions.items()]
        write_table("captions", pa.Table.from_pylist(rows, SCHEMAS["captions"]), self.path("captions"))

    def write_intents(self, descriptors: dict[str, list[tuple[str, float | None]]]) -> None:
        made_by = {"provider": "embedded", "model": "m", "prompt_version": "v", "status": "ok", "reason": None}
        rows = [
            made_by
            | {"item_id": i, "surface": [], "motives": []}
            | {"descriptors": [{"text": text, "confidence": confidence} for text, confidence in tags]}
            for i, tags in descriptors.items()
        ]
        write_table("intents", pa.Table.from_pylist(rows, SCHEMAS["intents"]), self.path("intents"))


@pytest.fixture
def scene() -> Callable[..., Image.Image]:
    """`scene(place, product_colour, seed)` draws a photo."""
    return draw_scene


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path)


Reply = tuple[int, dict[str, str], bytes]


@dataclass
class ScriptedEndpoint:
    """A real HTTP server on a free port; `reply` decides each answer from the parsed request body."""

    reply: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> ThreadingHTTPServer:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.lock:
                    endpoint.requests.append(body)
                    endpoint.headers.append(dict(self.headers))
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                try:
                    status, headers, content = endpoint.reply(body)
                finally:
                    with endpoint.lock:
                        endpoint.at_once -= 1
                try:
                    self.send_response(status)
                    for name, value in ({"content-length": str(len(content))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up waiting, as some tests want it to

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        return server


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], ScriptedEndpoint]]:
    """Start scripted endpoints; all are stopped after the test."""
    servers = []

    def start(reply: Callable[[dict[str, Any]], Reply]) -> ScriptedEndpoint:
        endpoint = ScriptedEndpoint(reply)
        servers.append(endpoint.start())
        return endpoint

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
