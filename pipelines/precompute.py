"""Every user's recommendations decoded ahead, in shards of users that several workers take."""

from kfp import dsl

from components.precompute.component import precompute_users
from pipelines.steps import heavy


@dsl.pipeline(name="tessera-precompute", description="All users' recommendations into the feature store")
def precompute(
    shards: list,
    platform_settings: str = "{}",
    home: str = "/mnt/tessera/home",
    everyone: bool = False,
    k: int = 20,
) -> None:
    """Decode users whose list is missing or stale.

    Args:
        shards: parts of the users, as "0/2" and "1/2". Each publishes as it goes, so one that is repeated goes on.
        platform_settings: JSON of all settings.
        home: folder of the platform.
        everyone: decode also users whose list is up to date.
        k: items a list.
    """
    with dsl.ParallelFor(shards, name="users in shards") as shard:
        told = {"settings": platform_settings, "home": home}
        heavy(precompute_users(shard=shard, everyone=everyone, k=k, **told)).set_caching_options(False)
