"""The fused forward beside transformers' own, over the architectures that it claims."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tessera.decoding.forward import BLOCK, ROWS, FusedDecoder, GenericDecoder, Linear, Prompts, decoder_of, padding
from tessera.policy.backbone import add_dropout

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama3 rope": LlamaConfig(
        **SMALL,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
}  # fmt: skip


def model_of(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def ask(lengths: list[int], known: list[int] | None = None) -> Prompts:
    """Left-padded prompts whose tokens depend on nothing but their place from the start."""
    width = max(lengths)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, width - length :] = torch.arange(length) * 7 % 50
    return Prompts(tokens, torch.tensor(lengths), torch.tensor(known or [0] * len(lengths)))


@torch.inference_mode()
def run(decoder: FusedDecoder | GenericDecoder, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the prompts' last tokens, and of two tokens that both follow them without seeing each other."""
    batch, width = prompts.tokens.shape
    cache = decoder.cache(batch, width + 2)
    first = decoder.prefill(prompts, cache)
    visible = torch.cat([prompts.real[:, None].expand(-1, 2, -1), torch.eye(2).bool().expand(batch, -1, -1)], dim=2)
    return first, decoder.extend(torch.tensor([[3, 9]]).expand(batch, -1), prompts.length, visible, cache)


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_states_are_those_of_the_plain_model(name: str) -> None:
    model = model_of(CONFIGS[name])
    prompts = ask([9, 4, 6])
    with torch.inference_mode():  # before the fused weights take the place of the model's
        expected = [
            [model.get_decoder()(torch.tensor([[*row[-n:], *m]])).last_hidden_state[0, -1] for m in ([], [3], [9])]
            for row, n in zip(prompts.tokens.tolist(), [9, 4, 6], strict=True)
        ]
    decoder = decoder_of(model)
    assert isinstance(decoder, FusedDecoder)
    for found in (run(decoder, prompts), run(GenericDecoder(model), prompts)):
        for row, (last, three, nine) in enumerate(expected):
            assert torch.allclose(found[0][row], last, atol=1e-4)
            assert torch.allclose(found[1][row], torch.stack([three, nine]), atol=1e-4)


def test_known_tokens_are_not_computed_again() -> None:
    decoder = FusedDecoder(model_of(CONFIGS["qwen3"]))
    whole = ask([9, 4, 6])
    with torch.inference_mode():
        cache = decoder.cache(3, 9)
        last = decoder.prefill(whole, cache)
        kept = cache.both.clone()
        # Row 0 knows six of nine tokens, row 1 none, row 2 all but the last.
        part = decoder.cache(3, 9)
        for row, start, end in ((0, 0, 6), (2, 3, 8)):
            part.both[:, row, start:end] = kept[:, row, start:end]
        again = decoder.prefill(ask([9, 4, 6], [6, 0, 5]), part)
        assert torch.allclose(again, last, atol=1e-5)
        assert torch.allclose(part.both, kept, atol=1e-5)
        # And what is said to be known is believed: other keys give another answer.
        part.both[:, 0, :6] += 1.0
        assert not torch.allclose(decoder.prefill(ask([9, 4, 6], [6, 0, 5]), part)[0], last[0], atol=1e-2)


def test_a_trained_or_moved_model_needs_another_decoder() -> None:
    model = model_of(CONFIGS["qwen2"])
    decoder = decoder_of(model)
    before = run(decoder, ask([5]))[0]
    assert decoder.serves(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert not decoder.serves(model)
    decoder = decoder_of(model)
    assert decoder.serves(model)
    after = run(decoder, ask([5]))[0]
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, run(GenericDecoder(model), ask([5]))[0], atol=1e-4)
    assert not decoder.serves(model.to(torch.float64))


def test_a_fused_model_can_be_saved(tmp_path: Any) -> None:
    model = model_of(CONFIGS["qwen2"])
    decoder = FusedDecoder(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(run(FusedDecoder(loaded), ask([5]))[0], run(decoder, ask([5]))[0])


def test_what_cannot_be_fused_takes_the_generic_path() -> None:
    gpt2 = model_of(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    assert isinstance(decoder_of(gpt2), GenericDecoder)
    windowed = model_of(MistralConfig(**SMALL, sliding_window=4))
    assert isinstance(decoder_of(windowed), GenericDecoder)
    adapted = model_of(CONFIGS["llama"])
    attention = adapted.get_decoder().layers[0].self_attn

    class Adapted(nn.Linear):
        pass

    attention.q_proj.__class__ = Adapted
    assert isinstance(decoder_of(adapted), GenericDecoder)
    hooked = model_of(CONFIGS["llama"])
    hooked.get_decoder().layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert isinstance(decoder_of(hooked), GenericDecoder)


def test_dropout_hooks_of_training_change_nothing_here() -> None:
    model = model_of(CONFIGS["llama"])
    before = run(decoder_of(model), ask([5]))[0]
    add_dropout(model, 0.5)
    decoder = decoder_of(model)
    assert isinstance(decoder, FusedDecoder)
    assert torch.equal(run(decoder, ask([5]))[0], before)


def test_few_numbers_of_rows_reach_the_matrix_kernels() -> None:
    assert len(ROWS) < 45
    assert all((rows + padding(rows)) % BLOCK in ROWS | {0} for rows in range(1, 5000))
    assert [padding(rows) for rows in (20, 61, 65, 256, 257, 1024, 1025, 3000)] == [0, 3, 15, 0, 63, 0, 3, 8]


@pytest.mark.parametrize("rows", [1, 20, 61, 256, 257, 1024, 1100])
def test_padded_and_split_products_are_the_plain_ones(rows: int) -> None:
    torch.manual_seed(0)
    layer, x, plus = nn.Linear(24, 40), torch.randn(rows, 24), torch.randn(rows, 40)
    mine = Linear(layer.weight, layer.bias)
    assert torch.allclose(mine(x), layer(x), atol=1e-5)
    assert torch.allclose(mine(x, plus), layer(x) + plus, atol=1e-5)
