"""The catalogue index: which codes may follow a prefix, as sorted arrays and bit rows.

The catalogue's SIDs, sorted by code, are the leaves of a trie. Level l of the trie numbers its nodes in that order, so
a node is a range of leaf rows, and the children of a node are neighbours. One row of K bits a node says which codes
follow; the child's number is the parent's first child plus the count of set bits before the code (its rank).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.errors import InputError


@dataclass(frozen=True)
class Level:
    """The nodes at one depth; depth 0 is the root alone.

    bits: [nodes, ceil(K / 8)] uint8, bit c % 8 of byte c // 8 is set when code c continues the prefix.
    first_child: [nodes] int64, number of the node's first child at the next depth.
    """

    bits: Tensor
    first_child: Tensor


class CatalogueIndex:
    """Constrains decoding to the SIDs of existing items.

    Args:
        codes: [items, levels] int64, unique rows, in lexicographic order.
        rows: [items] int64, the caller's number of each item in that order.
    """

    def __init__(self, codes: Tensor, rows: Tensor, codebook_size: int) -> None:
        self.codes, self.rows, self.codebook_size = codes, rows, codebook_size
        self.size, self.depth = codes.shape
        self.levels, self.leaf_start = _trie(codes, codebook_size)
        self._leaf_of_row = np.argsort(rows.cpu().numpy())

    @classmethod
    def build(cls, codes: np.ndarray, codebook_size: int) -> "CatalogueIndex":
        """Index SIDs given as [items, levels] integers; item i keeps the number i.

        Raises:
            InputError: no item, a code outside 0..codebook_size-1, or two items with one SID.
        """
        codes = np.ascontiguousarray(codes, dtype=np.int64)
        if codes.ndim != 2 or 0 in codes.shape:
            raise InputError("a catalogue index needs at least one item with at least one code; check the SIDs table.")
        if codes.min() < 0 or codes.max() >= codebook_size:
            raise InputError(f"SID codes must lie in 0..{codebook_size - 1}, found {codes.min()}..{codes.max()}.")
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        twin = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
        if len(twin):
            sid = "_".join(map(str, ordered[twin[0]]))
            raise InputError(f"{len(twin)} SIDs belong to two items, {sid} among them; resolve collisions first.")
        return cls(torch.from_numpy(ordered), torch.from_numpy(order.astype(np.int64)), codebook_size)

    def to(self, device: torch.device | str) -> "CatalogueIndex":
        """The same index on another device."""
        return CatalogueIndex(self.codes.to(device), self.rows.to(device), self.codebook_size)

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes that continue prefixes, and the nodes they lead to.

        Args:
            nodes: [...] int64 node numbers at `depth`.

        Returns:
            allowed: [..., K] bool; child: [..., K] int64 node numbers at depth + 1, meaningful where allowed.
        """
        level = self.levels[depth]
        packed = level.bits[nodes]
        shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
        allowed = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., : self.codebook_size].bool()
        rank = allowed.long().cumsum(-1) - 1
        return allowed, level.first_child[nodes].unsqueeze(-1) + rank

    def count_in(self, depth: int, nodes: Tensor, leaves: Tensor) -> tuple[Tensor, Tensor]:
        """How many of some sorted leaves lie under nodes.

        Args:
            nodes: [batch, n] int64 nodes at `depth`.
            leaves: [batch, m] int64 leaf positions, sorted, padded with `self.size`.

        Returns:
            [batch, n] how many of the leaves are below each node, and [batch, n] how many leaves it has in all.
        """
        start, end = self.leaf_start[depth][nodes], self.leaf_start[depth][nodes + 1]
        inside = torch.searchsorted(leaves, end) - torch.searchsorted(leaves, start)
        return inside, end - start

    def leaves_of(self, rows: np.ndarray) -> np.ndarray:
        """Leaf positions of item numbers, sorted."""
        return np.sort(self._leaf_of_row[rows])


def _trie(codes: Tensor, codebook_size: int) -> tuple[list[Level], list[Tensor]]:
    """Levels of the trie over lexicographically sorted codes, and each depth's first leaf per node (plus the total)."""
    size, depth = codes.shape
    device = codes.device
    differs = torch.ones(size, dtype=torch.bool, device=device)
    differs[1:] = False
    starts = [torch.tensor([0, size], device=device)]
    node_of_leaf = torch.zeros(size, dtype=torch.int64, device=device)
    levels = []
    for column in range(depth):
        differs = differs.clone()
        differs[1:] |= codes[1:, column] != codes[:-1, column]
        first = differs.nonzero().squeeze(1)  # first leaf of every node at depth column + 1
        parent = node_of_leaf[first]
        nodes = len(starts[-1]) - 1
        code = codes[first, column]
        bits = torch.zeros(nodes, (codebook_size + 7) // 8, dtype=torch.uint8, device=device)
        # Children of a parent have distinct codes, so adding single bits never carries.
        bits.index_put_((parent, code // 8), (1 << (code % 8)).to(torch.uint8), accumulate=True)
        first_child = torch.searchsorted(parent, torch.arange(nodes, device=device))
        levels.append(Level(bits, first_child))
        starts.append(torch.cat([first, torch.tensor([size], device=device)]))
        node_of_leaf = differs.long().cumsum(0) - 1
    return levels, starts
