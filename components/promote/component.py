"""Challenger to champion."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def promote(
    challenger: Input[Artifact], settings: str, home: str, stats: Output[Artifact], who: str = "", why: str = ""
) -> None:
    """Publish the version's features, let Triton load it, and move the alias; all of it or nothing."""
    from components.promote.promotion import promote as run
    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.files import read_json

    version = read_json(challenger.path)["policy"]
    run_stage("promote", stats.path, run, home, from_json(settings).platform, version, who=who or "a pipeline", why=why)
