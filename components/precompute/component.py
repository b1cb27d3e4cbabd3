"""Users' histories to cached recommendations."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def precompute_users(
    home: str,
    settings: str,
    stats: Output[Artifact],
    shard: str = "",
    everyone: bool = False,
    renew: bool = False,
    k: int = 20,
) -> None:
    """Decode users ahead with the champion, and publish their lists.

    Args:
        settings: JSON of the settings; platform is used.
        shard: only users of a part, as "0/4".
        everyone: also users whose list is up to date.
        renew: only where lists are in use.
        k: items a list.
    """
    from pathlib import Path

    from components.precompute.precomputing import precompute
    from components.stage import run_stage
    from tessera.config import from_json

    options = {"shard": shard, "everyone": everyone, "renew": renew, "k": k}
    run_stage("precompute-users", stats.path, precompute, Path(home), from_json(settings).platform, **options)
