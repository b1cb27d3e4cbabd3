"""Constrained beam search and sampling over the catalogue index: only SIDs of existing items can come out.

The prompt runs once. Each level then is one forward of the beams' newest codes as one sequence: an ancestry mask lets a
token see the prompt, its own ancestors and itself, so the key-value cache is neither copied nor reordered.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tessera.decoding.filters import ItemFilter
from tessera.decoding.forward import Decoder, Linear, Prompts
from tessera.decoding.fusion import fused
from tessera.decoding.index import CatalogueIndex
from tessera.policy.backbone import Backbone


@dataclass(frozen=True)
class Found:
    """Items in order of falling score: rows [batch, k] int64 item numbers, -1 where fewer exist; scores [batch, k]."""

    rows: Tensor
    scores: Tensor


class CodeHead:
    """The output layer cut to each level's codes.

    Args:
        sid_tokens: [levels, K] token ids of the codes, -1 behind those of a level that has fewer; hybrid: the last
            level holds the items' own tokens.
    """

    def __init__(self, model: PreTrainedModel, sid_tokens: Tensor, hybrid: bool = False) -> None:
        self.hybrid = hybrid
        head: Any = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        self.tokens = sid_tokens.to(head.weight.device)
        rows = [_run(level[level >= 0]) for level in self.tokens]
        self._levels = [Linear(head.weight[one], bias[one] if bias is not None else None) for one in rows]

    @classmethod
    def of(cls, backbone: Backbone) -> "CodeHead":
        """The head of the backbone's weights as they are now."""
        return cls(backbone.model, backbone.sid_tokens, backbone.hybrid)

    def own(self, depth: int) -> bool:
        """Whether the codes of level `depth` are the items' own tokens, asked for straight from the prompt."""
        return self.hybrid and depth + 1 == len(self._levels)

    def log_probabilities(self, depth: int, hidden: Tensor) -> Tensor:
        """[..., K] log-softmax over the codes of level `depth` alone."""
        logits = self._levels[depth](hidden.flatten(0, -2))
        return logits.view(*hidden.shape[:-1], -1).float().log_softmax(-1)


