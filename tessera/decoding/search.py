"""Constrained beam search over the catalogue index: only SIDs of existing items can come out.

The prompt runs once. Each level then is one forward of the beams' newest codes as one sequence: an ancestry mask lets a
token see the prompt, its own ancestors and itself, so the key-value cache is neither copied nor reordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tessera.decoding.index import CatalogueIndex


@dataclass(frozen=True)
class Found:
    """Items in order of falling score: rows [batch, k] int64 item numbers, -1 where fewer exist; scores [batch, k]."""

    rows: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ItemFilter:
    """Leaves to exclude and, for requests with `restricted`, the only leaves to allow; sorted, padded with the size.

    exclude, allow: [batch, n] int64; restricted: [batch] bool.
    """

    exclude: Tensor
    allow: Tensor
    restricted: Tensor

    @classmethod
    def build(
        cls, index: CatalogueIndex, exclude: Sequence[np.ndarray], allow: Sequence[np.ndarray | None]
    ) -> "ItemFilter":
        """From item numbers a request; an allow-list of None allows everything, an empty one nothing."""
        device = index.codes.device
        restricted = torch.tensor([a is not None for a in allow], device=device)
        return cls(
            _padded([index.leaves_of(e) for e in exclude], index.size).to(device),
            _padded([index.leaves_of(a) if a is not None else _NONE for a in allow], index.size).to(device),
            restricted,
        )

    def passes(self, index: CatalogueIndex, depth: int, nodes: Tensor) -> Tensor:
        """[batch, n] bool: does some item under each node pass both lists?"""
        gone, total = index.count_in(depth, nodes, self.exclude)
        # Excluded and allowed lists may overlap; the caller removes excluded items from the allowed ones.
        kept, _ = index.count_in(depth, nodes, self.allow)
        return torch.where(self.restricted[:, None], kept > 0, gone < total)


_NONE = np.empty(0, dtype=np.int64)


def _padded(lists: list[np.ndarray], fill: int) -> Tensor:
    width = max((len(one) for one in lists), default=0)
    out = np.full((len(lists), width), fill, dtype=np.int64)
    for row, one in zip(out, lists, strict=True):
        row[: len(one)] = one
    return torch.from_numpy(out)


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    sid_tokens: Tensor,
    index: CatalogueIndex,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    k: int,
    beams: int,
    keep: ItemFilter | None = None,
) -> Found:
    """The k most probable items a prompt, as far as a beam of width `max(k, beams)` finds them.

    The score is sum_l log p(c_l | prompt, c_<l), each p a softmax over the K codes of level l alone: text tokens and
    other levels' codes take no mass, codes that lead to no item do. Equal scores keep the order of beam, then code.

    Args:
        sid_tokens: [levels, K] token ids of the codes.
        prompts: [batch, T] token ids, padded on the left; prompt_mask: [batch, T] bool, False on padding.
    """
    search = _Search(model, sid_tokens, prompts, prompt_mask)
    batch, width = len(prompts), max(k, beams)
    device = prompts.device
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(batch, 1, device=device)
    for depth in range(index.depth):
        logp = search.log_probabilities(depth)
        allowed, child = index.children(depth, nodes)
        child = torch.where(allowed, child, 0).flatten(1)
        allowed = allowed.flatten(1)
        if keep is not None:
            allowed &= keep.passes(index, depth + 1, child)
        candidates = (scores.unsqueeze(-1) + logp).flatten(1).masked_fill(~allowed, -torch.inf)
        ranked, order = candidates.sort(dim=1, descending=True, stable=True)
        # A row with fewer valid continuations than beams carries dead beams at -inf, which never come back.
        alive = max(1, int((ranked[:, :width] > -torch.inf).sum(1).max()))
        scores, order = ranked[:, :alive], order[:, :alive]
        nodes = child.gather(1, order).masked_fill(scores == -torch.inf, 0)
        if depth + 1 < index.depth:
            size = index.codebook_size
            search.extend(depth, order // size, order % size)
    rows = index.rows[nodes].masked_fill(scores == -torch.inf, -1)
    return Found(rows[:, :k], scores[:, :k])


class _Search:
    """The model's side of the search: hidden states of the newest tokens, the cache, and who descends from whom."""

    def __init__(self, model: PreTrainedModel, sid_tokens: Tensor, prompts: Tensor, prompt_mask: Tensor) -> None:
        self.decoder, self.sid_tokens = model.get_decoder(), sid_tokens
        self.head = model.get_output_embeddings().weight
        self.cache = DynamicCache(config=model.config)
        self.length = prompt_mask.sum(1, keepdim=True)
        steps = prompts.shape[1]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=prompts.device).tril()
        positions = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)
        hidden = self._forward(prompts, positions, causal & prompt_mask[:, None, :])
        self.hidden = hidden[:, -1:]
        # visible[b, beam, column]: what a beam's newest token may look at among the cached columns.
        self.visible = prompt_mask[:, None, :]

    def log_probabilities(self, depth: int) -> Tensor:
        """[batch, beams, K] log-softmax over the level's codes."""
        rows = self.head[self.sid_tokens[depth]]
        return (self.hidden @ rows.T).float().log_softmax(-1)

    def extend(self, depth: int, parents: Tensor, codes: Tensor) -> None:
        """Append one code a beam: parents [batch, n] beam numbers of the level above, codes [batch, n]."""
        batch, count = parents.shape
        inherited = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.visible.shape[2]))
        own = torch.eye(count, dtype=torch.bool, device=codes.device).expand(batch, -1, -1)
        self.visible = torch.cat([inherited, own], dim=2)
        positions = (self.length + depth).expand(-1, count)
        self.hidden = self._forward(self.sid_tokens[depth][codes], positions, self.visible)

    def _forward(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        dtype = self.head.dtype
        # The lowest number instead of -inf: a padded query that sees nothing must not turn into NaN.
        mask = torch.zeros(visible.shape, dtype=dtype, device=tokens.device)
        mask = mask.masked_fill(~visible, torch.finfo(dtype).min).unsqueeze(1)
        return self.decoder(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
