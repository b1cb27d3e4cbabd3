"""Who made which version the champion, when, why and with what outcome: kept on the version itself."""

import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from serving.aliases import POLICY
from serving.registry import Registry, Version
from serving.tracking import speaking_of

TAG = "moves"
TIME = "%Y-%m-%dT%H:%M:%SZ"
LONGEST = 4500
"""Characters of the tag, of the 5000 that MLflow keeps; the oldest entries go first."""


@dataclass(frozen=True)
class Entry:
    """One try to make a version the champion."""

    when: str
    """UTC, as 2026-11-03T12:00:00Z."""
    outcome: str
    """promoted, rolled back, failed, again champion, or refreshed."""
    who: str
    why: str
    detail: str
    """What was seen, in a sentence."""


def record(registry: Registry, number: str, outcome: str, who: str, why: str, detail: str = "") -> None:
    """Add an entry to a policy version's journal.

    Raises:
        ServiceError: the registry does not answer.
    """
    now = datetime.now(timezone.utc).strftime(TIME)
    entry = Entry(now, outcome, (who or whoami())[:100], why[:500], detail[:500])
    with speaking_of(registry.url):
        kept = [*entries(registry.client.get_model_version(POLICY, number).tags), entry]
        while len(text := json.dumps([asdict(one) for one in kept])) > LONGEST:
            kept = kept[1:]
        registry.client.set_model_version_tag(POLICY, number, TAG, text)


def entries(tags: Mapping[str, str]) -> list[Entry]:
    """The journal in a version's tags, the oldest first; one that cannot be read counts as empty."""
    try:
        return [Entry(**one) for one in json.loads(tags.get(TAG, "[]"))]
    except (ValueError, TypeError):
        return []


def history(versions: list[Version]) -> list[tuple[Version, Entry]]:
    """All entries of all versions in order of time."""
    return sorted(((one, entry) for one in versions for entry in entries(one.tags)), key=lambda pair: pair[1].when)


def whoami() -> str:
    """The user of this process; a container may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
