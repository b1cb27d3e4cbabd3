"""The `paper` preset from an Amazon release to an aligned policy: its architectures, random weights, two layers deep.

Names, sizes of models and numbers of epochs and cases are replaced; everything else is what the preset says.
"""

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.bundle import load_manifest
from tessera.catalog import ingest
from tessera.config import Settings, preset
from tessera.enrichment.stages import run_captions, run_embeddings, run_intents, run_quality
from tessera.evaluation import evaluate
from tessera.policy import align, fit
from tessera.policy.bundle import load_policy
from tessera.schema import read_table
from tessera.tokenizer import fit as tokenizer_fit

PAPER = preset("paper")
ITEMS, USERS, BOUGHT = 30, 40, 7
THINGS = ("tent", "stove", "lamp", "kettle", "rug", "mug")
PLACES = ("garden", "cabin", "kitchen", "balcony", "beach")


def title(number: int) -> str:
    return f"{THINGS[number % 6].title()} no. {number} for the {PLACES[number // 6]}"


class Hub(BaseHTTPRequestHandler):
    """A vision-language model's endpoint that reads what it is asked, and a shop's photos."""

    asked: tuple[tuple[str, str], ...] = ()
    """Model and kind of each request."""

    def do_GET(self) -> None:
        number = int(Path(self.path).stem)
        out = io.BytesIO()
        Image.new("RGB", (64, 48), (8 * number, 200 - 6 * number, 90)).save(out, "JPEG")
        self._send(out.getvalue(), "image/jpeg")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = body["messages"][0]["content"]
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        text = content if isinstance(content, str) else content[-1]["text"]
        about = text.rsplit("Title: ", 1)[1].splitlines()[0]
        thing, place = about.split()[0].lower(), about.split()[-1]
        if isinstance(content, list):
            kind, said = "caption", f"{about}, lit by the low evening sun, in plain green cloth, beside a wooden chair."
        elif "labels" in schema:
            count = schema["labels"]["minItems"]
            kind, said = "quality", json.dumps({"labels": [1, 0, 1][:count]})
        else:
            tags = f"{thing} for weekends outside", f"good {thing}", f"evenings in the {place}"
            descriptors = [{"text": tag, "confidence": 0.9 - 0.2 * n} for n, tag in enumerate(tags)]
            answer = {"surface": [thing], "motives": [f"use the {place} more"], "descriptors": descriptors}
            kind, said = "intents", json.dumps(answer)
        Hub.asked += ((body["model"], kind),)
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        self._send(json.dumps({"choices": [choice]}).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def write_release(folder: Path, hub: str) -> Path:
    """Files of the 2023 release: each user buys items of one kind, a place after the other."""
    folder.mkdir()
    meta = [
        {"main_category": "Outdoor", "title": title(n), "features": ["Light"], "description": ["Sold with a bag."],
         "store": "Larch", "categories": ["Outdoor", THINGS[n % 6]], "parent_asin": f"B{n:09d}",
         "images": [{"large": f"{hub}/{n}.jpg", "hi_res": None, "variant": "MAIN"}]}
        for n in range(ITEMS)
    ]  # fmt: skip
    reviews = []
    for user in range(USERS):
        bought = [(user + 6 * (user // 6 + step)) % ITEMS for step in range(5)]
        bought += [(bought[-1] + 1 + step) % ITEMS for step in range(BOUGHT - 5)]
        for place, n in enumerate(bought):
            reviews.append({
                "rating": 5.0, "title": "", "text": "", "images": [], "asin": f"B{n:09d}", "parent_asin": f"B{n:09d}",
                "user_id": f"U{user}", "timestamp": 1_600_000_000_000 + 1000 * (BOUGHT * user + place),
            })  # fmt: skip
    for name, rows in {"meta_Outdoor.jsonl": meta, "Outdoor.jsonl": reviews}.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_tokenizer(folder: Path, **special: Any) -> int:
    """A Qwen tokenizer, byte-level BPE without a BOS token, learned from the titles; returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator([title(n) for n in range(ITEMS)], trainer)
    learned = json.loads(pieces.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, **special)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_models(folder: Path) -> dict[str, str]:
    """Folders as the hub would give them: backbone and text encoder in bfloat16, the vision model in float32."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import (
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3Model,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    torch.manual_seed(0)
    paths = {name: folder / name for name in ("backbone", "text", "image")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**sizes, "num_key_value_heads": 2}
    words = write_tokenizer(paths["backbone"], eos_token="<|im_end|>")
    # Qwen's embedding has more rows than its tokenizer has tokens, and the 7B model's head has weights of its own.
    config = Qwen2Config(vocab_size=words + 37, tie_word_embeddings=False, **grouped)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(paths["backbone"])
    words = write_tokenizer(folder / "plain", padding_side="left")
    reader = Qwen3Model(Qwen3Config(vocab_size=words + 37, head_dim=8, **grouped)).to(torch.bfloat16)
    reader.save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain")), Pooling(32, "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(paths["text"]))
    vision, size = {**sizes, "image_size": 32, "patch_size": 16}, {"height": 32, "width": 32}
    SiglipModel(SiglipConfig(text_config=sizes, vision_config=vision)).save_pretrained(paths["image"])
    SiglipImageProcessor(size=size).save_pretrained(paths["image"])
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, hub: str) -> Settings:
    folder = tmp_path_factory.mktemp("given")
    models = write_models(folder)
    encoders = {"text_encoder": models["text"], "image_encoder": models["image"]}
    return replace(
        PAPER,
        path=write_release(folder / "amazon", hub),
        catalogue=replace(PAPER.catalogue, private_addresses=True),  # where the tests' photos are
        enrichment=replace(PAPER.enrichment, base_url=f"{hub}/v1", **encoders),
        tokenizer=replace(PAPER.tokenizer, epochs=12),
        policy=replace(PAPER.policy, backbone=models["backbone"]),
        grpo=replace(PAPER.grpo, cases=24, batch=8, validate_every=2),
    )


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages up to SIDs, in a folder."""
    out = tmp_path_factory.mktemp("run")
    ledger, images = f"sqlite:///{out / 'catalogue.db'}", out / "images"
    ingest.run(settings, ledger, out)
    items, captions, intents, quality = (out / f"{n}.parquet" for n in ("items", "captions", "intents", "quality"))
    Hub.asked = ()
    run_captions(items, images, captions, settings, ledger)
    run_intents(items, captions, intents, settings, ledger)
    run_quality(items, captions, intents, quality, settings, ledger)
    run_embeddings(items, images, captions, intents, out / "embeddings.parquet", settings, ledger)
    tokenizer_fit.run(
        out / "embeddings.parquet", out / "tokenizer", out / "sids.parquet", settings.tokenizer, settings.seed,
        out / "work-tokenizer",
    )  # fmt: skip
    return out


def test_the_preset_is_the_papers() -> None:
    assert PAPER.policy.backbone == "Qwen/Qwen2.5-7B-Instruct"
    assert PAPER.enrichment.text_encoder == "Qwen/Qwen3-Embedding-4B"
    assert {getattr(PAPER.enrichment, kind).provider for kind in ("captions", "intents", "quality")} == {"openai"}
    assert (PAPER.tokenizer.levels, PAPER.tokenizer.codebook_size, PAPER.evaluation.beam) == (3, 256, 20)
    assert (PAPER.policy.epochs, PAPER.alignment, PAPER.grpo.epochs, PAPER.grpo.kl) == (3, "grpo", 2, 0.001)
    assert (PAPER.grpo.reward, PAPER.grpo.bonus) == ("exact", "quality")


def test_enrichment_to_sids(run: Path) -> None:
    name = PAPER.enrichment.captions.model
    assert sorted(Hub.asked) == sorted((name, kind) for kind in ("caption", "intents", "quality") for _ in range(ITEMS))
    for table in ("captions", "intents", "quality"):
        assert set(read_table(table, run / f"{table}.parquet")["status"].to_pylist()) == {"ok"}
    # (0.9 + 0.5) / (0.9 + 0.7 + 0.5): two of three descriptors are good.
    scores = read_table("quality", run / "quality.parquet")["score"].to_numpy()
    assert scores == pytest.approx(2 / 3)
    vectors = read_table("embeddings", run / "embeddings.parquet")
    for column in ("text", "image"):
        rows = np.stack(vectors[column].to_pylist())
        assert rows.shape == (ITEMS, 32)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2)
        assert len(np.unique(rows.round(4), axis=0)) == ITEMS
    codes = np.stack(read_table("sids", run / "sids.parquet")["codes"].to_pylist())
    assert codes.shape == (ITEMS, 3)
    assert len(np.unique(codes, axis=0)) == ITEMS
    assert load_manifest(run / "tokenizer", "tokenizer").config["codebook_size"] == 256


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_training_alignment_and_evaluation(adaptation: Any, run: Path, settings: Settings, tmp_path: Path) -> None:
    """`full` is the preset's; with `lora` the 7B model fits on a smaller GPU."""
    assert PAPER.policy.adaptation == "full"
    settings = replace(settings, policy=replace(settings.policy, adaptation=adaptation))
    paths = {name: run / f"{name}.parquet" for name in ("items", "splits", "sids", "captions", "intents", "quality")}
    trained = fit.run(
        paths["items"], paths["splits"], paths["sids"], run / "tokenizer", tmp_path / "sft", settings.policy,
        settings.evaluation, settings.seed, tmp_path / "work", captions=paths["captions"], intents=paths["intents"],
    )  # fmt: skip
    assert [point["epoch"] for point in trained["curve"]] == [1, 2, 3]
    assert trained["curve"][-1]["train_loss"] < trained["curve"][0]["train_loss"]
    aligned = align.run(
        tmp_path / "sft", paths["splits"], paths["quality"], paths["intents"], tmp_path / "policy", settings,
        tmp_path / "work-align",
    )
    assert aligned["steps"] == 2 * 24 // 8
    measured = [point for point in aligned["curve"] if point["epoch"]]
    assert [point["epoch"] for point in measured] == [2, 4, 6]
    assert all(point["reward"] >= 0 and np.isfinite(point["kl"]) for point in measured)
    report = evaluate.run(tmp_path / "policy", paths["splits"], tmp_path / "evaluation.json", settings.evaluation)
    policy = load_policy(tmp_path / "policy")
    assert (report["policy_version"], report["beam"]) == (policy.manifest.version, 20)
    assert report["test"]["users"] == USERS
    assert report["test"]["invalid_rate"] == 0
    assert 0 <= report["test"]["hr@20"] <= 1
    config = policy.manifest.config
    assert (config["adaptation"], config["grpo"]["bonus"], config["grpo"]["kl"]) == (adaptation, "quality", 0.001)
    assert config["start"] == load_manifest(tmp_path / "sft", "policy").version
    assert type(policy.backbone.model).__name__ == "Qwen2ForCausalLM"
    assert policy.backbone.sid_tokens.shape == (3, 256)