def _run(tokens: Tensor) -> Tensor | slice:
    """Tokens [n] that follow one another as a slice, which needs no copy of the rows."""
    follow = bool((tokens[1:] - tokens[:-1] == 1).all())
    return slice(int(tokens[0]), int(tokens[-1]) + 1) if follow else tokens


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    head: CodeHead,
    index: CatalogueIndex,
    prompts: Prompts,
    *,
    k: int,
    beams: int,
    keep: ItemFilter | None = None,
    cache: Any = None,
    diversity: Tensor | None = None,
) -> Found:
    """The k most probable items a prompt, as far as a beam of width `max(k, beams)` finds them.

    The score is sum_l log p(c_l | prompt, c_<l), each p a softmax over the K codes of level l alone: text tokens and
    other levels' codes take no mass, codes that lead to no item do. Of hybrid SIDs, whose prefixes are found like this,
    an item's score is log p(own token | prompt): the prefix says where to look, the item what it is. Continuations that
    do not exist or do not pass the filter are dropped before ranking. Equal scores keep the order of beam, then code.

    Args:
        cache: of `columns(...)` columns, holding what the prompts say is known; None makes an empty one. Afterwards its
            first columns hold the prompts' keys and values.
        diversity: [batch] in [0, 1], how far the probability of prefixes, all codes but the last, is flattened
            (tessera.decoding.fusion); None: not at all.
    """
    batch, width = len(prompts.tokens), max(k, beams)
    if cache is None:
        cache = decoder.cache(batch, columns(prompts, index, width))
    device = prompts.tokens.device
    hidden = start = decoder.prefill(prompts, cache).unsqueeze(1)
    nodes = torch.zeros(batch, 1, dtype=torch.int32, device=device)
    scores = torch.zeros(batch, 1, device=device)
    visible = prompts.real[:, None, :]
    for depth in range(index.depth):
        if head.own(depth):
            hidden, scores = start, scores.masked_fill(scores > -torch.inf, 0.0)
        logp, codes, child = index.constrain(depth, nodes, head.log_probabilities(depth, hidden))
        slots = logp.shape[-1]
        candidates = (scores.unsqueeze(-1) + logp).flatten(1)
        child = child.flatten(1)
        if keep is not None and (refused := keep.refuses(depth, child)) is not None:
            candidates.masked_fill_(refused, -torch.inf)
        if diversity is not None and depth + 1 == index.depth:
            candidates = fused(candidates.unflatten(1, (-1, slots)), diversity).flatten(1)
        # Fewer nodes than beams leave fewer beams; a row of fewer yet carries dead ones at -inf, which never come back.
        order = _best(candidates, min(width, index.nodes(depth + 1)))
        scores, nodes = candidates.gather(1, order), child.gather(1, order)
        if depth + 1 < index.depth and not head.own(depth + 1):
            tokens = head.tokens[depth][codes.flatten(1).gather(1, order)]
            visible = _descend(visible, order // slots)
            hidden = decoder.extend(tokens, prompts.length + depth, visible, cache)
    rows = index.item[nodes].long().masked_fill(scores == -torch.inf, -1)
    return Found(rows[:, :k], scores[:, :k])


@torch.inference_mode()
def sample(
    decoder: Decoder,
    head: CodeHead,
    index: CatalogueIndex,
    prompts: Prompts,
    *,
    count: int,
    temperature: float,
    generator: torch.Generator,
    constrained: bool = True,
) -> Tensor:
    """Codes [batch, count, levels] int64 of independently drawn SIDs; a prompt may get one twice.

    c_l ~ softmax(log p(. | prompt, c_<l) / temperature) over the codes of level l, and where `constrained` over those
    alone that lead to an item; p(own token | prompt) of hybrid SIDs. The prompt runs once for all its SIDs.

    Args:
        generator: on the prompts' device.
    """
    batch, device = len(prompts.tokens), prompts.tokens.device
    cache: Any = decoder.cache(batch, prompts.tokens.shape[1] + count * (index.depth - 1))
    hidden = start = decoder.prefill(prompts, cache).unsqueeze(1)
    nodes = torch.zeros(batch, 1, dtype=torch.int32, device=device)
    parents = torch.zeros(batch, count, dtype=torch.int64, device=device)
    visible = prompts.real[:, None, :]
    drawn = []
    for depth in range(index.depth):
        logp = head.log_probabilities(depth, start if head.own(depth) else hidden)
        if constrained:
            logp, codes, child = index.constrain(depth, nodes, logp)
        slot = _draw((logp / temperature).expand(-1, count, -1), generator).unsqueeze(-1)
        if constrained:
            nodes = child.expand(-1, count, -1).gather(-1, slot).squeeze(-1)
            slot = codes.expand(-1, count, -1).gather(-1, slot)
        drawn.append(slot.squeeze(-1))
        if depth + 1 < index.depth and not head.own(depth + 1):
            visible = _descend(visible, parents)
            hidden = decoder.extend(head.tokens[depth][drawn[-1]], prompts.length + depth, visible, cache)
            parents = torch.arange(count, device=device).expand(batch, -1)
    return torch.stack(drawn, dim=-1)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One place [...] of each row of logits [..., n], by the Gumbel trick."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    # -log u > 0 is exponential; the least of -log(u_i) / p_i falls on i with probability p_i.
    return (logits - (-uniform.clamp(min=1e-20).log()).log()).argmax(-1)


def columns(prompts: Prompts, index: CatalogueIndex, width: int) -> int:
    """Columns of the cache that a search needs."""
    return prompts.tokens.shape[1] + sum(min(width, index.nodes(depth)) for depth in range(1, index.depth))


def _best(candidates: Tensor, count: int) -> Tensor:
    """[batch, count] places of the highest candidates [batch, n] in falling order, equal ones in order of place.

    A score has 24 bits of mantissa and a double 53: a factor that grows by 2^-45 a place parts equal (negative) scores
    and cannot turn unequal ones round while there are fewer than 2^20 places.
    """
    if candidates.shape[1] > 2**20:
        return candidates.sort(dim=1, descending=True, stable=True).indices[:, :count]
    keys = candidates * _growth(candidates.shape[1], candidates.device)
    return keys.topk(min(count, candidates.shape[1]), dim=1).indices


@lru_cache(maxsize=64)
def _growth(places: int, device: torch.device) -> Tensor:
    return 1 + torch.arange(places, dtype=torch.float64, device=device) * 2.0**-45


def _descend(visible: Tensor, parents: Tensor) -> Tensor:
    """What each new token sees: all that its parent [batch, n] saw, and itself; [batch, n, columns + n] bool."""
    batch, count = parents.shape
    inherited = visible.gather(1, parents[:, :, None].expand(-1, -1, visible.shape[2]))
    own = torch.eye(count, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)
    return torch.cat([inherited, own], dim=2)
