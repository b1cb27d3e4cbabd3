"""Users' histories to cached recommendations."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def precompute_users(
    home: str, stats: Output[Artifact], shard: str = "", everyone: bool = False, renew: bool = False, k: int = 20
) -> None:
    """Decode users ahead with the policy that serves, and publish their lists.

    Args:
        shard: only users of a part, as "0/4".
        everyone: also users whose list is up to date.
        renew: only where lists are in use.
        k: items a list.
    """
    from pathlib import Path

    from components.precompute.precomputing import precompute
    from components.stage import run_stage

    options = {"shard": shard, "everyone": everyone, "renew": renew, "k": k}
    run_stage("precompute-users", stats.path, precompute, Path(home), **options)
