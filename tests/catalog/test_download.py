import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.catalog import download, ingest
from tessera.catalog.download import fetch_all, file_name
from tessera.config import CatalogueSettings, Settings
from tessera.schema import read_table


def jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Shop:
    """A real HTTP server of photos, which notes what it is asked and can be told to misbehave."""

    def __init__(self) -> None:
        self.photos = {f"/{n}.jpg": jpeg(n) for n in range(6)}
        self.failures: Counter[str] = Counter()  # path -> how many requests to answer with 503
        self.cuts: dict[str, int] = {}  # path -> bytes after which the connection breaks, once
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.at_once = self.most_at_once = 0
        shop, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    shop.asked.append((self.path, self.headers.get("Range")))
                    shop.at_once += 1
                    shop.most_at_once = max(shop.most_at_once, shop.at_once)
                try:
                    shop.answer(self)
                finally:
                    with lock:
                        shop.at_once -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, photo = request.path, self.photos.get(request.path)
        if self.failures[path] > 0 or photo is None:
            self.failures[path] -= 1
            request.send_error(503 if photo else 404)
            return
        start = 0
        asked = request.headers.get("Range")
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(photo):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(photo) - 1}/{len(photo)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(photo) - start))
        request.end_headers()
        cut = self.cuts.pop(path, None)
        request.wfile.write(photo[start:cut] if cut else photo[start:])


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.01)
    shop = Shop()
    yield shop
    shop.server.shutdown()
    shop.server.server_close()


def test_downloads_once_and_a_missing_photo_is_counted(tmp_path: Path, shop: Shop) -> None:
    urls = [f"{shop.url}/0.jpg", f"{shop.url}/gone.jpg", None, f"{shop.url}/1.jpg"]
    fetched = fetch_all(urls, ["a", "b", "c", "d"], tmp_path, private=True)
    assert fetched.names == ["a.jpg", "b.jpg", None, "d.jpg"]
    assert fetched.counts == {"photos_on_disk": 0, "photos_downloaded": 2, "photos_not_found": 1}
    assert (tmp_path / "a.jpg").read_bytes() == shop.photos["/0.jpg"]
    assert [path for path, _ in shop.asked].count("/gone.jpg") == 1  # asking a 404 again is of no use
    shop.asked.clear()
    again = fetch_all(urls, ["a", "b", "c", "d"], tmp_path, private=True)
    assert again.counts == {"photos_on_disk": 2, "photos_not_found": 1}
    assert [path for path, _ in shop.asked] == ["/gone.jpg"]


def test_a_partial_file_is_continued(tmp_path: Path, shop: Shop) -> None:
    whole = shop.photos["/0.jpg"]
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "a.jpg").write_bytes(whole[:300])
    fetch_all([f"{shop.url}/0.jpg"], ["a"], tmp_path, private=True)
    assert shop.asked == [("/0.jpg", "bytes=300-")]
    assert (tmp_path / "a.jpg").read_bytes() == whole
    assert not list((tmp_path / ".partial").iterdir())


def test_a_broken_connection_is_continued_in_the_same_run(tmp_path: Path, shop: Shop) -> None:
    shop.cuts["/0.jpg"] = 1000
    assert fetch_all([f"{shop.url}/0.jpg"], ["a"], tmp_path, private=True).counts["photos_downloaded"] == 1
    assert shop.asked == [("/0.jpg", None), ("/0.jpg", "bytes=1000-")]
    assert (tmp_path / "a.jpg").read_bytes() == shop.photos["/0.jpg"]


@pytest.mark.parametrize("left", [300, 100_000])
def test_servers_without_ranges_and_stale_parts(tmp_path: Path, shop: Shop, left: int) -> None:
    shop.ranges = left > 1000  # a part longer than the photo is answered 416 by a server with ranges
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "a.jpg").write_bytes(b"x" * left)
    fetch_all([f"{shop.url}/0.jpg"], ["a"], tmp_path, private=True)
    assert (tmp_path / "a.jpg").read_bytes() == shop.photos["/0.jpg"]


