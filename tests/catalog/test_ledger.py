import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from tessera.catalog.engine import reading
from tessera.catalog.ledger import Entry, Ledger
from tessera.catalog.tables import ENRICHMENTS

OK = Entry("a", "h1", "caption", "embedded", "m", "v1", "ok", b'{"x": 1}')
FAILED = replace(OK, status="failed", payload=None, reason="no JSON in the answer")


def find(ledger: Ledger, entry: Entry) -> Entry | None:
    """What the ledger holds under the key of `entry`."""
    request = (entry.kind, entry.provider, entry.model, entry.prompt_version, {entry.item_id: entry.content_hash})
    found = [*ledger.lookup(*request).values(), *ledger.failures(*request).values()]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return request.getfixturevalue("postgres")


@pytest.fixture
def ledger(url: str) -> Ledger:
    ledger = Ledger(url)
    with ledger.engine.begin() as connection:
        connection.execute(ENRICHMENTS.delete())
    return ledger


def test_ok_and_failed_are_found_apart(ledger: Ledger) -> None:
    ledger.record([OK, replace(FAILED, item_id="b")])
    request = ("caption", "embedded", "m", "v1", {"a": "h1", "b": "h1", "c": "h1"})
    assert ledger.lookup(*request) == {"a": OK}
    assert ledger.failures(*request) == {"b": replace(FAILED, item_id="b")}


def test_a_changed_item_is_not_found(ledger: Ledger) -> None:
    ledger.record([OK])
    assert ledger.lookup("caption", "embedded", "m", "v1", {"a": "h2"}) == {}


@pytest.mark.parametrize("field", ["item_id", "content_hash", "kind", "provider", "model", "prompt_version"])
def test_every_part_of_the_key_counts(ledger: Ledger, field: str) -> None:
    other = replace(OK, **{field: "other"}, payload=b"2")
    ledger.record([OK])
    assert find(ledger, other) is None
    ledger.record([other])
    assert find(ledger, OK) == OK
    assert find(ledger, other) == other


def test_ok_after_failed_replaces_and_failed_after_ok_does_not(ledger: Ledger) -> None:
    ledger.record([FAILED])
    ledger.record([OK])
    assert find(ledger, OK) == OK
    ledger.record([FAILED])
    assert find(ledger, OK) == OK


def test_more_items_than_one_query_takes(ledger: Ledger) -> None:
    entries = [replace(OK, item_id=f"i{n}", payload=os.urandom(1536)) for n in range(1203)]
    ledger.record(entries)
    found = ledger.lookup("caption", "embedded", "m", "v1", {entry.item_id: "h1" for entry in entries})
    assert found == {entry.item_id: entry for entry in entries}


def test_a_batch_with_one_bad_row_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(Exception, match=r"(?i)payload|bytes|adapt|type"):
        ledger.record([replace(OK, item_id="good"), replace(OK, item_id="zbad", payload=object())])  # type: ignore[arg-type]
    with reading(ledger.engine) as connection:
        assert connection.scalar(select(func.count()).select_from(ENRICHMENTS)) == 0


@pytest.mark.parametrize("change", [{"status": "maybe"}, {"payload": None}, {"status": "failed", "payload": None}])
def test_half_made_entries_are_refused(change: dict[str, str | None]) -> None:
    with pytest.raises(ValueError):
        replace(OK, **change)  # type: ignore[arg-type]


_STATUS = st.sampled_from(["ok", "failed"])
_KEY = (st.sampled_from("abc"), st.sampled_from(["h1", "h2"]), st.sampled_from(["caption", "intents"]))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    key, payload = [draw(part) for part in _KEY], draw(st.binary(max_size=4))
    if draw(_STATUS) == "ok":
        return Entry(*key, "p", "m", "v", "ok", payload)
    return Entry(*key, "p", "m", "v", "failed", reason=repr(payload))


def expected(batches: list[list[Entry]]) -> dict[tuple[str, ...], Entry]:
    """The rule, written the slow way: the last write wins, but a failure never replaces an answer."""
    held: dict[tuple[str, ...], Entry] = {}
    for entry in (entry for batch in batches for entry in batch):
        if entry.status == "ok" or entry.key not in held or held[entry.key].status == "failed":
            held[entry.key] = entry
    return held


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(entries(), max_size=8), max_size=5))
def test_any_sequence_of_writes_follows_the_rule_and_survives_reopening(batches: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        ledger = Ledger(url)
        for batch in batches:
            ledger.record(batch)
            ledger.record(batch)  # a repeat changes nothing
        ledger.engine.dispose()
        reopened, rule = Ledger(url), expected([b for batch in batches for b in (batch, batch)])
        for kind in ("caption", "intents"):
            for digest in ("h1", "h2"):
                request = (kind, "p", "m", "v", dict.fromkeys("abc", digest))
                of_rule = {e.item_id: e for e in rule.values() if e.kind == kind and e.content_hash == digest}
                assert {**reopened.lookup(*request), **reopened.failures(*request)} == of_rule
        reopened.engine.dispose()


KILLED = """
import sys
from tessera.catalog.ledger import Entry, Ledger
ledger = Ledger(sys.argv[1])
for batch in range(10_000):
    ledger.record([Entry(f"{batch}-{n}", "h", "caption", "p", "m", "v", "ok", b"x" * 5000) for n in range(20)])
    print(batch, flush=True)
"""


def test_a_killed_writer_loses_at_most_the_batch_in_flight(sqlite_url: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", KILLED, sqlite_url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(8)]
    time.sleep(0.005)
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    assert writer.wait() == -signal.SIGKILL
    ledger, batches = Ledger(sqlite_url), acknowledged[-1] + 2
    wanted = {f"{batch}-{n}": "h" for batch in range(batches) for n in range(20)}
    found = ledger.lookup("caption", "p", "m", "v", wanted)
    for batch in acknowledged:
        assert all(f"{batch}-{n}" in found for n in range(20))
    in_flight = [f"{batches - 1}-{n}" in found for n in range(20)]
    assert all(in_flight) or not any(in_flight)


def test_two_writers_wait_for_each_other(sqlite_url: str) -> None:
    code = KILLED.replace("10_000", "12").replace('f"{batch}-{n}"', 'f"{sys.argv[2]}-{batch}-{n}"')
    command = [sys.executable, "-c", code, sqlite_url]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in "xy"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    with reading(Ledger(sqlite_url).engine) as connection:
        assert connection.scalar(select(func.count()).select_from(ENRICHMENTS)) == 2 * 12 * 20
