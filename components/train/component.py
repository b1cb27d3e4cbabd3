"""SIDs and histories to a policy."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def train_policy(
    items: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    splits: Input[Dataset],
    sids: Input[Dataset],
    embeddings: Input[Dataset],
    tokenizer: Input[Model],
    settings: str,
    work: str,
    policy: Output[Model],
    stats: Output[Artifact],
) -> None:
    """Supervised fine-tuning on the next SID, alone or among other tasks, stopped early on validation.

    Args:
        settings: JSON of the settings; policy and seed are used.
        work: folder of the checkpoints, kept between tries.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.policy.fit import run

    chosen = from_json(settings)
    tables = Path(items.path), Path(splits.path), Path(sids.path), Path(tokenizer.path), Path(policy.path)
    options = chosen.policy, chosen.evaluation, chosen.seed, Path(work) / "policy"
    told = {"captions": Path(captions.path), "intents": Path(intents.path)}
    if chosen.policy.hybrid_prefix:
        told["item_vectors"] = Path(embeddings.path)
    run_stage("train-policy", stats.path, run, *tables, *options, **told)