def test_a_part_of_another_photo_is_found_out_and_fetched_anew(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "a.jpg").write_bytes(b"x" * 300)
    assert fetch_all([f"{shop.url}/0.jpg"], ["a"], tmp_path, private=True).counts["photos_downloaded"] == 1
    assert (tmp_path / "a.jpg").read_bytes() == shop.photos["/0.jpg"]


def test_passing_failures_are_retried_and_lasting_ones_counted(tmp_path: Path, shop: Shop) -> None:
    shop.failures.update({"/0.jpg": 2, "/1.jpg": 99})
    shop.photos["/2.jpg"] = b"<html>please log in</html>"
    urls = [f"{shop.url}/{n}.jpg" for n in range(3)] + ["http://127.0.0.1:1/x.jpg", "http://[bad"]
    fetched = fetch_all(urls, list("abcde"), tmp_path, private=True)
    assert fetched.counts == {
        "photos_on_disk": 0, "photos_downloaded": 1, "photos_failed": 3, "photos_corrupt": 1,
    }
    assert fetched.corrupt == {"c.jpg"}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.jpg"]


def test_concurrency_is_bounded(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONCURRENCY", 3)
    urls = [f"{shop.url}/{n % 6}.jpg" for n in range(60)]
    assert fetch_all(urls, [f"i{n}" for n in range(60)], tmp_path, private=True).counts["photos_downloaded"] == 60
    assert shop.most_at_once <= 3


def test_too_large_is_given_up(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 500)
    assert fetch_all([f"{shop.url}/0.jpg"], ["a"], tmp_path, private=True).counts["photos_failed"] == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_file_names() -> None:
    assert file_name("B00X", "https://m.example/I/71._AC_SL.PNG?x=1") == "B00X.png"
    assert file_name("a/../b c", "https://m.example/i") == "a%2f..%2fb%20c.jpg"


def test_ingest_of_a_raw_release_with_photos(tmp_path: Path, shop: Shop) -> None:
    source, out = tmp_path / "Beauty", tmp_path / "out"
    source.mkdir()
    names = ["0", "1", "gone", "2"]
    shop.photos["/2.jpg"] = b"not a photo"
    meta = [
        {"parent_asin": f"B{n}", "title": f"Item {n}", "images": [{"large": f"{shop.url}/{name}.jpg", "hi_res": None}]}
        for n, name in enumerate(names)
    ] + [{"parent_asin": "RARE", "title": "Bought once", "images": [{"large": f"{shop.url}/5.jpg"}]}]
    reviews = [
        {"user_id": f"U{user}", "parent_asin": f"B{(user + step) % 4}", "timestamp": 1_600_000_000_000 + step}
        for user in range(4) for step in range(4)
    ] + [{"user_id": "U0", "parent_asin": "RARE", "timestamp": 1_600_000_001_000}]
    (source / "meta_Beauty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in meta))
    (source / "Beauty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in reviews))
    settings = Settings(source="amazon", path=source, catalogue=CatalogueSettings(k_core=3, private_addresses=True))
    counts = ingest.run(settings, f"sqlite:///{out}/c.db", out)
    assert (counts["items"], counts["users"], counts["interactions"]) == (4, 4, 16)
    assert counts["images"] == {"corrupt": 1, "missing": 1, "ok": 2}
    assert "/5.jpg" not in dict(shop.asked)  # no photo is fetched for an item that filtering drops
    items = read_table("items", out / "items.parquet")
    assert items["image"].to_pylist() == ["B0.jpg", "B1.jpg", None, None]
    assert (out / "images" / "B1.jpg").read_bytes() == shop.photos["/1.jpg"]
    assert read_table("splits", out / "splits.parquet")["test"].to_pylist() == ["B3", "B0", "B1", "B2"]

    shop.asked.clear()  # another run over the same source finds the photos beside it
    again = ingest.run(settings, f"sqlite:///{out}/c.db", tmp_path / "second")
    assert again["images"] == counts["images"]
    assert {path for path, _ in shop.asked} == {"/gone.jpg", "/2.jpg"}

    shop.asked.clear()
    offline = Settings(source="amazon", path=source, catalogue=CatalogueSettings(k_core=3, download_images=False))
    assert ingest.run(offline, f"sqlite:///{out}/c.db", out)["images"] == {"missing": 2, "ok": 2}
    assert shop.asked == []
