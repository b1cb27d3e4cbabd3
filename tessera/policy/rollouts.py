"""Rollouts: the items or codes that the policy, as it is, answers a prompt with."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tessera.decoding.forward import Prompts, decoder_of
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import CodeHead, beam_search, sample
from tessera.policy.backbone import Backbone

Kind = Literal["beam", "sampled", "unconstrained"]


@dataclass(frozen=True)
class Rollouts:
    """A group a prompt. rows: [batch, G] item numbers, -1 where the SID is no item's; codes: [batch, G, L] int64."""

    rows: Tensor
    codes: Tensor


def roll_out(
    backbone: Backbone,
    index: CatalogueIndex,
    tokens: Tensor,
    mask: Tensor,
    group: int,
    kind: Kind,
    temperature: float,
    generator: torch.Generator,
) -> Rollouts:
    """`group` SIDs for each prompt; the prompt's keys and values are computed once for all of them.

    "beam" gives the likeliest items that a beam of this width finds, all different and at most as many as there are;
    "sampled" draws from the items, "unconstrained" from all SIDs of the vocabulary, of items or not.

    Args:
        tokens, mask: [batch, T] prompts padded on the left, False on padding.
    """
    length = mask.sum(1)
    prompts = Prompts(tokens, length, torch.zeros_like(length))
    # Built for each batch, because the weights have moved since the last one.
    decoder, head = decoder_of(backbone.model), CodeHead.of(backbone)
    if kind == "beam":
        group = min(group, index.size)
        rows = beam_search(decoder, head, index, prompts, k=group, beams=group).rows.clone()
        return Rollouts(rows, index.codes[rows].long())
    constrained = kind == "sampled"
    drawn = sample(
        decoder, head, index, prompts,
        count=group, temperature=temperature, generator=generator, constrained=constrained,
    ).clone()
    return Rollouts(rows_of(index, drawn), drawn)


def rows_of(index: CatalogueIndex, codes: Tensor) -> Tensor:
    """[...] item number of each SID [..., L], -1 where there is none."""
    below = [1, *index.sizes[:0:-1]]
    places = torch.tensor(below, device=codes.device).cumprod(0).flip(0)  # a mixed radix
    catalogue = (index.codes[index.item].long() * places).sum(-1)  # rising: the index is in lexicographic order
    wanted = (codes * places).sum(-1)
    leaf = torch.searchsorted(catalogue, wanted).clamp(max=index.size - 1)
    return index.item[leaf].long().masked_fill(catalogue[leaf] != wanted, -1)
