"""The one way to a model: look the ledger up, ask for what is missing in batches, record each batch as it finishes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from tessera.catalog.ledger import Entry, Ledger
from tessera.enrichment.providers.base import Failure

WAIT_S = 0.5
"""Seconds between two looks at what other workers hold."""


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

    Several workers may do so at once: each asks about what no other one asks about just then, and waits at the end for
    what others hold. What a killed one held, another asks about.

    Args:
        answer: payloads or failures for a batch of item ids, aligned with it. What it raises passes through; the
        batches before it are recorded by then.
    """
    key = (maker.kind, maker.provider, maker.model, maker.prompt_version)
    entries = ledger.lookup(*key, hashes)
    calls, failures = 0, list[Failure]()
    pending = [item_id for item_id in hashes if item_id not in entries]
    with tqdm(total=len(hashes), initial=len(entries), desc=maker.kind, unit="item", disable=not pending) as progress:
        while pending:
            elsewhere: list[str] = []
            for start in range(0, len(pending), batch_size):
                batch = pending[start : start + batch_size]
                with ledger.claimed(*key, {i: hashes[i] for i in batch}) as mine:
                    found = ledger.lookup(*key, {i: hashes[i] for i in mine})
                    asked = [i for i in mine if i not in found]
                    outcomes = dict(zip(asked, answer(asked) if asked else [], strict=True))
                    made = {i: maker.entry(i, hashes[i], outcome) for i, outcome in outcomes.items()}
                    ledger.record(made.values())
                entries |= found | made
                calls += len(asked)
                failures += [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
                elsewhere += [i for i in batch if i not in set(mine)]
                progress.update(len(mine))
            if len(elsewhere) == len(pending):
                progress.set_postfix_str("another worker asks about the rest")
                time.sleep(WAIT_S)
            pending = elsewhere
    unsent = sum(not failure.sent for failure in failures)
    return Done(entries, calls - unsent, len(hashes) - calls, len(failures))
