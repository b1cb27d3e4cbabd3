"""Publish a run's tables to Feast: offline files first, then the definitions, then the online store.

An offline file is a log: a publish appends only the rows that changed, under a later event timestamp, so that point in
time joins see what was served then, and a rollback is one more publish. Keys that are gone get tombstones, rows with
empty features, because online stores cannot be asked to forget. `published/` holds what the last publish said, without
what was pushed since, so that a repeat of a publish does not take pushed purchases back.
"""

import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import clock, offline, topk, writer
from feature_repo.store import State, feast_folder, in_place, open_store, publishing, read_state, write_state
from feature_repo.tables import VIEWS, conform_view, snapshot
from tessera.errors import InputError


def run(
    home: Path,
    items: Path,
    captions: Path,
    intents: Path,
    quality: Path,
    sids: Path,
    splits: Path,
    policy_version: str | None = None,
) -> dict[str, Any]:
    """Publish the tables of one run; the same call with an older run's tables is the rollback.

    Top-K lists computed with another tokenizer are withdrawn, because they name SIDs that no longer resolve; those of
    this tokenizer come back. Lists of another policy, or of users whose history changes, are marked stale.

    Args:
        policy_version: the policy that serves with these tables; None keeps what was said before.

    Returns:
        `changed`, `tokenizer_version`, `rows` and `tombstones` per view, `seconds`. A repeat has `changed` False.

    Raises:
        InputError: a table is missing or does not fit; nothing was changed then.
        ServiceError: a store does not answer; the same call later completes the publish.
    """
    started = time.monotonic()
    tables = snapshot(items, captions, intents, quality, sids, splits)
    version = tables["item_sid"]["tokenizer_version"][0].as_py()
    with publishing(home) as folder:
        state = writer.in_time(home, folder)
        policy = state.policy_version if policy_version is None else policy_version
        now = writer.later_than(state)
        before = {view: writer.written(folder, view, state) for view in VIEWS}
        changes = {view: offline.compare(before[view], table, version) for view, table in tables.items()}
        histories = writer.histories(folder, offline.stamped(changes["user_history"].rows, now))
        lists = topk.of_known_users(topk.newest(writer.log_of(folder, "user_topk"), version), histories)
        lists = topk.judged(lists, histories, policy)
        changes["user_topk"] = offline.compare(before["user_topk"], lists, version)
        after = replace(state, tokenizer_version=version, policy_version=policy)
        report = writer.write(home, folder, changes, after, now)
    return report | {"tokenizer_version": version, "seconds": round(time.monotonic() - started, 3)}


def withdraw(home: Path) -> None:
    """Take back all that was published, a publish that was interrupted included: nothing is served here any more.

    Raises:
        ServiceError: a store does not answer; the same call later completes it.
    """
    with publishing(home) as folder:
        state = writer.in_time(home, folder)
        views = {view: writer.written(folder, view, state) for view in VIEWS}
        if any(table.num_rows for table in views.values()):
            none = {view: offline.compare(table, table.schema.empty_table(), "") for view, table in views.items()}
            nobody = replace(state, tokenizer_version="", policy_version="")
            writer.write(home, folder, none, nobody, writer.later_than(state))


