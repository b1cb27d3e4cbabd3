"""Write what changed: to the logs offline first (and their tables), then online, and last the state that says so."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import clock, offline, offline_tables, topk
from feature_repo.store import State, connect, in_place, prepare_embedded, read_state, recipe, write_state
from feature_repo.tables import TIMESTAMP, UTC, VIEWS
from tessera.errors import ServiceError
from tessera.files import sha256_file

if TYPE_CHECKING:
    from feast import FeatureStore

T = TypeVar("T")
log = logging.getLogger(__name__)


def write(home: Path, folder: Path, changes: dict[str, offline.Change], after: State, now: int) -> dict[str, Any]:
    """Write changes of views to the logs and online.

    Args:
        after: the state to leave, its versions above all.
        now: event timestamp of the changed rows, in seconds since 1970.

    Returns:
        `changed`, and `rows` and `tombstones` per view.

    Raises:
        ServiceError: a store does not answer; the same call later completes the publish.
    """
    state = read_state(home)
    same_store = in_place(home, state)
    logs = {view: folder / f"offline/{view}.parquet" for view in changes}
    synced = {view: same_store and _synced(log, state) for view, log in logs.items()}
    report = {
        "changed": any(change.rows.num_rows for change in changes.values()) or not all(synced.values()),
        "rows": {view: change.rows.num_rows for view, change in changes.items()},
        "tombstones": {view: change.tombstones for view, change in changes.items()},
    }
    if not report["changed"]:
        if after != state:  # another policy over the same tables
            write_state(home, after)
        return report
    prepare_embedded(home)
    store = connect(home)
    check_clock(store)
    for view, change in changes.items():
        if change.rows.num_rows or not logs[view].is_file():
            offline.append(logs[view], offline.stamped(change.rows, now))
        if change.rows.num_rows or not synced[view]:  # a write that died may have left what another one said
            offline.write(folder / f"published/{view}.parquet", change.published)
    if offline_tables.in_database(store):
        for view, change in changes.items():
            rows = offline.stamped(change.rows, now) if synced[view] else log_of(folder, view)
            _to_table(store, view, rows, anew=not synced[view])
    if not same_store:
        from feature_repo.definitions import definitions

        asked(lambda: store.apply(definitions(offline_tables.in_database(store))))
    digests = {view: digest for view, digest in state.offline.items() if same_store and view not in changes}
    if state.recipe:  # from here on the online store is neither the old publish nor the new one
        version = "" if "item_sid" in changes else state.tokenizer_version
        write_state(home, replace(state, tokenizer_version=version, event_timestamp=now, offline=digests))
    for view, change in changes.items():
        rows = offline.stamped(change.rows, now) if synced[view] else offline.latest(log_of(folder, view))
        _to_online(store, view, rows, now)
    digests |= {view: sha256_file(log) for view, log in logs.items()}
    write_state(home, replace(after, recipe=recipe(home), event_timestamp=now, offline=digests))
    return report


def push(home: Path, folder: Path, store: "FeatureStore", rows: pa.Table) -> None:
    """Append users' new histories, mark their lists stale, and see that the histories are what readers get.

    Raises:
        ServiceError: a store does not answer or kept another history, or a clock is ahead.
    """
    from feature_repo.definitions import PUSH_SOURCE

    check_clock(store)
    state, lists = read_state(home), published(folder, "user_topk")
    fresh = pc.fill_null(pc.invert(lists["stale"]), False)
    mine = pc.and_(pc.is_in(lists["user_id"], value_set=rows["user_id"]), fresh)
    found = lists.filter(mine)
    marked = topk.with_stale(found, pa.array([True] * found.num_rows, pa.bool_()))
    newest = [_newest(folder, view, rows["user_id"]) for view in ("user_history", "user_topk")]
    # Later than these users' rows, but not than others': many pushes a second would run ahead of the clock.
    now, digests = max(not_before(state), *(stamp + 1 for stamp in newest)), dict(state.offline)
    for view, changed in (("user_history", rows), ("user_topk", marked)):
        log = folder / f"offline/{view}.parquet"
        whole = _synced(log, state)
        if changed.num_rows:
            offline.append(log, offline.stamped(changed, now))
            if whole and offline_tables.in_database(store):
                _to_table(store, view, offline.stamped(changed, now), anew=False)
        if whole:
            digests[view] = sha256_file(log)
    if marked.num_rows:
        rest = lists.filter(pc.invert(mine))
        offline.write(folder / "published/user_topk.parquet", pa.concat_tables([rest, marked]))
        frame = offline.stamped(marked, now).to_pandas()
        asked(lambda: store.write_to_online_store("user_topk", frame))
    asked(lambda: store.push(PUSH_SOURCE, offline.stamped(rows, now).to_pandas()))
    _read_back(store, rows)
    write_state(home, replace(state, event_timestamp=now, offline=digests))


def in_time(home: Path, folder: Path) -> State:
    """The state to publish after; times that a clock ahead of this one wrote are taken back first.

    Rows of the future get times of now in their old order, and the publish that follows fills all stores anew.
    """
    state, now = read_state(home), int(time.time())
    newest = max(offline.newest(folder / f"offline/{view}.parquet") for view in VIEWS)
    if not clock.ahead(max(newest, state.event_timestamp)):
        return state
    log.warning("a clock that was ahead wrote to %s; its rows get the time of now, all stores are filled anew", home)
    for view in VIEWS:
        path = folder / f"offline/{view}.parquet"
        if path.is_file():
            offline.write(path, offline.not_after(log_of(folder, view), now))
    # Those rows are in the second after `now`; with an earlier time they would pass for an interrupted write's.
    state = replace(state, recipe="", event_timestamp=now + 1, offline={})
    write_state(home, state)
    return state


def check_clock(store: "FeatureStore") -> None:
    """Refuse to write by a clock that is ahead of Redis's own.

    Raises:
        ServiceError: it is, or Redis does not answer.
    """
    online = store.config.online_store
    if online.type != "redis" or online.redis_type == "redis_cluster":
        return
    seconds, _ = asked(lambda: store._get_provider().online_store._get_client(online).time())
    if time.time() > seconds + clock.TOLERANCE_S:
        raise ServiceError(f"this machine's clock is {time.time() - seconds:.0f} s ahead of Redis's; correct it.")


def _read_back(store: "FeatureStore", rows: pa.Table) -> None:
    asked_for = [{"user_id": user} for user in rows["user_id"].to_pylist()]
    found = asked(lambda: store.get_online_features(["user_history:item_ids"], asked_for).to_dict())["item_ids"]
    for user, wanted, kept in zip(rows["user_id"].to_pylist(), rows["item_ids"].to_pylist(), found, strict=True):
        if kept != wanted:
            raise ServiceError(
                f"the online store keeps another history of user '{user}' than was pushed; find out who else writes "
                "to it, and publish the run again."
            )


def _newest(folder: Path, view: str, users: pa.ChunkedArray) -> int:
    """Seconds since 1970 of the newest row of any of `users`; 0 if there is none."""
    rows = log_of(folder, view)
    stamp = pc.max(rows.filter(pc.is_in(rows["user_id"], value_set=users))[TIMESTAMP]).as_py()
    return int(stamp.timestamp()) if stamp else 0


def published(folder: Path, view: str) -> pa.Table:
    """What the last publish said of a view."""
    return offline.read(folder / f"published/{view}.parquet", VIEWS[view])


def written(folder: Path, view: str, state: State) -> pa.Table:
    """What the last publish said of a view, and of keys that an interrupted write has touched since, what it wrote."""
    said, log = published(folder, view), log_of(folder, view)
    since = pa.scalar(datetime.fromtimestamp(state.event_timestamp, timezone.utc), UTC)
    torn = offline.latest(log.filter(pc.greater(log[TIMESTAMP], since))).select(said.column_names)
    others = said.filter(pc.invert(pc.is_in(said.column(0), value_set=torn.column(0))))
    return pa.concat_tables([others, torn])


def log_of(folder: Path, view: str) -> pa.Table:
    """All rows ever written of a view, with their event timestamps."""
    return offline.read(folder / f"offline/{view}.parquet", VIEWS[view].append(pa.field(TIMESTAMP, UTC)))


def histories(folder: Path, *changed: pa.Table) -> pa.Table:
    """The newest row of every user's history, and when it changed; `changed` are rows about to be written."""
    return offline.latest(pa.concat_tables([log_of(folder, "user_history"), *changed]))


