"""The decoder's forward for constrained search: prompt once, then whole levels of beams, into one buffer of keys.

`FusedDecoder` runs Llama- and Qwen-type models in plain torch with fused projections; `GenericDecoder` runs any causal
language model of transformers with the same results. Both write new keys and values behind the prompt's, so nothing is
copied or reordered between levels: who may look at what is the caller's mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

FUSED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Prompts:
    """Left-padded prompts of which the first tokens may have been computed before.

    tokens: [batch, T] int64; length: [batch] int64, tokens of each prompt; known: [batch] int64, how many of its first
    tokens have their keys and values in the cache already, less than `length`.
    """

    tokens: Tensor
    length: Tensor
    known: Tensor

    @property
    def real(self) -> Tensor:
        """[batch, T] bool, False on padding."""
        width = self.tokens.shape[1]
        return torch.arange(width, device=self.tokens.device) >= (width - self.length)[:, None]


@dataclass
class KeyValues:
    """Keys and values [layers, batch, columns, heads, head size] of which the first `used` columns are written."""

    keys: Tensor
    values: Tensor
    used: int


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, 1, queries, columns] attention bias of a mask [batch, queries, columns].

    The lowest number instead of -inf: a padded query that sees nothing must not turn into NaN.
    """
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


class FusedDecoder:
    """Llama, Mistral, Qwen2 and Qwen3 decoders with one projection for queries, keys and values, and one for the MLP.

    The fused weights take the place of the model's: its parameters become views of them, so training steps are seen
    here and nothing is held twice. Moving the model to another device or type undoes this; see `serves`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder, config = model.get_decoder(), model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.embed, self.norm, self.rotary = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self._rope = self.embed.weight.new_zeros(2, 0, self.head_size)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether the model's parameters still are views of the fused weights."""
        attention = model.get_decoder().layers[0].self_attn
        return bool(attention.q_proj.weight.data_ptr() == self.layers[0].qkv.data_ptr())

    def cache(self, batch: int, columns: int) -> KeyValues:
        """An empty cache."""
        shape = len(self.layers), batch, columns, self.kv_heads, self.head_size
        # Zeros, because padding is never written and a masked NaN would still be one.
        return KeyValues(self.embed.weight.new_zeros(shape), self.embed.weight.new_zeros(shape), 0)

    def prefill(self, prompts: Prompts, cache: KeyValues) -> Tensor:
        """Run what is not known of the prompts, without the padding; [batch, hidden] state of each last token."""
        width = prompts.tokens.shape[1]
        real = prompts.real
        column = torch.arange(width, device=real.device)
        start = width - prompts.length
        fresh = column >= (start + prompts.known)[:, None]
        slots = fresh.flatten().nonzero().squeeze(1)
        rows, columns = slots // width, slots % width
        queries = int((prompts.length - prompts.known).max())
        causal = column <= column[width - queries :, None]
        bias = additive(causal & real[:, None, :], self.embed.weight.dtype)
        cache.used = width
        # Packed token -> its place among the [batch, queries] queries that attention works on.
        places = rows * queries + columns - (width - queries)
        last = (rows[1:] != rows[:-1]).nonzero().squeeze(1)
        last = torch.cat([last, last.new_tensor([len(rows) - 1])])
        position = columns - start[rows]
        tokens = prompts.tokens.flatten()[slots]
        return self._run(tokens, position, rows * cache.keys.shape[2] + columns, places, queries, bias, cache, last)

    def extend(self, tokens: Tensor, position: Tensor, visible: Tensor, cache: KeyValues) -> Tensor:
        """Append [batch, n] tokens that all stand at `position` [batch]; [batch, n, hidden] states.

        Args:
            visible: [batch, n, columns used afterwards] bool.
        """
        batch, count = tokens.shape
        slots = torch.arange(batch, device=tokens.device)[:, None] * cache.keys.shape[2]
        slots = (slots + torch.arange(cache.used, cache.used + count, device=tokens.device)).flatten()
        cache.used += count
        bias = additive(visible, self.embed.weight.dtype)
        positions = position[:, None].expand(-1, count).flatten()
        hidden = self._run(tokens.flatten(), positions, slots, None, count, bias, cache, None)
        return hidden.view(batch, count, -1)

    def _run(
        self,
        tokens: Tensor,
        position: Tensor,
        slots: Tensor,
        places: Tensor | None,
        queries: int,
        bias: Tensor,
        cache: KeyValues,
        last: Tensor | None,
    ) -> Tensor:
        """Packed tokens through all layers.

        Args:
            tokens, position, slots: [n] ids, positions and cache slots (row * columns + column) of the tokens.
            places: [n] where each stands among the batch's [batch * queries] queries; None: in that order, all.
            last: [batch] tokens whose state is wanted; None: all.
        """
        cos, sin = self._rotation(position, cache.keys.shape[2])
        x = self.embed(tokens)
        attend = _Attention(self, cos, sin, slots, places, queries, bias, cache)
        for number, layer in enumerate(self.layers):
            # Above the last layer's keys and values only the wanted tokens matter.
            only = last if number == len(self.layers) - 1 else None
            x = layer(x, attend, number, only)
        return _rms(x, self.norm)

    def _rotation(self, position: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin [n, 1, head size] of rotary positions, from a table that grows to the longest cache."""
        if self._rope.shape[1] < longest or self._rope.device != position.device:
            steps = torch.arange(max(longest, 2 * self._rope.shape[1]), device=position.device)
            cos, sin = self.rotary(self.embed.weight, steps[None])
            # x * cos + (-upper half, lower half) * sin: the sign goes into the table, and the halves swap by a roll.
            signs = torch.ones_like(sin[0])
            signs[:, : self.head_size // 2] = -1
            self._rope = torch.stack([cos[0], sin[0] * signs])
        cos, sin = self._rope[:, position].unsqueeze(2)
        return cos, sin


class _Attention:
    """Attention of packed tokens over the cache, the same in every layer."""

    def __init__(
        self,
        decoder: FusedDecoder,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        places: Tensor | None,
        queries: int,
        bias: Tensor,
        cache: KeyValues,
    ) -> None:
        self.heads, self.kv_heads, self.size = decoder.heads, decoder.kv_heads, decoder.head_size
        self.cos, self.sin, self.slots, self.places = cos, sin, slots, places
        self.queries, self.bias, self.cache = queries, bias, cache
        self.batch = cache.keys.shape[1]

    def rotate(self, x: Tensor, only: Tensor | None = None) -> Tensor:
        """Rotary embedding of [n, heads, head size]."""
        cos, sin = (self.cos, self.sin) if only is None else (self.cos[only], self.sin[only])
        return torch.addcmul(x * cos, x.roll(self.size // 2, -1), sin)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put [n, kv heads, head size] into the cache."""
        for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
            kept[layer].flatten(0, 1).index_copy_(0, self.slots, new)

    def __call__(self, layer: int, q: Tensor, only: Tensor | None) -> Tensor:
        """[n, heads * head size] attended values of the queries [n, heads, head size], one a row if `only` is given."""
        used, bias = self.cache.used, self.bias
        keys, values = (kept[layer, :, :used].transpose(1, 2) for kept in (self.cache.keys, self.cache.values))
        if only is not None:
            q, bias = q.unsqueeze(1), bias[:, :, -1:]
        elif self.places is None or len(self.places) == self.batch * self.queries:
            q = q.view(self.batch, self.queries, self.heads, self.size)
        else:
            padded = q.new_zeros(self.batch * self.queries, self.heads, self.size)
            q = padded.index_copy_(0, self.places, q).view(self.batch, self.queries, self.heads, self.size)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=bias, enable_gqa=self.heads != self.kv_heads
        )
        out = out.transpose(1, 2).reshape(-1, self.heads * self.size)
        packed = only is None and self.places is not None and len(self.places) < len(out)
        return out[self.places] if packed else out


