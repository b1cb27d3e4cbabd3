"""The stages on real files, ledgers and (embedded or HTTP) models: what is asked, reused, failed, retried."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tessera.catalog.ledger import Ledger
from tessera.config import EnrichmentSettings, ModelSettings, Settings, save_settings
from tessera.enrichment import stages
from tessera.enrichment.embedding import embedding_texts, vector_column
from tessera.enrichment.work import Maker, through_ledger
from tessera.errors import InputError, ModelCallError
from tessera.files import write_text
from tessera.schema import read_table

EMBEDDED = Settings(enrichment=EnrichmentSettings(batch_size=3))


def asking(endpoint: Any, **changes: Any) -> Settings:
    """Settings that send everything to an endpoint."""
    model = ModelSettings("openai", "m")
    options = {"captions": model, "intents": model, "quality": model, "retries": 0, "timeout_s": 10.0, "batch_size": 4}
    return Settings(enrichment=EnrichmentSettings(base_url=endpoint.url, **(options | changes)))


def intents_for(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A well-formed answer that depends on the item's title."""
    title = body["messages"][0]["content"].rsplit("Title: ", 1)[1].splitlines()[0]
    tags = [{"text": f"use of {title}", "confidence": 0.9}, {"text": "second use of it"}]
    return completion(json.dumps({"surface": [title], "motives": [f"have {title}"], "descriptors": tags}))


def completion(text: str) -> tuple[int, dict[str, str], bytes]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def rows_of(name: str, path: Path) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in read_table(name, path).to_pylist()}


@pytest.fixture
def shop(catalogue, scene):
    """Five items: three photos, one without, one whose photo broke after ingestion."""
    places = {"a": "beach", "b": "grass", "c": "snow"}
    for name, place in places.items():
        scene(place, (205, 35, 45)).save(catalogue.images / f"{name}.png")
    (catalogue.images / "broken.png").write_bytes((catalogue.images / "a.png").read_bytes()[:900])
    photos = {name: {"image": f"{name}.png", "image_status": "ok"} for name in places}
    photos["e"] = {"image": "broken.png", "image_status": "ok"}
    catalogue.write_items([{"item_id": i, "title": "Nova Ball"} | photos.get(i, {}) for i in "abcde"])
    return catalogue


def run_all(c, settings: Settings) -> list[dict[str, Any]]:
    return [
        stages.run_captions(c.items, c.images, c.path("captions"), settings, c.ledger),
        stages.run_intents(c.items, c.path("captions"), c.path("intents"), settings, c.ledger),
        stages.run_quality(c.items, c.path("captions"), c.path("intents"), c.path("quality"), settings, c.ledger),
        stages.run_embeddings(
            c.items, c.images, c.path("captions"), c.path("intents"), c.path("embeddings"), settings, c.ledger
        ),
    ]


def test_the_chain_offline_then_again_without_a_model_then_after_changes(shop, scene) -> None:
    first = run_all(shop, EMBEDDED)
    captions, intents, quality, embeddings = first
    assert (captions["model_calls"], captions["failed"]) == (3, 1)
    assert (intents["model_calls"], intents["failed"]) == (5, 0)
    assert (quality["model_calls"], quality["failed"]) == (5, 0)
    assert (embeddings["model_calls"], embeddings["failed"]) == ({"text": 5, "image": 3}, 1)

    table = rows_of("captions", shop.path("captions"))
    assert {i: row["status"] for i, row in table.items()} == dict.fromkeys("abcd", "ok") | {"e": "failed"}
    assert "sand" in table["a"]["caption"]
    assert "grass" in table["b"]["caption"]
    assert table["d"]["caption"] is None
    assert table["d"]["reason"] == "no photo"
    assert "broken.png cannot be decoded" in table["e"]["reason"]
    assert {row["model"] for row in table.values()} == {"efficientnet-lite0@0.1.0"}
    mined = rows_of("intents", shop.path("intents"))
    assert len({mined[i]["descriptors"][0]["text"] for i in "abc"}) == 3
    for i, row in rows_of("quality", shop.path("quality")).items():
        weights = [d["confidence"] for d in mined[i]["descriptors"]]
        assert row["score"] == pytest.approx(np.average(row["labels"], weights=weights), abs=1e-6)
    vectors = rows_of("embeddings", shop.path("embeddings"))
    assert {i for i, row in vectors.items() if row["image"] is None} == {"d", "e"}
    assert {len(row["text"]) for row in vectors.values()} == {384}
    assert {len(vectors[i]["image"]) for i in "abc"} == {1280}

    before = {name: shop.path(name).read_bytes() for name in ("captions", "intents", "quality", "embeddings")}
    again = run_all(shop, EMBEDDED)
    assert [summary["model_calls"] for summary in again] == [0, 0, 0, {"text": 0, "image": 0}]
    assert [summary["reused"] for summary in again] == [3, 5, 5, {"text": 5, "image": 3}]
    assert before == {name: shop.path(name).read_bytes() for name in before}

    # The broken photo is replaced by a good one, and b's photo by another scene: only these two are seen again.
    scene("wood", (40, 105, 205)).save(shop.images / "broken.png")
    scene("night", (205, 35, 45)).save(shop.images / "b.png")
    captions, intents, quality, embeddings = run_all(shop, EMBEDDED)
    assert [captions["model_calls"], intents["model_calls"], quality["model_calls"]] == [2, 2, 2]
    assert (embeddings["model_calls"], embeddings["failed"]) == ({"text": 2, "image": 2}, 0)
    assert rows_of("captions", shop.path("captions"))["e"]["status"] == "ok"


