"""The enrichment ledger: what a model said about an item, so that no model is asked the same thing twice.

An entry is keyed by (item, content hash, kind, provider, model, prompt version): change any of them and the model is
asked again; change none and it is not. Failures are entries too, with their reason, and are there to be retried.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Engine, select

from tessera.catalog.claims import claimed
from tessera.catalog.database import migrate
from tessera.catalog.engine import open_engine, reading, upsert, writing
from tessera.catalog.tables import ENRICHMENTS

_COLUMNS = [column for column in ENRICHMENTS.columns if column.name != "recorded_at"]
_CHUNK = 500  # item ids a query, below the parameter limits of both databases


@dataclass(frozen=True)
class Entry:
    """One answer, or one failure.

    `payload` is the provider's parsed answer as JSON, or an embedding as little-endian float32; a failed entry has a
    `reason` instead.
    """

    item_id: str
    content_hash: str
    kind: str
    provider: str
    model: str
    prompt_version: str
    status: Literal["ok", "failed"]
    payload: bytes | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.status not in ("ok", "failed"):
            raise ValueError(f"an entry's status is 'ok' or 'failed', not {self.status!r}")
        if self.status == "ok" and self.payload is None:
            raise ValueError(f"entry of {self.item_id} is 'ok' without a payload")
        if self.status == "failed" and not self.reason:
            raise ValueError(f"entry of {self.item_id} is 'failed' without a reason")

    @property
    def key(self) -> tuple[str, ...]:
        """What the ledger knows the entry by."""
        return (self.kind, self.provider, self.model, self.prompt_version, self.item_id, self.content_hash)


class Ledger:
    """The ledger in the catalogue's database (or any other SQLite or PostgreSQL); opening it migrates the database."""

    def __init__(self, url: str | Engine) -> None:
        self.engine = open_engine(url)
        migrate(self.engine)

    def lookup(
        self, kind: str, provider: str, model: str, prompt_version: str, hashes: Mapping[str, str]
    ) -> dict[str, Entry]:
        """The answers already paid for: item id -> entry with status "ok", for `hashes` (item id -> content hash).

        An item that is absent from the result is to be asked, whether it is new, changed, or failed before.
        """
        found = self._entries(kind, provider, model, prompt_version, hashes)
        return {entry.item_id: entry for entry in found if entry.status == "ok"}

    def failures(
        self, kind: str, provider: str, model: str, prompt_version: str, hashes: Mapping[str, str]
    ) -> dict[str, Entry]:
        """Like `lookup`, for the items whose last try failed; each entry says why."""
        found = self._entries(kind, provider, model, prompt_version, hashes)
        return {entry.item_id: entry for entry in found if entry.status == "failed"}

    def claimed(
        self, kind: str, provider: str, model: str, prompt_version: str, hashes: Mapping[str, str]
    ) -> AbstractContextManager[list[str]]:
        """Within, no other worker asks about the items it yields; those of `hashes` that others hold are left out.

        Look up what it yields before you ask: another worker may have recorded it since. Record within. A worker that
        dies loses its claims.
        """
        return claimed(self.engine, {i: (kind, provider, model, prompt_version, i, hashes[i]) for i in hashes})

    def record(self, entries: Iterable[Entry]) -> None:
        """Write a batch in one transaction: all of it or none, as often as you like.

        The last write of a key wins, except that a failure never replaces an answer.
        """
        latest: dict[tuple[str, ...], Entry] = {}
        for entry in entries:
            held = latest.get(entry.key)
            if entry.status == "ok" or held is None or held.status != "ok":
                latest[entry.key] = entry
        if latest:
            # In the order of the key, so that two writers lock rows in the same order.
            rows = [asdict(latest[key]) for key in sorted(latest)]
            with writing(self.engine) as connection:
                upsert(connection, ENRICHMENTS, [rows], keep_ok=True)

    def _entries(
        self, kind: str, provider: str, model: str, prompt_version: str, hashes: Mapping[str, str]
    ) -> Iterator[Entry]:
        table, ids = ENRICHMENTS.c, list(hashes)
        wanted = select(*_COLUMNS).where(
            table.kind == kind, table.provider == provider, table.model == model, table.prompt_version == prompt_version
        )
        rows: list[Any] = []
        with reading(self.engine) as connection:
            for start in range(0, len(ids), _CHUNK):
                rows += connection.execute(wanted.where(table.item_id.in_(ids[start : start + _CHUNK]))).all()
        for row in rows:
            if hashes[row.item_id] == row.content_hash:
                yield Entry(**row._mapping)