class _Layer:
    """One decoder layer over packed tokens."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv, self.qkv_bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up, self.gate_up_bias = _fuse([mlp.gate_proj, mlp.up_proj])
        self.out, self.down, self.activation = attention.o_proj, mlp.down_proj, mlp.act_fn
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def __call__(self, x: Tensor, attend: _Attention, number: int, only: Tensor | None) -> Tensor:
        size, q_rows = attend.size, attend.heads * attend.size
        h = _rms(x, self.norms[0])
        if only is None:
            qkv = F.linear(h, self.qkv, self.qkv_bias).unflatten(1, (-1, size))
            qk, values = qkv.split([attend.heads + attend.kv_heads, attend.kv_heads], dim=1)
            if self.head_norms[0] is not None:
                q, keys = qk.split([attend.heads, attend.kv_heads], dim=1)
                qk = torch.cat([_rms(q, self.head_norms[0]), _rms(keys, self.head_norms[1])], dim=1)
            q, keys = attend.rotate(qk).split([attend.heads, attend.kv_heads], dim=1)
        else:
            x = x[only]
            bias = self.qkv_bias
            q = F.linear(h[only], self.qkv[:q_rows], bias[:q_rows] if bias is not None else None)
            kv = F.linear(h, self.qkv[q_rows:], bias[q_rows:] if bias is not None else None)
            keys, values = kv.unflatten(1, (-1, size)).chunk(2, dim=1)
            q = attend.rotate(_rms(q.unflatten(1, (-1, size)), self.head_norms[0]), only)
            keys = attend.rotate(_rms(keys, self.head_norms[1]))
        attend.write(number, keys, values)
        x = x + self.out(attend(number, q, only))
        gate, up = F.linear(_rms(x, self.norms[1]), self.gate_up, self.gate_up_bias).chunk(2, dim=1)
        return x + self.down(self.activation(gate) * up)


def _rms(x: Tensor, norm: Any) -> Tensor:
    return x if norm is None else F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _fuse(layers: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for several layers of one input; their parameters become views of it."""

    def joined(name: str) -> Tensor:
        parts = [getattr(layer, name) for layer in layers]
        whole = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
        return whole

    return joined("weight"), joined("bias") if layers[0].bias is not None else None


