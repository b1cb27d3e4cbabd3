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

from tessera.policy.backbone import Dropout

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
    """Keys and, behind them, values [layers, batch, columns, 2 * kv heads, head size]; `used` columns count."""

    both: Tensor
    used: int = 0


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, 1, queries, columns] attention bias of a mask [batch, queries, columns].

    The lowest number instead of -inf: a padded query that sees nothing must not turn into NaN.
    """
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


class FusedDecoder:
    """Llama, Mistral, Qwen2 and Qwen3 decoders with one projection for queries, keys and values, and one for the MLP.

    For inference: dropout is passed over. The fused weights take the place of the model's, whose parameters become
    views of them, so nothing is held twice on a GPU. A CPU gets copies in its own layout; see `serves`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder, config = model.get_decoder(), model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.weight, self.rotary = decoder.embed_tokens.weight, decoder.rotary_emb
        layers = list(decoder.layers)
        self.layers = [_Layer(layer, self, layer is layers[-1]) for layer in layers]
        self.norm = _Norm(decoder.norm)
        self._rope = self.weight.new_zeros(2, 0, self.size)
        self._state = _state(model)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether the model's parameters are where, and what, they were; False after a training step."""
        return _state(model) == self._state

    def cache(self, batch: int, columns: int) -> KeyValues:
        """An empty cache."""
        # Zeros, because padding is never written and a masked NaN would still be one.
        return KeyValues(self.weight.new_zeros(len(self.layers), batch, columns, 2 * self.kv_heads, self.size))

    def prefill(self, prompts: Prompts, cache: KeyValues) -> Tensor:
        """Run what is not known of the prompts, without the padding; [batch, hidden] state of each last token."""
        batch, width = prompts.tokens.shape
        real = prompts.real
        column = torch.arange(width, device=real.device)
        start = width - prompts.length
        fresh = column >= (start + prompts.known)[:, None]
        slots = fresh.flatten().nonzero().squeeze(1)
        rows, columns = slots // width, slots % width
        queries = int((prompts.length - prompts.known).max())
        causal = column <= column[width - queries :, None]
        last = (rows[1:] != rows[:-1]).nonzero().squeeze(1)
        last = torch.cat([last, last.new_tensor([len(rows) - 1])])
        cos, sin = self._rotation(columns - start[rows], width)
        cache.used = width
        attend = _Attention(self, cache, queries, additive(causal & real[:, None, :], self.weight.dtype), cos, sin)
        if len(slots) < batch * queries:
            # Packed token -> its place among the [batch, queries] queries that attention works on.
            attend.pack(rows * queries + columns - (width - queries), rows * cache.both.shape[2] + columns)
        return self._run(prompts.tokens.flatten()[slots], attend, last)

    def extend(self, tokens: Tensor, position: Tensor, visible: Tensor, cache: KeyValues) -> Tensor:
        """Append [batch, n] tokens that all stand at `position` [batch]; [batch, n, hidden] states.

        Args:
            visible: [batch, n, columns used afterwards] bool.
        """
        batch, count = tokens.shape
        cache.used += count
        cos, sin = self._rotation(position[:, None].expand(-1, count).flatten(), cache.both.shape[2])
        attend = _Attention(self, cache, count, additive(visible, self.weight.dtype), cos, sin)
        return self._run(tokens.flatten(), attend, None).view(batch, count, -1)

    def _run(self, tokens: Tensor, attend: "_Attention", last: Tensor | None) -> Tensor:
        """[n] packed tokens through all layers; `last` [batch]: tokens whose state is wanted, None: all."""
        wanted = len(tokens if last is None else last)
        if self.layers[0].qkv.packed:  # once, in place of each product
            tokens = F.pad(tokens, (0, padding(len(tokens))))
            last = None if last is None else F.pad(last, (0, padding(len(last))))
        x = F.embedding(tokens, self.weight)
        for number, layer in enumerate(self.layers):
            # Above the last layer's keys and values only the wanted tokens matter.
            x = layer(x, attend, number, last if number == len(self.layers) - 1 else None)
        return self.norm(x)[:wanted]

    def _rotation(self, position: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin [n, 1, head size] of rotary positions below `longest`, from a table that grows."""
        table = self._rope  # the one that is read, whatever another thread puts in its place
        if table.shape[1] < longest or table.device != position.device:
            steps = torch.arange(max(longest, 2 * table.shape[1]), device=position.device)
            cos, sin = self.rotary(self.weight, steps[None])
            # x * cos + (-upper half, lower half) * sin: the sign goes into the table, and the halves swap by a roll.
            signs = torch.ones_like(sin[0])
            signs[:, : self.size // 2] = -1
            self._rope = table = torch.stack([cos[0], sin[0] * signs])
        cos, sin = table[:, position].unsqueeze(2)
        return cos, sin


class _Attention:
    """Attention of new tokens over the cache, the same in every layer: `queries` a row, the row's last columns."""

    def __init__(
        self, decoder: FusedDecoder, cache: KeyValues, queries: int, bias: Tensor, cos: Tensor, sin: Tensor
    ) -> None:
        self.heads, self.kv_heads, self.size = decoder.heads, decoder.kv_heads, decoder.size
        self.cos, self.sin, self.bias, self.cache, self.count = cos, sin, bias, cache, len(cos)
        self.shape = cache.both.shape[1], queries
        # Views of all layers at once, which is cheaper than in each.
        seen = cache.both[:, :, : cache.used].transpose(2, 3)
        self.keys, self.values = (half.unbind() for half in seen.split(self.kv_heads, dim=2))
        self.new = cache.both[:, :, cache.used - queries : cache.used].unbind()
        self.places: Tensor | None = None

    def pack(self, places: Tensor, slots: Tensor) -> None:
        """Not all queries are tokens: [n] places of these among them, and slots (row * columns + column)."""
        self.places, self.slots = places, slots
        self.new = self.cache.both.flatten(1, 2).unbind()

    def rotate(self, x: Tensor, only: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Rotary embedding of [n, heads, head size]; `out` may be `x`."""
        cos, sin = (self.cos, self.sin) if only is None else (self.cos[only], self.sin[only])
        return torch.addcmul(x * cos, x.roll(self.size // 2, -1), sin, out=out)

    def write(self, layer: int, both: Tensor) -> None:
        """Put keys and values [n, 2 * kv heads, head size] into the cache."""
        if self.places is None:
            self.new[layer].copy_(both.view(*self.shape, *both.shape[1:]))
        else:
            self.new[layer].index_copy_(0, self.slots, both)

    def __call__(self, layer: int, q: Tensor, only: Tensor | None) -> Tensor:
        """[n, heads * head size] attended values of the queries [n, heads, head size], one a row if `only` is given."""
        bias = self.bias if only is None else self.bias[:, :, -1:]
        packed = self.places if only is None else None
        if packed is not None:
            padded = q.new_zeros(self.shape[0] * self.shape[1], self.heads, self.size)
            q = padded.index_copy_(0, packed, q)
        q = q.view(self.shape[0], -1, self.heads, self.size).transpose(1, 2)
        keys, values = self.keys[layer], self.values[layer]
        out = F.scaled_dot_product_attention(q, keys, values, bias, enable_gqa=self.heads != self.kv_heads)
        out = out.transpose(1, 2).reshape(-1, self.heads * self.size)
        return out if packed is None else out[packed]


class _Layer:
    """One decoder layer over packed tokens."""

    def __init__(self, layer: Any, decoder: FusedDecoder, is_last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        weight, bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        weight = self.norms[0].fold(weight)
        self.qkv = Linear(weight, bias)
        if is_last:  # where the queries of a prompt's last token are enough
            rows = [decoder.heads * decoder.size, 2 * decoder.kv_heads * decoder.size]
            biases = bias.split(rows) if bias is not None else (None, None)
            self.q, self.kv = (Linear(w, b) for w, b in zip(weight.split(rows), biases, strict=True))
        weight, bias = _fuse([mlp.gate_proj, mlp.up_proj])
        self.gate_up = Linear(self.norms[1].fold(weight), bias)
        self.out, self.down = (Linear(part.weight, part.bias) for part in (attention.o_proj, mlp.down_proj))
        self.activation = mlp.act_fn
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.head_norms = [_Norm(norm) for norm in norms if norm is not None]

    def __call__(self, x: Tensor, attend: _Attention, number: int, only: Tensor | None) -> Tensor:
        h, heads, kv_heads = self.norms[0].before(x), attend.heads, attend.kv_heads
        if only is None:
            qkv = self.qkv(h).unflatten(1, (-1, attend.size))[: attend.count]
            self._turn(qkv[:, : heads + kv_heads], (heads, kv_heads), attend, None)
            q, both = qkv[:, :heads], qkv[:, heads:]
        else:
            both = self.kv(h).unflatten(1, (-1, attend.size))[: attend.count]
            x, real = x[only], only[: attend.shape[0]]
            q = self.q(h[only]).unflatten(1, (-1, attend.size))[: len(real)]
            self._turn(both[:, :kv_heads], (0, kv_heads), attend, None)
            self._turn(q, (heads, 0), attend, real)
        attend.write(number, both)
        attended = attend(number, q, only)
        if len(attended) < len(x):
            attended = F.pad(attended, (0, 0, 0, len(x) - len(attended)))
        x = self.out(attended, x)
        gate, up = self.gate_up(self.norms[1].before(x)).chunk(2, dim=1)
        return self.down(self.activation(gate).mul_(up), x)

    def _turn(self, qk: Tensor, heads: tuple[int, int], attend: _Attention, only: Tensor | None) -> None:
        """Normalise and rotate queries and keys [n, heads, head size] in place."""
        if self.head_norms:
            for part, norm in zip(qk.split(heads, dim=1), self.head_norms, strict=True):
                part.copy_(norm(part))
        attend.rotate(qk, only, out=qk)


class _Norm:
    """RMSNorm; on a CPU by a few cheap operations in place of torch's eight."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.epsilon = norm.weight.detach(), norm.variance_epsilon
        size = len(self.weight)
        self.cheap = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        self.scale, self.least = self.weight * size**0.5, torch.tensor((size * self.epsilon) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return self.before(x).mul_(self.scale) if self.cheap else self.before(x)

    def before(self, x: Tensor) -> Tensor:
        """The norm as far as it is not in weights that went through `fold`."""
        if not self.cheap:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.epsilon)
        # g x / sqrt(mean(x^2) + e) = g sqrt(n) x / sqrt(|x|^2 + n e)
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.least)

    def fold(self, weight: Tensor) -> Tensor:
        """Weights [rows, n] for what comes out of `before`."""
        return weight * self.scale if self.cheap else weight


class Linear:
    """A linear layer with frozen weights, on a CPU in the layout of its matrix kernels (oneDNN).

    That spares each product the packing of the weights, which with the few rows of a beam takes as long as the product.
    The library keeps a program and a buffer for every number of rows that it has seen, without end: so rows are padded
    to a few numbers, and many rows go in blocks.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach()
        self.packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and _ONEDNN
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.bias = bias.detach() if bias is not None else None

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """x W^T + b + plus, of [rows, n]."""
        product: Tensor
        if not self.packed:
            product = F.linear(x, self.weight, self.bias)
            return product if plus is None else product + plus
        rows = len(x)
        if rows in ROWS:  # the common case, by as little Python as can be
            if plus is None:
                product = _product(x, self.weight, self.bias, "none", [], "")
            else:
                product = _product_plus(x, plus, self.weight, self.bias, "add")
            return product
        if rows > BLOCK:
            added = [None] * -(-rows // BLOCK) if plus is None else plus.split(BLOCK)
            return torch.cat([self(*pair) for pair in zip(x.split(BLOCK), added, strict=True)])
        more = (0, 0, 0, padding(rows))
        return self(F.pad(x, more), None if plus is None else F.pad(plus, more))[:rows]


def padding(rows: int) -> int:
    """Rows to add, so that some forty numbers of rows occur in all; see `Linear`."""
    rest = rows % BLOCK
    return -rest % (4 if rest <= 64 else 16 if rest <= 256 else 64)


BLOCK = 1024
"""Most rows of one product on a CPU."""
ROWS = frozenset(rows for rows in range(1, BLOCK + 1) if not padding(rows))
_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
if _ONEDNN:
    _product, _product_plus = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary


def _state(model: PreTrainedModel) -> tuple[int, int]:
    """Changes with every step of an optimizer, and when the model is moved."""
    parameters = list(model.parameters())
    return parameters[-1].data_ptr(), sum(one._version for one in parameters)


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
        self.decoder, self.config, self._state = model.get_decoder(), model.config, _state(model)

    def serves(self, model: PreTrainedModel) -> bool:
        """As `FusedDecoder.serves`."""
        return _state(model) == self._state

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
    layers = model.get_decoder().layers
    blocks = [block for layer in layers for block in (layer.self_attn, layer.mlp)]
    plain = all(type(part) is nn.Linear for block in blocks for name, part in block.named_children() if "proj" in name)
    hooks = [hook for part in model.get_decoder().modules() for hook in part._forward_hooks.values()]
    rope = getattr(config, "rope_parameters", None) or {}
    fixed = rope.get("rope_type", "default") not in ("dynamic", "longrope")
    windowed = getattr(config, "use_sliding_window", config.model_type == "mistral") and config.sliding_window
    return plain and fixed and not windowed and all(isinstance(hook, Dropout) for hook in hooks)