def test_an_edited_prompt_or_another_model_asks_again(shop, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = serve(intents_for)
    shop.write_captions(dict.fromkeys("abcde"))
    arguments = (shop.items, shop.path("captions"), shop.path("intents"))
    assert stages.run_intents(*arguments, asking(endpoint), shop.ledger)["model_calls"] == 5
    assert stages.run_intents(*arguments, asking(endpoint), shop.ledger)["model_calls"] == 0
    other = asking(endpoint, intents=ModelSettings("openai", "another"))
    assert stages.run_intents(*arguments, other, shop.ledger)["model_calls"] == 5
    from tessera.enrichment import prompts

    folder = shop.folder / "prompts"
    write_text(folder / "intents.v2.md", prompts.load_prompt("intents").text.replace("Work in three", "Do it in three"))
    monkeypatch.setattr(prompts, "__file__", str(folder / "__init__.py"))
    assert stages.run_intents(*arguments, asking(endpoint), shop.ledger)["model_calls"] == 5
    assert len(endpoint.requests) == 15


def test_failed_items_stay_in_the_table_are_embedded_and_retried(shop, serve) -> None:
    healed = False

    def reply(body):
        if "Photo caption: bad" in body["messages"][0]["content"] and not healed:
            return completion("I'm sorry, I cannot help.")
        return intents_for(body)

    endpoint = serve(reply)
    shop.write_captions({"a": "bad words", "b": "good words", "c": None, "d": "bad words too", "e": None})
    arguments = (shop.items, shop.path("captions"), shop.path("intents"))
    summary = stages.run_intents(*arguments, asking(endpoint), shop.ledger)
    assert (summary["model_calls"], summary["failed"]) == (5, 2)
    table = rows_of("intents", shop.path("intents"))
    assert {i for i, row in table.items() if row["status"] == "failed"} == {"a", "d"}
    assert "refused" in table["a"]["reason"]
    assert table["a"]["descriptors"] == []

    asked = len(endpoint.requests)
    quality_in = (shop.items, shop.path("captions"), shop.path("intents"), shop.path("quality"))
    labels = stages.run_quality(*quality_in, EMBEDDED, shop.ledger)
    assert (labels["model_calls"], labels["failed"]) == (3, 2)
    judged = rows_of("quality", shop.path("quality"))
    assert (judged["a"]["status"], judged["a"]["labels"], judged["a"]["score"]) == ("failed", [], None)
    # One descriptor has no confidence, so the labels weigh the same.
    assert judged["b"]["score"] == pytest.approx(np.mean(judged["b"]["labels"]))
    texts = (shop.path("captions"), shop.path("intents"))
    stages.run_embeddings(shop.items, shop.images, *texts, shop.path("embeddings"), EMBEDDED, shop.ledger)
    assert all(row["text"] for row in rows_of("embeddings", shop.path("embeddings")).values())
    assert len(endpoint.requests) == asked

    healed = True
    summary = stages.run_intents(*arguments, asking(endpoint), shop.ledger)
    assert (summary["model_calls"], summary["reused"], summary["failed"]) == (2, 3, 0)
    assert {row["status"] for row in rows_of("intents", shop.path("intents")).values()} == {"ok"}


def test_an_endpoint_that_dies_keeps_finished_batches_and_the_old_table(catalogue, serve) -> None:
    catalogue.write_items([{"item_id": f"{n:02}", "title": f"thing {n}"} for n in range(12)])
    catalogue.write_captions({f"{n:02}": None for n in range(12)})
    alive = True

    def reply(body):
        return intents_for(body) if alive and len(endpoint.requests) <= 4 else (503, {}, b"gone")

    endpoint = serve(reply)
    arguments = (catalogue.items, catalogue.path("captions"), catalogue.path("intents"))
    with pytest.raises(ModelCallError, match="start the endpoint"):
        stages.run_intents(*arguments, asking(endpoint, concurrency=1), catalogue.ledger)
    assert not catalogue.path("intents").exists()
    fresh = serve(intents_for)
    summary = stages.run_intents(*arguments, asking(fresh), catalogue.ledger)
    assert (summary["model_calls"], summary["reused"]) == (8, 4)
    assert len(fresh.requests) == 8


_RUN = """
import sys
from pathlib import Path
from tessera.config import load_settings
from tessera.enrichment.stages import run_intents
folder = Path(sys.argv[1])
print(run_intents(folder / "items.parquet", folder / "captions.parquet", folder / "intents.parquet",
                  load_settings(folder / "settings.json"), f"sqlite:///{folder / 'catalogue.db'}"))
"""


@pytest.mark.integration
def test_kill_9_in_the_middle_loses_at_most_the_batch_in_flight(catalogue, serve) -> None:
    items, batch, before_kill = 24, 4, 10
    catalogue.write_items([{"item_id": f"{n:02}", "title": f"thing {n}"} for n in range(items)])
    catalogue.write_captions({f"{n:02}": None for n in range(items)})
    process: subprocess.Popen[bytes] | None = None

    def reply(body):
        if process is not None and len(endpoint.requests) == before_kill:
            process.send_signal(signal.SIGKILL)
        return intents_for(body)

    endpoint = serve(reply)
    save_settings(asking(endpoint, concurrency=1, batch_size=batch), catalogue.folder / "settings.json")
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(catalogue.folder)], stderr=subprocess.DEVNULL)
    assert process.wait(60) == -signal.SIGKILL
    assert not catalogue.path("intents").exists()
    process = None
    settings = asking(endpoint, batch_size=batch)
    summary = stages.run_intents(
        catalogue.items, catalogue.path("captions"), catalogue.path("intents"), settings, catalogue.ledger
    )
    assert summary["reused"] == before_kill // batch * batch
    assert len(endpoint.requests) <= items + batch
    killed = read_table("intents", catalogue.path("intents"))
    stages.run_intents(
        catalogue.items, catalogue.path("captions"), catalogue.path("undisturbed"), settings, "sqlite://"
    )
    assert killed.equals(read_table("intents", catalogue.path("undisturbed")))


