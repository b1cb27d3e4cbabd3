"""From histories of item ids to recommended item ids: the one engine behind evaluation, notebooks and serving."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from tessera.decoding.filters import ItemFilter
from tessera.decoding.forward import Decoder, FusedDecoder, Prompts, decoder_of
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.prefixes import PrefixCache
from tessera.decoding.search import CodeHead, Found, beam_search, columns
from tessera.errors import InputError
from tessera.policy.backbone import Backbone
from tessera.policy.bundle import load_policy
from tessera.policy.data import prompts
from tessera.schema import Sizes, codes_of

BEAMS = 20
Ids = Sequence[str]


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    score: log p(SID | history), of hybrid SIDs log p(own token | history), or what `diversity` makes of it.
    """

    item_id: str
    sid: str
    score: float


@dataclass
class Statistics:
    """What a recommender has done since it was made; invalid counts answers that are no item, which is always 0."""

    requests: int = 0
    decodes: int = 0
    decode_s: float = 0.0
    beams: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    invalid: int = 0


class Recommender:
    """A policy over a catalogue.

    Args:
        sids: table of schema "sids"; its row order numbers the items.
        index: of these SIDs, if it is at hand already.
        prefix_cache_mb: memory for prompts of recent users, so that a longer history costs its new items only; 0: none.

    Raises:
        InputError: no item, an item or a SID twice, or codes that the policy does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        sids: pa.Table,
        codebook_size: Sizes,
        max_history: int,
        policy_version: str = "",
        tokenizer_version: str = "",
        index: CatalogueIndex | None = None,
        prefix_cache_mb: int = 0,
    ) -> None:
        self.backbone, self.max_history = backbone, max_history
        self.policy_version, self.tokenizer_version = policy_version, tokenizer_version
        self.item_ids: list[str] = sids["item_id"].to_pylist()
        self.sids: list[str] = sids["sid"].to_pylist()
        device = backbone.model.device
        self.index = index or CatalogueIndex.build(codes_of(sids, len(backbone.sid_tokens)), codebook_size)
        self.index = self.index.to(device)
        self.codes = self.index.codes.numpy(force=True)
        self._row = {item: row for row, item in enumerate(self.item_ids)}
        if len(self._row) != len(self.item_ids):
            raise InputError("the SIDs table names an item twice; write it again from the tokenizer bundle.")
        self.statistics = Statistics()
        self._decoder, self._head = decoder_of(backbone.model), CodeHead.of(backbone)
        self._tokens = backbone.sid_tokens.numpy(force=True)
        self._prefixes = PrefixCache(prefix_cache_mb << 20)
        self._counting = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, sids: str | Path | None = None, prefix_cache_mb: int = 0) -> "Recommender":
        """From a policy bundle, optionally over a newer SIDs table of the same tokenizer; on a GPU if there is one.

        Raises:
            BundleError: a damaged bundle, or SIDs of another tokenizer.
            InputError: SIDs that cannot be indexed.
        """
        policy = load_policy(Path(folder), Path(sids) if sids is not None else None)
        torch.nn.Module.to(policy.backbone.model, "cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            policy.backbone,
            policy.sids,
            policy.codebook_size,
            policy.max_history,
            policy.manifest.version,
            policy.tokenizer_version,
            policy.index,
            prefix_cache_mb,
        )

    def recommend(
        self,
        histories: Sequence[Ids],
        k: int = 10,
        exclude: Sequence[Ids] | None = None,
        allow: Sequence[Ids | None] | None = None,
        exclude_history: bool = True,
        beams: int = BEAMS,
        diversity: float | Sequence[float] = 0.0,
    ) -> list[list[Recommendation]]:
        """The k best items for each history.

        Unknown ids in a history or a list are passed over; an allow-list of None (or no list at all) allows everything.
        Fewer than k come out where fewer items pass the lists.

        Args:
            diversity: 0 ranks by probability alone, at 1 every SID prefix that the search found gives its best item
                first, and anything between is between (tessera.decoding.fusion); one for all histories, or one each.

        Raises:
            InputError: k outside 1..catalogue, an empty history, one of unknown items only, lists of another length
                than the histories, or a diversity outside 0..1.
        """
        self._check_k(k)
        for name, lists in (("exclude", exclude), ("allow", allow)):
            if lists is not None and len(lists) != len(histories):
                raise InputError(f"{len(histories)} histories came with {len(lists)} {name}-lists; give one for each.")
        if not histories:
            return []
        known = [self.known_rows(history) for history in histories]
        for given, rows in zip(histories, known, strict=True):
            if not len(rows):
                raise InputError(_no_history(given))
        gone = [self.known_rows(one) for one in exclude] if exclude is not None else [_NO_ROWS] * len(known)
        if exclude_history:
            gone = [np.concatenate(pair) for pair in zip(gone, known, strict=True)]
        gone = [np.unique(one) for one in gone]
        only = [
            np.setdiff1d(self.known_rows(one), out) if one is not None else None
            for one, out in zip(allow if allow is not None else [None] * len(known), gone, strict=True)
        ]
        found = self.rank(known, k, beams, ItemFilter.build(self.index, gone, only), diversity)
        answers = zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        return [
            [Recommendation(self.item_ids[r], self.sids[r], s) for r, s in zip(rows, scores, strict=True) if r >= 0]
            for rows, scores in answers
        ]

    def rank(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        beams: int,
        keep: ItemFilter | None = None,
        diversity: float | Sequence[float] = 0.0,
    ) -> Found:
        """The same over item numbers, in one batch; histories may be empty and then get the policy's prior."""
        started = time.perf_counter()
        dial = _dial(diversity, len(histories))
        model, (decoder, head) = self.backbone.model, self.engine()
        width = max(k, beams)
        recent = [history[-self.max_history :] for history in histories]
        tokens, mask = prompts(recent, self.codes, self._tokens, self.backbone.bos)
        reuse = self._prefixes.budget > 0 and isinstance(decoder, FusedDecoder)
        entries = self._prefixes.find(recent) if reuse else [None] * len(recent)
        length = mask.sum(1)
        known = torch.tensor([one.tokens if one else 0 for one in entries]).minimum(length - 1)
        asked = Prompts(*(one.to(model.device) for one in (tokens, length, known)))
        cache: Any = decoder.cache(len(recent), columns(asked, self.index, width))
        if reuse:
            self._prefixes.restore(entries, known, length, tokens.shape[1], cache)
        found = beam_search(
            decoder, head, self.index, asked,
            k=k, beams=beams, keep=keep, cache=cache, diversity=dial.to(model.device) if dial is not None else None,
        )
        if reuse:
            self._prefixes.store(recent, length, tokens.shape[1], cache)
        hits = sum(one is not None for one in entries)
        self._count(len(recent), width, hits, len(recent) - hits if reuse else 0, time.perf_counter() - started)
        return found

    def engine(self) -> tuple[Decoder, CodeHead]:
        """The decoder and the output layer, of the model's weights as they are now."""
        model = self.backbone.model
        if not self._decoder.serves(model):
            self._decoder, self._head = decoder_of(model), CodeHead.of(self.backbone)
        return self._decoder, self._head

    def _count(self, requests: int, width: int, hits: int, misses: int, seconds: float) -> None:
        stats = self.statistics
        with self._counting:
            stats.requests += requests
            stats.decodes += 1
            stats.beams += requests * width
            stats.prefix_hits += hits
            stats.prefix_misses += misses
            stats.decode_s += seconds

    def rank_all(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        beams: int,
        batch_size: int,
        progress: str = "",
        diversity: float = 0.0,
    ) -> np.ndarray:
        """`rank` in batches of similar length, without filters: [users, k] item numbers, -1 where fewer exist."""
        out = np.full((len(histories), k), -1, dtype=np.int64)
        order = np.argsort([-min(len(h), self.max_history) for h in histories], kind="stable")
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc=progress, unit="batch", disable=not progress):
            chosen = order[start : start + batch_size]
            rows = self.rank([histories[i] for i in chosen], k, beams, diversity=diversity).rows.cpu().numpy()
            out[chosen, : rows.shape[1]] = rows
        return out

    def known_rows(self, ids: Ids) -> np.ndarray:
        """Numbers of the ids that the catalogue knows, in the order given."""
        return np.array([self._row[i] for i in ids if i in self._row], dtype=np.int64)

    def _check_k(self, k: int) -> None:
        size = len(self.item_ids)
        if not 1 <= k <= size:
            raise InputError(f"k is {k}; ask for at least 1 and at most {size} items, the catalogue's size.")


def _dial(diversity: float | Sequence[float], batch: int) -> Tensor | None:
    """[batch] float32, None where it is 0 for all."""
    dial = torch.as_tensor(diversity, dtype=torch.float32)
    if dial.ndim and len(dial) != batch:
        raise InputError(f"{batch} histories came with {len(dial)} values of diversity; give one, or one for each.")
    if not ((dial >= 0) & (dial <= 1)).all():
        raise InputError("diversity must lie between 0 (the most probable items) and 1 (the most varied).")
    return dial.expand(batch) if dial.any() else None


_NO_ROWS = np.empty(0, dtype=np.int64)


def _no_history(given: Ids) -> str:
    if not given:
        return "the history is empty; give at least one item id that the user has bought."
    few = ", ".join(repr(i) for i in list(given)[:3])
    return f"none of the history's {len(given)} items ({few}) is in the catalogue; check the ids."