class GenericDecoder:
    """Any causal language model of transformers, through its own forward and cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.decoder, self.config = model.get_decoder(), model.config

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether this is the model's decoder."""
        return model.get_decoder() is self.decoder

    def cache(self, batch: int, columns: int) -> DynamicCache:  # noqa: ARG002 - it grows by itself
        """An empty cache."""
        return DynamicCache(config=self.config)

    def prefill(self, prompts: Prompts, cache: DynamicCache) -> Tensor:
        """As `FusedDecoder.prefill`, of whole prompts."""
        real = prompts.real
        width = real.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        return self._run(prompts.tokens, positions, causal & real[:, None, :], cache)[:, -1]

    def extend(self, tokens: Tensor, position: Tensor, visible: Tensor, cache: DynamicCache) -> Tensor:
        """As `FusedDecoder.extend`."""
        return self._run(tokens, position[:, None].expand(-1, tokens.shape[1]), visible, cache)

    def _run(self, tokens: Tensor, positions: Tensor, visible: Tensor, cache: DynamicCache) -> Tensor:
        hidden: Tensor = self.decoder(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=additive(visible, self.decoder.dtype),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


Decoder = FusedDecoder | GenericDecoder


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The fastest decoder that gives this model's results."""
    return FusedDecoder(model) if _fusable(model) else GenericDecoder(model)


def _fusable(model: PreTrainedModel) -> bool:
    config: Any = model.config
    if config.model_type not in FUSED or not hasattr(model.get_decoder(), "layers"):
        return False
    layers = list(model.get_decoder().layers)
    layer = layers[0]
    plain = all(type(part) is nn.Linear for part in (layer.self_attn.q_proj, layer.mlp.gate_proj))
    # These are called as modules, so what hangs on them (dropout in training, say) is kept; on others it would be lost.
    called = [model.get_input_embeddings(), *(p for one in layers for p in (one.self_attn.o_proj, one.mlp.down_proj))]
    called_ids = {id(part) for part in called}
    hooked = any(m._forward_hooks and id(m) not in called_ids for m in model.get_decoder().modules())
    rope = getattr(config, "rope_parameters", None) or {}
    fixed = rope.get("rope_type", "default") not in ("dynamic", "longrope")
    windowed = getattr(config, "use_sliding_window", config.model_type == "mistral") and config.sliding_window
    return plain and fixed and not windowed and not hooked
