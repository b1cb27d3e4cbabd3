"""Exclusion and allow-lists inside the search: a filtered user still gets k items where k exist."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.decoding.index import CatalogueIndex

_NONE = np.empty(0, dtype=np.int64)
PADDING = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ItemFilter:
    """For each depth the nodes that a request may not enter, worked out from its lists before the search.

    The cost grows with the lists' lengths, not with the catalogue.

    dead[d], alive[d]: [batch, m] int32 nodes at depth d + 1, sorted, padded; m is 0 where no request has any.
    restricted: [batch, 1] bool, requests that may enter `alive` nodes alone; the others may enter all but `dead` ones.
    """

    dead: list[Tensor]
    alive: list[Tensor]
    restricted: Tensor
    any_restricted: bool

    @classmethod
    def build(
        cls, index: CatalogueIndex, exclude: Sequence[np.ndarray], allow: Sequence[np.ndarray | None]
    ) -> "ItemFilter":
        """From item numbers a request; an allow-list of None allows everything, an empty one nothing.

        An item on both lists is excluded.
        """
        restricted = np.array([one is not None for one in allow])
        gone = _pairs(index, exclude)
        kept = np.setdiff1d(_pairs(index, [one if one is not None else _NONE for one in allow]), gone)
        gone = gone[~restricted[gone // index.size]]
        dead, alive = [], []
        device = index.codes.device
        for depth in range(1, index.depth + 1):
            owner, node, count = _nodes(index, depth, gone)
            whole = count == index.leaf_count(depth, node)
            dead.append(_padded(owner[whole], node[whole], len(exclude)).to(device))
            owner, node, _ = _nodes(index, depth, kept)
            alive.append(_padded(owner, node, len(exclude)).to(device))
        return cls(dead, alive, torch.from_numpy(restricted[:, None]).to(device), bool(restricted.any()))

    def refuses(self, depth: int, nodes: Tensor) -> Tensor | None:
        """[batch, n] bool: nodes [batch, n] int32 at depth + 1 that lead to no item that passes; None if all do."""
        refused = _among(self.dead[depth], nodes) if self.dead[depth].shape[1] else None
        if not self.any_restricted:
            return refused
        outside = ~_among(self.alive[depth], nodes) & self.restricted
        return outside if refused is None else outside | refused


def _pairs(index: CatalogueIndex, lists: Sequence[np.ndarray]) -> np.ndarray:
    """(request, leaf) pairs of item numbers as sorted unique keys request * items + leaf."""
    owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    rows = np.concatenate([*lists, _NONE])
    leaves = index.leaf.numpy(force=True)[rows].astype(np.int64)
    return np.unique(owner * index.size + leaves)


def _nodes(index: CatalogueIndex, depth: int, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes at `depth` above (request, leaf) pairs: request, node and how many of its leaves are there."""
    owner, leaf = np.divmod(pairs, index.size)
    keys, count = np.unique(owner * index.size + index.ancestors(depth, leaf), return_counts=True)
    return *np.divmod(keys, index.size), count


def _padded(owner: np.ndarray, node: np.ndarray, batch: int) -> Tensor:
    """Nodes as sorted rows, one a request."""
    count = np.bincount(owner, minlength=batch)
    out = np.full((batch, int(count.max(initial=0))), PADDING, dtype=np.int32)
    out[owner, np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)] = node
    return torch.from_numpy(out)


def _among(lists: Tensor, nodes: Tensor) -> Tensor:
    """Is nodes[b, i] one of lists[b]?"""
    if not lists.shape[1]:
        return torch.zeros_like(nodes, dtype=torch.bool)
    place = torch.searchsorted(lists, nodes).clamp_(max=lists.shape[1] - 1)
    return lists.gather(1, place) == nodes
