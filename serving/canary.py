"""The canary: a version that the first replicas of Triton serve while the others serve the champion.

The registry is the one source of truth, so that no replica needs to be told: the alias `canary` names the version, and
its tags say which share of how many replicas follow it. Replica i of n does if (i + 1) / n <= share. One that was added
since (i >= n) serves the champion.
"""

from serving.aliases import POLICY
from serving.registry import Registry, Version
from serving.tracking import speaking_of

CANARY, CHAMPION = "canary", "champion"
SHARE, REPLICAS = "canary_share", "canary_replicas"


def assigned(registry: Registry, ordinal: int) -> Version | None:
    """What the replica of this number, from 0, should serve: canary or champion; None while there is neither.

    Raises:
        ServiceError: the registry does not answer.
    """
    named = registry.named(CANARY, CHAMPION)
    canary = named.get(CANARY)
    return canary if canary is not None and ordinal < followers(canary) else named.get(CHAMPION)


def followers(canary: Version) -> int:
    """How many replicas, the first ones, follow a canary; 0 where its tags do not say."""
    try:
        share, replicas = float(canary.tags[SHARE]), int(canary.tags[REPLICAS])
    except (KeyError, ValueError):
        return 0
    return int(share * replicas + 1e-9)


def announce(registry: Registry, version: Version) -> None:
    """Let the version be the canary, instead of any other, with nobody following yet.

    Raises:
        InputError: its tokenizer is not registered. ServiceError: the registry does not answer.
    """
    raise_to(registry, version, 0, 1)  # before the alias: an earlier try may have left a share
    registry.set_canary(version.version)


def raise_to(registry: Registry, version: Version, count: int, replicas: int) -> None:
    """Let the first `count` of `replicas` follow the version while it is the canary, which only `announce` makes it.

    Raises:
        ServiceError: the registry does not answer.
    """
    with speaking_of(registry.url):
        for name, value in ((REPLICAS, str(replicas)), (SHARE, str(count / replicas))):
            registry.client.set_model_version_tag(POLICY, version.version, name, value)
