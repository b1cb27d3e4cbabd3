"""The one way to a model: look the ledger up, ask for what is missing in batches, record each batch as it finishes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from tessera.catalog.ledger import Entry, Ledger
from tessera.enrichment.providers.base import Failure


@dataclass(frozen=True)
class Maker:
    """Who makes an enrichment: the part of the ledger's key that all items of a run share."""

    kind: str
    provider: str
    model: str
    prompt_version: str

    def entry(self, item_id: str, content_hash: str, outcome: bytes | Failure) -> Entry:
        """The ledger entry of one outcome."""
        key = (item_id, content_hash, self.kind, self.provider, self.model, self.prompt_version)
        if isinstance(outcome, Failure):
            return Entry(*key, status="failed", payload=None, reason=outcome.reason)
        return Entry(*key, status="ok", payload=outcome, reason=None)


@dataclass(frozen=True)
class Done:
    """Entries of all items, and how they came about; `calls` counts the items sent to a model in this run."""

    entries: dict[str, Entry]
    calls: int
    reused: int
    failed: int


def through_ledger(
    ledger: Ledger,
    maker: Maker,
    hashes: Mapping[str, str],
    answer: Callable[[Sequence[str]], Sequence[bytes | Failure]],
    batch_size: int,
) -> Done:
    """Answer every item of `hashes` (item id -> content hash), from the ledger where it can be.

    Args:
        answer: payloads or failures for a batch of item ids, aligned with it. What it raises passes through; the
        batches before it are recorded by then.
    """
    entries = ledger.lookup(maker.kind, maker.provider, maker.model, maker.prompt_version, hashes)
    reused, calls, failed = len(entries), 0, 0
    pending = [item_id for item_id in hashes if item_id not in entries]
    with tqdm(total=len(hashes), initial=reused, desc=maker.kind, unit="item", disable=not pending) as progress:
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            outcomes = answer(batch)
            made = [maker.entry(i, hashes[i], outcome) for i, outcome in zip(batch, outcomes, strict=True)]
            ledger.record(made)
            entries.update(zip(batch, made, strict=True))
            failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            failed += len(failures)
            calls += len(batch) - sum(not failure.sent for failure in failures)
            progress.update(len(batch))
    return Done(entries, calls, reused, failed)
