"""Backbones: a causal language model whose vocabulary holds a token for every code of every SID level."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tessera.config import PolicySettings
from tessera.errors import InputError
from tessera.schema import Sizes, level_sizes
from tessera.tokenizer.hybrid import initial_rows, mates_mean

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


@dataclass(frozen=True)
class Backbone:
    """A model and how SIDs are written in its vocabulary.

    sid_tokens: [levels, K] int64, the token id of each code, -1 behind the codes of a level that has fewer than others;
    bos: the token that opens every prompt; hybrid: the last level holds the items' own tokens
    (tessera.tokenizer.hybrid), each asked for straight from the prompt and not behind its prefix.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sid_tokens: Tensor
    bos: int
    hybrid: bool = False

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Codes to choose from at each level."""
        return tuple((self.sid_tokens >= 0).sum(1).tolist())

    def level_tokens(self, level: int) -> Tensor:
        """[codes of this level] token ids."""
        return self.sid_tokens[level, : self.sizes[level]]


def sid_token_names(levels: int, codebook_size: Sizes) -> list[str]:
    """The names of the SID tokens, level by level."""
    sizes = level_sizes(codebook_size, levels)
    return [f"<sid_{level}_{code}>" for level, size in enumerate(sizes) for code in range(size)]


def build(
    settings: PolicySettings,
    texts: Iterable[str],
    levels: int,
    codebook_size: Sizes,
    seed: int,
    item_vectors: np.ndarray | None = None,
) -> Backbone:
    """The backbone before training: `tiny` with random weights, or a pretrained model with new SID tokens.

    Args:
        texts: catalogue texts that `tiny` learns its BPE vocabulary from.
        item_vectors: [codes of the last level, D], what the rows of that level's tokens are made of
            (tessera.tokenizer.hybrid.initial_rows); None: they start as the other SID tokens do.

    Raises:
        InputError: a pretrained backbone that cannot be loaded, or that has no token to open a prompt with.
    """
    torch.manual_seed(seed)
    tiny = settings.backbone == "tiny"
    backbone = (
        _tiny(settings, texts, levels, codebook_size) if tiny else _pretrained(settings, levels, codebook_size)
    )
    if item_vectors is not None:
        weight: Any = backbone.model.get_input_embeddings().weight
        rows = initial_rows(item_vectors, weight.shape[1], float(weight.detach().std()), seed)
        set_rows(backbone.model, backbone.level_tokens(levels - 1), torch.from_numpy(rows))
    return with_lora(backbone, settings) if not tiny and settings.adaptation == "lora" else backbone


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, levels: int, codebook_size: Sizes) -> Backbone:
    """Find the SID tokens in a vocabulary that has them; a prompt opens with BOS, else with EOS.

    Args:
        codebook_size: one for all levels; of hybrid SIDs one a level.

    Raises:
        InputError: neither of the two is in the vocabulary.
    """
    ids = tokenizer.convert_tokens_to_ids(sid_token_names(levels, codebook_size))
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise InputError("the backbone's tokenizer has neither a BOS nor an EOS token to open a prompt; use another.")
    rows = torch.tensor(ids).split(level_sizes(codebook_size, levels))
    sid_tokens = pad_sequence(rows, batch_first=True, padding_value=-1)
    return Backbone(model, tokenizer, sid_tokens, int(bos), hybrid=not isinstance(codebook_size, int))


@torch.no_grad()
def set_rows(model: PreTrainedModel, tokens: Tensor, rows: Tensor) -> None:
    """Let tokens [n] have these rows [n, hidden] of the embedding, and of a head with its own weights."""
    layer: Any
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight[tokens] = rows.to(layer.weight)


def with_more_items(backbone: Backbone, codes: np.ndarray, known: int) -> Backbone:
    """The backbone with tokens for new items at the last level of hybrid SIDs; they were never trained.

    A new item's row is the mean row of the known items that share the longest prefix with it, so that it is asked for
    where they are.

    Args:
        codes: [items, P] prefix of each item, the first `known` of which have tokens.
    """
    levels, sizes = len(backbone.sizes), (*backbone.sizes[:-1], len(codes))
    model, tokenizer = backbone.model, backbone.tokenizer
    layer: Any
    tokenizer.add_tokens([f"<sid_{levels - 1}_{code}>" for code in range(known, len(codes))], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    grown = wrap(model, tokenizer, levels, sizes)
    tokens = grown.level_tokens(levels - 1).to(model.device)
    for layer in {id(one): one for one in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        rows = layer.weight.detach()[tokens].float().numpy(force=True)
        rows[known:] = mates_mean(codes, rows[:known])
        with torch.no_grad():
            layer.weight[tokens] = torch.from_numpy(rows).to(layer.weight)
    return grown


def _tiny(settings: PolicySettings, texts: Iterable[str], levels: int, codebook_size: Sizes) -> Backbone:
    if settings.hidden % settings.heads:
        raise InputError(f"policy.hidden ({settings.hidden}) must be a multiple of policy.heads ({settings.heads}).")
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.text_vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    tokenizer.add_tokens(sid_token_names(levels, codebook_size), special_tokens=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=-(-settings.hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        attention_dropout=settings.dropout,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return wrap(LlamaForCausalLM(config), tokenizer, levels, codebook_size)


def _pretrained(settings: PolicySettings, levels: int, codebook_size: Sizes) -> Backbone:
    name = settings.backbone
    gguf = [path.name for path in Path(name).glob("*.gguf")] if Path(name).is_dir() else []
    extra: dict[str, Any] = {"trust_remote_code": False}  # without it transformers asks the terminal, and may run it
    extra |= {"gguf_file": gguf[0]} if gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **extra)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **extra)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"backbone '{name}' cannot be loaded ({reason}); give the folder or hub name of a causal LM, or 'tiny'."
        ) from None
    if gguf:  # the weights were dequantised on load; without this the model refuses to be saved
        setattr(model, "hf_quantizer", None)  # noqa: B010
        setattr(model, "is_quantized", False)  # noqa: B010
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError(f"backbone '{name}' is quantised and cannot be trained; give the model in full precision.")
    tokenizer.add_tokens(sid_token_names(levels, codebook_size), special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    return wrap(model, tokenizer, levels, codebook_size)


def with_lora(backbone: Backbone, settings: PolicySettings) -> Backbone:
    """The backbone with low-rank adapters on all linear layers, which alone are trained, and with them the SID rows."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        trainable_token_indices=_trainable_rows(backbone),
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(backbone.model, config)
    return replace(backbone, model=adapted)


def _trainable_rows(backbone: Backbone) -> dict[str, list[int]]:
    """The SID rows by module name: of the embedding, which a tied head follows, and of a head with its own weights."""
    model, rows = backbone.model, backbone.sid_tokens[backbone.sid_tokens >= 0].tolist()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    return {name: rows for name, module in model.named_modules() if any(module is layer for layer in layers)}


@dataclass(frozen=True)
class Dropout:
    """Forward hook that drops a share of a module's outputs while it trains."""

    rate: float

    def __call__(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """The module's output in training with dropout, else as it is."""
        return F.dropout(output, self.rate, training=module.training)


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Dropout on the embeddings and on both residual branches of a Llama-type model, which has none of its own.

    Hooks and not modules, so that the saved weights stay those of the plain architecture.
    """
    drop = Dropout(rate)
    if rate > 0:
        model.model.embed_tokens.register_forward_hook(drop)
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_hook(drop)
            layer.mlp.down_proj.register_forward_hook(drop)