def _to_table(store: "FeatureStore", view: str, rows: pa.Table, *, anew: bool) -> None:
    asked(lambda: offline_tables.put(store, view, rows, anew=anew))


def _to_online(store: "FeatureStore", view: str, rows: pa.Table, now: int) -> None:
    """Write rows in one transaction and note the interval in the registry, as `feast materialize` does.

    Feast's own materialize leaves the same rows but takes four times as long (measured with 12,000 items).
    """
    if rows.num_rows:
        frame = rows.combine_chunks().to_pandas()
        asked(lambda: store.write_to_online_store(view, frame))
    moment = datetime.fromtimestamp(now, timezone.utc)
    asked(lambda: store.registry.apply_materialization(store.get_feature_view(view), store.project, moment, moment))


def asked(call: Callable[[], T]) -> T:
    """The answer of a call to Feast; its failure becomes a ServiceError."""
    try:
        return call()
    except Exception as error:
        raise ServiceError(f"the feature store refused ({error}); check its databases and repeat.") from error


def later_than(state: State) -> int:
    """Event timestamp of the next rows: now, but later than any before. Raises as `not_before`."""
    return max(not_before(state), state.event_timestamp + 1)


def not_before(state: State) -> int:
    """Now, in seconds since 1970, but not before the newest rows.

    Raises:
        ServiceError: that would be in the future; this clock is behind, or the one that wrote before was ahead.
    """
    if clock.ahead(state.event_timestamp):
        when = datetime.fromtimestamp(state.event_timestamp, timezone.utc)
        raise ServiceError(
            f"the newest features are of {when:%Y-%m-%d %H:%M} UTC, in the future; correct this machine's clock "
            "or, if another one was ahead, publish the run again (`tessera promote champion`)."
        )
    return max(int(time.time()), state.event_timestamp)


def _synced(log: Path, state: State) -> bool:
    return log.is_file() and state.offline.get(log.stem) == sha256_file(log)