def test_batches_are_recorded_as_they_finish(catalogue) -> None:
    ledger, maker = Ledger(catalogue.ledger), Maker("intents", "p", "m", "v")
    hashes = {str(n): "h" for n in range(7)}
    seen: list[list[str]] = []

    def answer(batch):
        assert len(ledger.lookup("intents", "p", "m", "v", hashes)) == 3 * len(seen)
        seen.append(list(batch))
        return [b"{}"] * len(batch)

    done = through_ledger(ledger, maker, hashes, answer, 3)
    assert seen == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert (done.calls, done.reused, done.failed) == (7, 0, 0)


def test_embedding_text_puts_what_matters_first_and_obeys_the_settings(catalogue) -> None:
    row = {"item_id": "a", "title": "Nova Ball.", "description": "Long text.", "brand": "Nova"}
    catalogue.write_items([row | {"categories": ["Sports"]}])
    catalogue.write_captions({"a": "On sand."})
    catalogue.write_intents({"a": [("beach games", 0.9), ("holiday", None)]})
    rows = read_table("items", catalogue.items).to_pylist()
    paths = (catalogue.path("captions"), catalogue.path("intents"))
    full = embedding_texts(rows, *paths, EnrichmentSettings())
    assert full == {"a": "Nova Ball. On sand. beach games, holiday. Nova. Sports. Long text"}
    bare = embedding_texts(rows, *paths, EnrichmentSettings(use_captions=False, use_intents=False))
    assert bare == {"a": "Nova Ball. Nova. Sports. Long text"}


def test_vectors_survive_the_ledger_bit_by_bit() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    maker = Maker("text_embedding", "p", "m", "v")
    entries = [maker.entry(str(n), "h", vector.astype("<f4").tobytes()) for n, vector in enumerate(vectors)]
    column = vector_column([entries[0], None, *entries[1:]])
    assert column.type == pa.list_(pa.float32())
    assert column.is_null().to_pylist() == [False, True, False, False]
    np.testing.assert_array_equal(np.stack([v.values.to_numpy() for v in column if v.is_valid]), vectors)
    with pytest.raises(InputError, match="different lengths"):
        vector_column([entries[0], maker.entry("x", "h", b"1234")])


def test_a_catalogue_without_photos(catalogue) -> None:
    catalogue.write_items(
        [{"item_id": "a", "title": "Tent"}, {"item_id": "b", "title": "Mug", "image_status": "corrupt"}]
    )
    captions, *_, embeddings = run_all(catalogue, EMBEDDED)
    assert (captions["model_calls"], captions["failed"]) == (0, 0)
    reasons = {i: row["reason"] for i, row in rows_of("captions", catalogue.path("captions")).items()}
    assert reasons == {"a": "no photo", "b": "photo corrupt"}
    assert embeddings["model_calls"] == {"text": 2, "image": 0}


def test_a_missing_photo_fails_and_a_bomb_or_transparency_does_no_harm(catalogue) -> None:
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(catalogue.images / "clear.png")
    Image.new("1", (20000, 20000)).save(catalogue.images / "bomb.png")
    names = ("gone.png", "clear.png", "bomb.png")
    catalogue.write_items(
        [{"item_id": name, "title": "x", "image": name, "image_status": "ok"} for name in sorted(names)]
    )
    summary = stages.run_captions(
        catalogue.items, catalogue.images, catalogue.path("captions"), EMBEDDED, catalogue.ledger
    )
    table = rows_of("captions", catalogue.path("captions"))
    assert summary["failed"] == 2
    assert table["gone.png"]["reason"] == "photo gone.png is missing"
    assert "DecompressionBomb" in table["bomb.png"]["reason"]
    assert "plain white background" in table["clear.png"]["caption"]
