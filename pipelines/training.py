"""The training pipeline: from a source to a promoted release, with the gates as steps."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Model

from components.align.component import align_policy
from components.evaluate.component import evaluate
from components.gates.component import gate_policy
from components.promote.component import promote
from components.register.component import register
from components.report.component import write_report
from components.train.component import train_policy
from pipelines.steps import enrich, heavy, light, tokenize


class Outputs(NamedTuple):
    """What a run leaves behind."""

    catalogue: Dataset
    tokenizer: Model
    sids: Dataset
    policy: Model
    evaluation: Artifact
    report: HTML
    metrics: Artifact


@dsl.pipeline(
    name="tessera-training", description="Catalogue and histories to a generative recommender that serves"
)
def training(
    shards: list,
    ingest_settings: str = "{}",
    enrichment_settings: str = "{}",
    relate_settings: str = "{}",
    tokenizer_settings: str = "{}",
    policy_settings: str = "{}",
    align_settings: str = "{}",
    evaluation_settings: str = "{}",
    platform_settings: str = "{}",
    home: str = "/mnt/tessera/home",
    work: str = "/mnt/tessera/work",
    source_digest: str = "",
    title: str = "",
) -> Outputs:
    """Train and, if the challenger beats the champion, promote.

    Args:
        shards: parts of the catalogue that are enriched side by side (pipelines.steps.enrich).
        ingest_settings: JSON of settings: source, path, seed, catalogue, shop. Each step gets only what it uses, so
            that a change of one setting does not make a cache forget the steps before it.
        enrichment_settings: JSON of settings: catalogue, enrichment.
        relate_settings: JSON of settings: seed, space, catalogue, enrichment, and of tokenizer method and use_images.
        tokenizer_settings: JSON of settings: seed, space, tokenizer.
        policy_settings: JSON of settings: seed, policy.
        align_settings: JSON of settings: seed, alignment, and the section that alignment names.
        evaluation_settings: JSON of settings: evaluation, platform.
        platform_settings: JSON of all settings, logged with the run.
        home: folder of the platform.
        work: folder of the checkpoints, kept between tries.
        source_digest: digest of the source's files.
        title: name of the run in the report.
    """
    enriched = enrich(ingest_settings, enrichment_settings, home, source_digest, shards)
    tokenized = tokenize(enriched, relate_settings, tokenizer_settings, home, work)
    tables = {"items": enriched.items, "captions": enriched.captions, "intents": enriched.intents}
    tables |= {"quality": enriched.quality, "sids": tokenized.sids}
    bundles = {"tokenizer": tokenized.tokenizer}

    training_step = train_policy(
        items=enriched.items,
        captions=enriched.captions,
        intents=enriched.intents,
        splits=enriched.splits,
        sids=tokenized.sids,
        embeddings=enriched.embeddings,
        settings=policy_settings,
        work=work,
        **bundles,
    )
    trained = heavy(training_step.after(tokenized.checked))
    aligned = heavy(
        align_policy(
            policy=trained.outputs["policy"],
            splits=enriched.splits,
            quality=enriched.quality,
            intents=enriched.intents,
            settings=align_settings,
            work=work,
        )
    )
    bundles["policy"] = aligned.outputs["aligned"]
    measured = heavy(evaluate(policy=bundles["policy"], splits=enriched.splits, settings=evaluation_settings))
    evaluation = measured.outputs["evaluation"]

    registered = light(
        register(
            splits=enriched.splits, evaluation=evaluation, settings=platform_settings, home=home, **tables, **bundles
        )
    )
    # Registry and champion change outside of the inputs that a cache key sees.
    registered.set_caching_options(False)
    challenger = registered.outputs["challenger"]
    served = {"challenger": challenger, "settings": evaluation_settings, "home": home}
    decision = heavy(gate_policy(evaluation=evaluation, splits=enriched.splits, **served))
    decision.set_caching_options(False)
    with dsl.If(decision.outputs["Output"] == True, name="better than the champion"):  # noqa: E712
        light(promote(**served)).set_caching_options(False)

    stats = {**enriched.stats, **tokenized.stats, "train": trained.outputs["stats"]}
    stats |= {"align": aligned.outputs["stats"], "evaluate": measured.outputs["stats"]}
    stats |= {"gate_policy": decision.outputs["stats"]}
    report = light(
        write_report(
            catalogue=enriched.catalogue,
            splits=enriched.splits,
            evaluation=evaluation,
            settings=platform_settings,
            title=title,
            **tables,
            **{f"{name}_stats": artifact for name, artifact in stats.items()},
        )
    )
    outputs = report.outputs
    return Outputs(
        enriched.catalogue,
        tokenized.tokenizer,
        tokenized.sids,
        bundles["policy"],
        evaluation,
        outputs["report"],
        outputs["metrics"],
    )
