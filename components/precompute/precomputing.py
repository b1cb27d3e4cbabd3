"""Every user's answer decoded ahead, for the moments when the server has none.

Semantic Convergence (arXiv 2412.13771) keeps answers per user in this way.
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from components.promote.moves import put_in_place
from feature_repo import lookup, publish
from feature_repo.store import open_store
from serving.model_repository import newest
from tessera.config import PlatformSettings
from tessera.decoding.recommender import BEAMS, Recommendation, Recommender
from tessera.enrichment.shards import in_shard
from tessera.errors import InputError

EMBEDDED = PlatformSettings()


def precompute(
    home: Path,
    platform: PlatformSettings = EMBEDDED,
    *,
    everyone: bool = False,
    renew: bool = False,
    shard: str = "",
    k: int = BEAMS,
    batch_size: int = 64,
    chunk: int = 4096,
) -> dict[str, Any]:
    """Decode users with the champion, from the histories that Feast has now, and publish their lists.

    Lists are published a chunk of users at a time, so a run that was killed goes on with the chunk in which it was.

    Args:
        everyone: also users whose list is of this policy and of their present history.
        renew: only where lists are in use: on a platform that has none, nobody is decoded.
        shard: only users of a part, as "0/4" (tessera.enrichment.shards.in_shard).
        k: items a list, without what the user has bought; up to 20 a list is what the server would answer.
        batch_size: users decoded together.
        chunk: users published together.

    Returns:
        `users`, of whom `decoded` have a new list, `fresh` had a good one and `unknown` have bought nothing that the
        policy knows; `policy_version`, `seconds`.

    Raises:
        InputError: numbers below 1, no such shard, nothing promoted yet, or another policy was promoted meanwhile.
        ServiceError: the feature store does not answer.
    """
    started = time.monotonic()
    if min(k, batch_size, chunk) < 1:
        raise InputError("k, the batch size and the chunk must be at least 1.")
    recommender = _served(home, platform)
    store = open_store(home)
    ids = [] if renew and not publish.has_topk(home) else publish.users(home)
    if shard:
        ids = [user for user in ids if in_shard(user, shard)]
    version, k = recommender.policy_version, min(k, len(recommender.item_ids))
    counts = {"users": len(ids), "decoded": 0, "fresh": 0, "unknown": 0}
    with tqdm(total=len(ids), desc="precompute", unit="user", mininterval=0.5) as bar:
        for start in range(0, len(ids), chunk):
            moment = publish.moment(home)  # before the histories are read: a purchase after it makes the list stale
            users = lookup.users(store, ids[start : start + chunk])
            pending = [user for user in users if everyone or _outdated(user, version)]
            known = [user for user in pending if len(recommender.known_rows(user.history))]
            counts["fresh"] += len(users) - len(pending)
            counts["unknown"] += len(pending) - len(known)
            bar.update(len(users) - len(known))
            lists = dict(_decode(recommender, known, k, batch_size, bar.update))
            if lists:
                publish.publish_topk(home, _table(lists, recommender, moment), partial=True)
            counts["decoded"] += len(lists)
    return counts | {"policy_version": version, "seconds": round(time.monotonic() - started, 1)}


def _served(home: Path, platform: PlatformSettings) -> Recommender:
    """The champion as Triton has it: the newest release, once a move that died is settled."""
    put_in_place(home, platform)
    release = newest(home / "triton" / "models")
    return Recommender.load(release.policy, release.sids)


def _outdated(user: lookup.User, policy_version: str) -> bool:
    return user.top_k is None or user.top_k.stale or user.top_k.policy_version != policy_version


def _decode(
    recommender: Recommender, users: list[lookup.User], k: int, batch_size: int, done: Callable[[int], Any]
) -> Iterator[tuple[str, list[Recommendation]]]:
    """Lists by user id, bought items left out as serving does; a user who has bought everything gets none."""
    ordered = sorted(users, key=lambda user: len(user.history))  # histories of one length pad little
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        answers = recommender.recommend([user.history for user in batch], k)
        yield from ((user.user_id, found) for user, found in zip(batch, answers, strict=True) if found)
        done(len(batch))


def _table(lists: dict[str, list[Recommendation]], recommender: Recommender, moment: datetime) -> pa.Table:
    rows = list(lists.values())
    return pa.table({
        "user_id": list(lists),
        "item_ids": [[one.item_id for one in row] for row in rows],
        "sids": [[one.sid for one in row] for row in rows],
        "scores": pa.array([[one.score for one in row] for row in rows], pa.list_(pa.float32())),
        "policy_version": [recommender.policy_version] * len(rows),
        "tokenizer_version": [recommender.tokenizer_version] * len(rows),
        "computed_at": [moment] * len(rows),
    })  # fmt: skip
