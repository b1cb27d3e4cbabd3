"""A supervised policy to one that GRPO or S-DPO has trained further."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def align_policy(
    policy: Input[Model],
    splits: Input[Dataset],
    quality: Input[Dataset],
    intents: Input[Dataset],
    settings: str,
    work: str,
    aligned: Output[Model],
    stats: Output[Artifact],
) -> None:
    """Reinforcement learning or preference optimisation, where `alignment` asks for it; else the policy as it is.

    Args:
        settings: JSON of the settings; seed, alignment and the section of that name are used.
        work: folder of the checkpoints, kept between tries.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json

    chosen = from_json(settings)
    if chosen.alignment == "none":
        aligned.uri = policy.uri  # the same bundle under another name: nothing is copied
        run_stage("align-policy", stats.path, dict, alignment="none")
        return
    from tessera.policy.align import run

    tables = Path(policy.path), Path(splits.path), Path(quality.path), Path(intents.path)
    run_stage("align-policy", stats.path, run, *tables, Path(aligned.path), chosen, Path(work) / "align")