def publish_topk(home: Path, table: pa.Table, *, partial: bool = False) -> dict[str, Any]:
    """Publish precomputed recommendations.

    Args:
        table: columns user_id, item_ids, sids, scores, policy_version, tokenizer_version, computed_at (time stamp);
            `stale` follows from the histories and the policy that are published.
        partial: users that `table` lacks keep their lists; without it they lose theirs.

    Raises:
        InputError: a column is missing, a user occurs twice, lists of a row differ in length, or the lists are not of
            the tokenizer that is online or of the policy that serves, or were computed in the future.
        ServiceError: a store does not answer; the same call later completes the publish.
    """
    started = time.monotonic()
    table = conform_view("user_topk", topk.with_stale(table, pa.nulls(table.num_rows, pa.bool_())), "the top-K table")
    newest = pc.max(table["computed_at"]).as_py()
    if newest is not None and clock.ahead(newest.timestamp()):
        raise InputError(f"the top-K table was computed at {newest}, in the future; correct the clock, then repeat.")
    lengths = [pc.list_value_length(table[name]) for name in ("item_ids", "sids", "scores")]
    if any(not lengths[0].equals(other) for other in lengths[1:]):
        raise InputError("the top-K table has rows whose item_ids, sids and scores differ in length; compute it again.")
    with publishing(home) as folder:
        state = read_state(home)
        if not (state.tokenizer_version and in_place(home, state)):
            raise InputError(f"publish the items and SIDs of a run to {home} before top-K lists that name them.")
        _check_versions(table, state)
        before, version = writer.published(folder, "user_topk"), state.tokenizer_version
        lists = topk.judged(table, writer.histories(folder), state.policy_version)
        asked = pc.is_in(before["user_id"], value_set=lists["user_id"])
        others = before.filter(pc.invert(asked)) if partial else before.schema.empty_table()
        change = offline.compare(before.filter(asked) if partial else before, lists, version)
        change = replace(change, published=pa.concat_tables([others, change.published]))
        report = writer.write(home, folder, {"user_topk": change}, state, writer.later_than(state))
    return report | {"tokenizer_version": version, "seconds": round(time.monotonic() - started, 3)}


def _check_versions(table: pa.Table, state: State) -> None:
    for kind, online in (("tokenizer", state.tokenizer_version), ("policy", state.policy_version)):
        others = [other for other in table[f"{kind}_version"].unique().to_pylist() if online and other != online]
        if others:
            what = "the SIDs of {} are online" if kind == "tokenizer" else "policy {} serves"
            raise InputError(
                f"the top-K table was computed with {kind} {others[0]}, but {what.format(online)}; "
                "compute the table again, or publish that run first."
            )


def moment(home: Path) -> datetime:
    """The time to write on lists that are computed from histories read from now on.

    Every later change of a history has this time or a later one, every earlier change an earlier one.

    Raises:
        ServiceError: the time of the newest features is in the future.
    """
    with publishing(home):  # a push that is under way has its time already, and its history not yet written
        state = read_state(home)
        now = writer.later_than(state)
        if state.event_timestamp:  # something is published
            write_state(home, replace(state, event_timestamp=now))
    return datetime.fromtimestamp(now, timezone.utc)


def users(home: Path) -> list[str]:
    """All users with a published or pushed history, in order; those pushed only online are not known here.

    Raises:
        InputError: the offline files are damaged.
    """
    return topk.users(writer.histories(feast_folder(home)))


def has_topk(home: Path) -> bool:
    """Whether any user has a published list.

    Raises:
        InputError: the offline files are damaged.
    """
    return writer.published(feast_folder(home), "user_topk").num_rows > 0


def push_history(home: Path, user_id: str, item_ids: list[str]) -> list[str]:
    """Append new purchases to a user's history through Feast's push source, online and offline.

    The user's precomputed list is marked stale.

    Returns:
        The whole history, oldest first.

    Raises:
        InputError: no items, or an item without a published SID.
        ServiceError: nothing was published yet, a store does not answer or kept something else, or a clock is ahead.
    """
    from feature_repo.lookup import known_items
    from feature_repo.lookup import users as users_of

    if not user_id or not item_ids:
        raise InputError("a push needs a user id and at least one purchased item id.")
    with publishing(home) as folder:
        store = open_store(home)
        known = writer.asked(lambda: known_items(store, item_ids))
        unknown = [item_id for item_id in item_ids if item_id not in known]
        if unknown:
            raise InputError(f"item '{unknown[0]}' is not in the published catalogue; publish it before it is pushed.")
        (user,) = users_of(store, [user_id])
        history = [*user.history, *item_ids]
        writer.push(home, folder, store, pa.table({"user_id": [user_id], "item_ids": [history]}, VIEWS["user_history"]))
    return history
