"""CMSA's branches and the text variants: what enters, and what does not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tessera.config import EnrichmentSettings, ModelSettings, Settings
from tessera.enrichment import stages
from tessera.enrichment.branches import branch_settings
from tessera.enrichment.embedding import embedding_texts
from tessera.enrichment.parsing import ParseError, parse_rewrite
from tessera.enrichment.providers.base import Item
from tessera.enrichment.providers.embedded.rewrites import paraphrases, summaries
from tessera.schema import read_table

OFFLINE = Settings()
DESCRIPTION = "Comes in a box. The ball is made of soft foam for small hands and bounces on grass. Ships soon."


def test_branches_are_the_four_combinations() -> None:
    found = {}
    for branch in ("text", "caption", "image", "both"):
        made = branch_settings(OFFLINE, branch)
        found[branch] = (made.enrichment.use_captions, made.tokenizer.use_images)
        kept = replace(made, enrichment=OFFLINE.enrichment, tokenizer=OFFLINE.tokenizer)
        assert kept == OFFLINE
    assert found == {"text": (False, False), "caption": (True, False), "image": (False, True), "both": (True, True)}


def test_without_captions_the_photo_does_not_come_in_through_the_intents(catalogue) -> None:
    """Twins whose texts are equal get equal intents on the branches without captions, and others with them."""
    catalogue.write_items([{"item_id": i, "title": "Nova Ball"} for i in "ab"])
    catalogue.write_captions({"a": "A red ball, on a sandy beach.", "b": "A red ball, in the snow."})
    mined = {}
    for branch in ("text", "both"):
        settings = branch_settings(OFFLINE, branch)
        out = catalogue.path(f"intents-{branch}")
        stages.run_intents(catalogue.items, catalogue.path("captions"), out, settings, catalogue.ledger)
        rows = read_table("items", catalogue.items).to_pylist()
        mined[branch] = embedding_texts(rows, catalogue.path("captions"), out, settings.enrichment)
    assert mined["text"]["a"] == mined["text"]["b"]
    assert mined["both"]["a"] != mined["both"]["b"]


@pytest.mark.parametrize("kind", ["summary", "paraphrase"])
def test_rewrites_take_the_place_of_intents_and_are_made_once(catalogue, kind: Any) -> None:
    catalogue.write_items([
        {"item_id": "a", "title": "Nova Ball", "description": DESCRIPTION, "brand": "Nova", "categories": ["Toys"]},
        {"item_id": "b", "title": "Plain Ball"},
    ])
    catalogue.write_captions({"a": "On sand.", "b": None})
    arguments = (catalogue.items, catalogue.path("captions"), catalogue.path("intents"), OFFLINE, catalogue.ledger)
    assert stages.run_rewrites(kind, *arguments)["model_calls"] == 2
    assert stages.run_rewrites(kind, *arguments)["model_calls"] == 0
    said = {r["item_id"]: r["descriptors"] for r in read_table("intents", catalogue.path("intents")).to_pylist()}
    assert [len(descriptors) for descriptors in said.values()] == [1, 1]
    rows = read_table("items", catalogue.items).to_pylist()
    text = embedding_texts(rows, catalogue.path("captions"), catalogue.path("intents"), EnrichmentSettings())["a"]
    assert said["a"][0]["text"].rstrip(".") in text
    # The intents' entries in the ledger are others: mining afterwards asks for all.
    assert stages.run_intents(*arguments)["model_calls"] == 2


def test_the_stand_ins_restate() -> None:
    ball = Item("a", "Nova Ball.", DESCRIPTION, "Nova", ("Toys", "Balls"), ("soft", "red"))
    assert paraphrases([ball, Item("b", "Plain Ball")]) == [
        f"This Balls by Nova is sold as Nova Ball. It is soft, red. {DESCRIPTION}",
        "This product is sold as Plain Ball.",
    ]
    from tessera.enrichment.encoders import embedded_text_encoder

    written = summaries(embedded_text_encoder(), [ball, Item("b", "Plain Ball")])
    assert written == [
        "Nova Ball. The ball is made of soft foam for small hands and bounces on grass.", "Plain Ball.",
    ]


def test_a_language_model_is_asked_the_variants_question(serve) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        asked = body["messages"][0]["content"]
        text = "Summary: A soft ball." if "Summary:" in asked else "A ball that is soft."
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"choices": [choice]}).encode()

    from tessera.enrichment.providers import open_enricher

    endpoint = serve(reply)
    settings = EnrichmentSettings(intents=ModelSettings("openai", "m"), base_url=endpoint.url, timeout_s=5.0)
    item = Item("a", "Soft Ball", caption="A ball on sand.")
    assert open_enricher("summary", settings).rewrites("summary", [item]) == ["A soft ball."]
    assert open_enricher("paraphrase", settings).rewrites("paraphrase", [item]) == ["A ball that is soft."]
    assert all("Title: Soft Ball" in request["messages"][0]["content"] for request in endpoint.requests)
    versions = {kind: open_enricher(kind, settings).prompt_version(kind) for kind in ("summary", "paraphrase")}
    assert len(set(versions.values())) == 2


@pytest.mark.parametrize("raw", ["", "ok", "I'm sorry, I cannot do that.", "x" * 1000])
def test_unusable_rewrites_are_refused(raw: str) -> None:
    with pytest.raises(ParseError):
        parse_rewrite(raw)


def test_labels_and_fences_are_dropped() -> None:
    assert parse_rewrite('```\nSummary: "A soft  ball."\n```') == "A soft  ball.".replace("  ", " ")
