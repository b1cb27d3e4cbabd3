"""A run as one page and one file of numbers."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def write_report(
    catalogue: Input[Dataset],
    splits: Input[Dataset],
    items: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    quality: Input[Dataset],
    sids: Input[Dataset],
    evaluation: Input[Artifact],
    ingest_stats: Input[Artifact],
    gate_catalogue_stats: Input[Artifact],
    caption_stats: Input[Artifact],
    gate_captions_stats: Input[Artifact],
    intents_stats: Input[Artifact],
    quality_stats: Input[Artifact],
    gate_intents_stats: Input[Artifact],
    embed_stats: Input[Artifact],
    gate_embeddings_stats: Input[Artifact],
    relate_stats: Input[Artifact],
    tokenizer_stats: Input[Artifact],
    gate_sids_stats: Input[Artifact],
    train_stats: Input[Artifact],
    align_stats: Input[Artifact],
    evaluate_stats: Input[Artifact],
    gate_policy_stats: Input[Artifact],
    settings: str,
    report: Output[HTML],
    metrics: Output[Artifact],
    stats: Output[Artifact],
    title: str = "",
) -> None:
    """Write report.html and metrics.json from the tables and from what each step said of itself."""
    from pathlib import Path

    from components.report.metrics import collect
    from components.report.report import run
    from components.stage import run_stage
    from tessera.files import write_json, write_text

    gates = gate_catalogue_stats, gate_captions_stats, gate_intents_stats, gate_embeddings_stats, gate_sids_stats
    enriching = ingest_stats, caption_stats, intents_stats, quality_stats, embed_stats, relate_stats
    training = tokenizer_stats, train_stats, align_stats, evaluate_stats
    tables = {"items": items, "captions": captions, "intents": intents, "quality": quality, "sids": sids}
    tables["splits"] = splits

    def write() -> None:
        used = Path(report.path).with_name("settings.json")
        write_text(used, settings)
        steps = [Path(one.path) for one in (*enriching, *gates, *training, gate_policy_stats)]
        write_json(metrics.path, collect(steps, Path(evaluation.path)))
        run(
            **{name: Path(artifact.path) for name, artifact in tables.items()},
            images=Path(catalogue.path) / "images",
            gates=[Path(one.path) for one in (*gates, gate_policy_stats)],
            tokenizer_metrics=Path(tokenizer_stats.path),
            policy_metrics=Path(train_stats.path),
            align_metrics=Path(align_stats.path),
            evaluation=Path(evaluation.path),
            stages=steps,
            out_html=Path(report.path),
            metrics=Path(metrics.path),
            settings=used,
            title=title,
        )

    run_stage("write-report", stats.path, write)
