"""What compiling adds for a cluster, run by the local runner where it can be: fan-out and the exit handler."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.dsl import Dataset

from components.caption.component import caption
from components.ingest.component import ingest
from components.notify import notifying
from pipelines import local
from pipelines.cluster import on_cluster
from pipelines.settings import ClusterSettings, shards_of
from pipelines.steps import fanned_out, light
from tessera.config import CatalogueSettings, Settings, ShopSettings, to_json
from tessera.errors import TesseraError
from tessera.files import read_json
from tessera.schema import read_table

SMALL = Settings(shop=ShopSettings(items=60, users=60), catalogue=CatalogueSettings(k_core=0))


@dsl.pipeline(name="captions")
def captions(shards: list, settings: str, home: str) -> Dataset:
    """The first steps of every pipeline that enriches."""
    source = light(ingest(settings=settings, home=home, source_digest=""))
    made = {name: source.outputs[name] for name in ("catalogue", "items")}
    return fanned_out(caption, shards, source, settings=settings, home=home, **made).outputs["captions"]


@pytest.mark.integration
def test_shards_then_the_whole(tmp_path: Path) -> None:
    given = {"shards": shards_of(2), "settings": to_json(SMALL), "home": str(tmp_path / "home")}
    outputs = local.run(captions, given, SMALL, tmp_path)
    table = read_table("captions", outputs["Output"])
    whole, *parts = [read_json(path) for path in sorted((tmp_path / "artifacts").rglob("caption*/stats"))]
    assert (whole["model_calls"], whole["reused"]) == (0, table.num_rows)
    assert len(parts) == 2
    assert all(0 < part["model_calls"] < table.num_rows for part in parts)
    assert sum(part["model_calls"] for part in parts) == table.num_rows == 60
    assert set(table["status"].to_pylist()) == {"ok"}
    assert print.__module__ == "builtins"  # the runner puts its own in place, in each of its threads


@dsl.component
def stumble(ok: bool) -> None:
    """A step that can fail."""
    assert ok


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a chat service's webhook was told."""
    said: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv(notifying.URL, f"http://127.0.0.1:{server.server_port}/secret-part")
        yield said
        server.shutdown()


@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.integration
def test_the_exit_handler_tells_the_webhook(
    tmp_path: Path, webhook: list[str], ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.cluster._equip", lambda *_: None)  # a step of no image of ours

    @dsl.pipeline(name="short")
    def short(ok: bool) -> None:
        stumble(ok=ok)

    pipeline = on_cluster(short, ClusterSettings())
    if ok:
        local.run(pipeline, {"ok": ok}, SMALL, tmp_path)
    else:
        with pytest.raises(TesseraError, match="step 'stumble' failed"):
            local.run(pipeline, {"ok": ok}, SMALL, tmp_path)
    (told,) = webhook
    assert told.startswith(f"short {'succeeded' if ok else 'failed'} (local-pipeline-exit-handler-1)")


def test_a_webhook_that_is_away_fails_nothing_and_is_not_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(notifying.URL, "http://127.0.0.1:9/secret-part")
    assert notifying.run("tessera-refresh", "FAILED", "the gate\nrefused", "run-7") == (
        "tessera-refresh failed (run-7): the gate refused"
    )
    said = capsys.readouterr().out
    assert "the webhook in TESSERA_NOTIFY_URL was not told" in said
    assert "secret-part" not in said
