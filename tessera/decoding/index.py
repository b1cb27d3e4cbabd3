"""The catalogue index: which codes may follow a prefix, as a trie in flat arrays.

The catalogue's SIDs in lexicographic order are the leaves of a trie. Nodes of one depth are numbered in that order, so
the children of a node are neighbours: two offsets say which, one small integer a child says its code. A node is also a
range of leaves. Five bytes a node and no row of K bits: a million items of four codes take some 17 MB. Only the first
depths, where most nodes exist and most beams are, have such rows as well.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.errors import BundleError, InputError
from tessera.files import replacing
from tessera.schema import Sizes, level_sizes

FILE = "index.safetensors"
DENSE = 2**18
"""Entries up to which a depth also has a table of every node's child under every code: fewer steps in the search."""
WIDE = 1024
"""Codes of a level above which it has no such table, however few nodes there are: a search would look through all."""


class CatalogueIndex:
    """Constrains decoding to the SIDs of existing items, which keep the numbers that the caller gave them.

    Args:
        codes: [items, levels] SID of each item, in the smallest integer type that holds K.
        sizes: codes to choose from, at every level or at each.
        leaf: [items] int32, each item's place in lexicographic order; item: its inverse.
        code: for each depth d, [nodes at d + 1] code of each node, in the type of `codes`.
        first: for each depth d, [nodes at d + 1] int32, number of a node's first child at d + 1, then their number.
    """

    def __init__(
        self, codes: Tensor, leaf: Tensor, item: Tensor, code: list[Tensor], first: list[Tensor], sizes: Sizes
    ) -> None:
        self.codes, self.leaf, self.item, self.code, self.first = codes, leaf, item, code, first
        self.size, self.depth = codes.shape
        self.sizes = level_sizes(sizes, self.depth)
        fan_out = [int((one[1:] - one[:-1]).max()) for one in first]
        self._slots = [torch.arange(width, device=codes.device, dtype=torch.int32) for width in fan_out]
        self._spans = [one.unfold(0, 2, 1) for one in first]  # a view: a node's first child and the next node's
        shallow = [depth for depth, size in enumerate(self.sizes) if depth == 0 or self._narrow(depth, size)]
        self._codes = {depth: torch.arange(self.sizes[depth], device=codes.device) for depth in shallow}
        self._dense = {depth: self._table(depth) for depth in shallow}

    @classmethod
    def build(cls, codes: np.ndarray, sizes: Sizes) -> "CatalogueIndex":
        """Index SIDs given as [items, levels] integers; item i keeps the number i.

        Raises:
            InputError: no item, a code that its level does not have, or two items with one SID.
        """
        _check(codes, sizes)
        return cls._from_order(codes, np.argsort(pack(codes, sizes)), sizes)

    def extended(self, codes: np.ndarray) -> "CatalogueIndex":
        """The index with new items, numbered after the present ones; the present order is merged, not sorted again.

        Raises:
            InputError: as `build`; a new SID that is taken counts as two items with one SID.
        """
        if not len(codes):
            return self
        _check(codes, self.sizes)
        mine = self.item.cpu().numpy()
        old, new = pack(self.codes.cpu().numpy(), self.sizes), pack(codes, self.sizes)
        order = np.argsort(new)
        place = np.searchsorted(old[mine], new[order])
        merged = np.insert(mine.astype(np.int64), place, self.size + order)
        both = np.concatenate([self.codes.cpu().numpy(), codes])
        return self._from_order(both, merged, self.sizes).to(self.codes.device)

    @classmethod
    def _from_order(cls, codes: np.ndarray, order: np.ndarray, sizes: Sizes) -> "CatalogueIndex":
        small = np.uint8 if max(level_sizes(sizes, codes.shape[1])) <= 256 else np.int32
        codes = np.ascontiguousarray(codes, dtype=small)
        code, first = _trie(codes[order])
        leaf = np.empty(len(order), np.int32)
        leaf[order] = np.arange(len(order), dtype=np.int32)
        flat = [torch.from_numpy(one) for one in (codes, leaf, order.astype(np.int32))]
        return cls(flat[0], flat[1], flat[2], _tensors(code), _tensors(first), sizes)

    def save(self, path: Path) -> None:
        """Write the arrays as one safetensors file."""
        arrays = {"codes": self.codes, "leaf": self.leaf, "item": self.item}
        for depth in range(self.depth):
            arrays |= {f"code.{depth}": self.code[depth], f"first.{depth}": self.first[depth]}
        with replacing(path) as temporary:
            save_file({name: one.contiguous().cpu() for name, one in arrays.items()}, temporary)

    @classmethod
    def load(cls, path: Path, sizes: Sizes) -> "CatalogueIndex":
        """Map a saved index into memory: pages are read as they are first used.

        Raises:
            BundleError: the file is not a saved index.
        """
        try:
            arrays = load_file(path)
            depth = arrays["codes"].shape[1]
            code, first = ([arrays[f"{name}.{d}"] for d in range(depth)] for name in ("code", "first"))
            return cls(arrays["codes"], arrays["leaf"], arrays["item"], code, first, sizes)
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise BundleError(f"{path} is not a saved catalogue index ({error}); build it again.") from None

    def to(self, device: torch.device | str) -> "CatalogueIndex":
        """The same index on another device."""
        codes, leaf, item = (one.to(device) for one in (self.codes, self.leaf, self.item))
        code, first = ([one.to(device) for one in array] for array in (self.code, self.first))
        return CatalogueIndex(codes, leaf, item, code, first, self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        dense = [one for pair in self._dense.values() for one in pair]
        return sum(one.nbytes for one in (self.codes, self.leaf, self.item, *self.code, *self.first, *dense))

    def nodes(self, depth: int) -> int:
        """Number of distinct prefixes of `depth` codes."""
        return len(self.code[depth - 1]) if depth else 1

    def _narrow(self, depth: int, size: int) -> bool:
        return size <= WIDE and self.nodes(depth) * size <= DENSE

    def _table(self, depth: int) -> tuple[Tensor, Tensor]:
        """Of a depth: [nodes, K] int32 children, 0 where there is none, and bool whether there is none."""
        first, code = self.first[depth], self.code[depth].long()
        node = torch.repeat_interleave(torch.arange(self.nodes(depth), device=code.device), first[1:] - first[:-1])
        child = torch.zeros(self.nodes(depth), self.sizes[depth], dtype=torch.int32, device=code.device)
        child[node, code] = torch.arange(len(code), dtype=torch.int32, device=code.device)
        missing = torch.ones_like(child, dtype=torch.bool)
        missing[node, code] = False
        return child, missing

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes that continue prefixes, and the nodes they lead to.

        Args:
            nodes: [...] node numbers at `depth`.

        Returns:
            codes [..., W] int64 and child [..., W] int32, the codes in rising order and the node each leads to at
            depth + 1, W the most children of any node of this depth; missing: [..., W] bool, True where a node has
            fewer.
        """
        first, end = F.embedding(nodes, self._spans[depth]).split(1, dim=-1)
        child = first + self._slots[depth]
        missing = child >= end
        child.clamp_(max=len(self.code[depth]) - 1)
        codes = self.code[depth].index_select(0, child.flatten()).view(child.shape)
        return codes.long(), child, missing

    def constrain(self, depth: int, nodes: Tensor, logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the continuations that exist; the only work that the constraint adds to a search.

        Few and plain steps, because here it is their number that costs.

        Args:
            nodes: [batch, n] at `depth`; logp: [batch, n, K] of all codes, or [batch, 1, K] where they are the same for
                all nodes; may be changed.

        Returns:
            logp [batch, n, W], -inf where there is no such child; codes and child as from `children`. Shallow depths
            have all codes, W = K.
        """
        if depth == 0:  # one row, everybody's
            child, missing = self._dense[0]
            if self.nodes(1) < self.sizes[0]:
                logp.masked_fill_(missing, -torch.inf)
            return logp, self._codes[0].expand_as(logp), child.expand_as(logp)
        if depth in self._dense and logp.shape[1] == nodes.shape[1]:
            child, missing = (F.embedding(nodes, table) for table in self._dense[depth])
            return logp.masked_fill_(missing, -torch.inf), self._codes[depth].expand_as(logp), child
        codes, child, missing = self.children(depth, nodes)
        return logp.expand(-1, nodes.shape[1], -1).gather(-1, codes).masked_fill_(missing, -torch.inf), codes, child

    def ancestors(self, depth: int, leaves: np.ndarray) -> np.ndarray:
        """The node at `depth` above each leaf."""
        nodes = leaves
        for level in range(self.depth - 1, depth - 1, -1):
            nodes = np.searchsorted(self.first[level].cpu().numpy(), nodes, side="right") - 1
        return nodes

    def leaf_count(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """How many items lie below each node at `depth`."""
        start, end = nodes, nodes + 1
        for level in range(depth, self.depth):
            first = self.first[level].cpu().numpy()
            start, end = first[start], first[end]
        return end - start


def pack(codes: np.ndarray, sizes: Sizes) -> np.ndarray:
    """[items] int64 keys in the SIDs' lexicographic order.

    Raises:
        InputError: levels and codebook do not fit in 63 bits.
    """
    bits = [max(1, int(size - 1).bit_length()) for size in level_sizes(sizes, codes.shape[1])]
    if sum(bits) > 63:
        raise InputError(f"{codes.shape[1]} levels of {sizes} codes do not fit an index key of 63 bits.")
    key = np.zeros(len(codes), np.int64)
    for column, wide in enumerate(bits):
        key <<= wide
        key |= codes[:, column]
    return key


def _tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(one) for one in arrays]


def _check(codes: np.ndarray, sizes: Sizes) -> None:
    if codes.ndim != 2 or 0 in codes.shape:
        raise InputError("a catalogue index needs at least one item with at least one code; check the SIDs table.")
    limits = np.array(level_sizes(sizes, codes.shape[1]))
    wrong = ((codes < 0) | (codes >= limits)).any(0)
    if wrong.any():
        level = int(wrong.argmax())
        low, high = codes[:, level].min(), codes[:, level].max()
        bad = low if low < 0 else high
        raise InputError(f"code {level} of a SID must lie in 0..{limits[level] - 1}, found {bad}.")


def _trie(ordered: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Codes and first children of each depth, from SIDs [items, levels] in lexicographic order."""
    size, depth = ordered.shape
    opens = np.zeros(size, dtype=bool)  # is this leaf the first below its node?
    opens[0] = True
    parents = np.zeros(1, np.int64)  # first leaf of each node one depth up
    code, first = [], []
    for column in range(depth):
        opens[1:] |= ordered[1:, column] != ordered[:-1, column]
        starts = np.flatnonzero(opens)
        code.append(ordered[starts, column])
        first.append(np.append(np.searchsorted(starts, parents), len(starts)).astype(np.int32))
        parents = starts
    if len(parents) < size:
        sid = "_".join(map(str, ordered[int(np.flatnonzero(~opens)[0])]))
        raise InputError(f"{size - len(parents)} SIDs belong to two items, {sid} among them; resolve collisions first.")
    return code, first
