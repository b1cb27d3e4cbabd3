"""Quality gates as steps: each holds tables to an expectation suite and fails the pipeline with what was wrong."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_catalogue(catalogue: Input[Dataset], docs: Output[HTML], stats: Output[Artifact]) -> None:
    """Items, interactions and splits."""
    from pathlib import Path

    from components.stage import run_stage
    from validation.gate import run

    folder = Path(catalogue.path)
    tables = {name: folder / f"{name}.parquet" for name in ("items", "interactions", "splits")}
    run_stage("gate-catalogue", stats.path, run, "catalogue", tables, Path(docs.path))


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_captions(
    items: Input[Dataset],
    captions: Input[Dataset],
    docs: Output[HTML],
    stats: Output[Artifact],
    published: Input[Dataset] = None,
) -> None:
    """Captions: empty, boilerplate, refusing, repeated, too short or too long.

    Args:
        published: in a refresh, the folder with the published tables, whose rows stand beside those made now.
    """
    from pathlib import Path

    from components.gates.refreshed import run
    from components.stage import run_stage

    tables = {"items": Path(items.path), "captions": Path(captions.path)}
    before = Path(published.path) if published is not None else None
    run_stage("gate-captions", stats.path, run, "captions", tables, Path(docs.path), before)


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_intents(
    items: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    quality: Input[Dataset],
    docs: Output[HTML],
    stats: Output[Artifact],
    published: Input[Dataset] = None,
) -> None:
    """Intents and their labels: shape, count, confidence, vague or ungrounded descriptors, label balance.

    Args:
        published: as in `gate_captions`.
    """
    from pathlib import Path

    from components.gates.refreshed import run
    from components.stage import run_stage

    given = {"items": items, "captions": captions, "intents": intents, "quality": quality}
    tables = {name: Path(artifact.path) for name, artifact in given.items()}
    before = Path(published.path) if published is not None else None
    run_stage("gate-intents", stats.path, run, "intents", tables, Path(docs.path), before)


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_embeddings(
    items: Input[Dataset],
    embeddings: Input[Dataset],
    settings: str,
    docs: Output[HTML],
    stats: Output[Artifact],
    part: bool = False,
) -> None:
    """Embeddings: NaN, norm, width, one for every item.

    Args:
        part: they are some of a catalogue's, and may be too few to say anything about shares.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json
    from validation.gate import run

    tables = {"items": Path(items.path), "embeddings": Path(embeddings.path)}
    joint = from_json(settings).enrichment.multimodal.provider != "embedded"
    run_stage("gate-embeddings", stats.path, run, "embeddings", tables, Path(docs.path), joint=joint, part=part)


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_sids(
    items: Input[Dataset],
    sids: Input[Dataset],
    tokenizer: Input[Model],
    docs: Output[HTML],
    stats: Output[Artifact],
) -> None:
    """SIDs: range, uniqueness, utilisation, one for every item."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.bundle import load_manifest
    from validation.gate import run

    def check() -> dict:
        size = int(load_manifest(Path(tokenizer.path), "tokenizer").config["codebook_size"])
        tables = {"items": Path(items.path), "sids": Path(sids.path)}
        return run("sids", tables, Path(docs.path), codebook_size=size)

    run_stage("gate-sids", stats.path, check)


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def gate_policy(
    challenger: Input[Artifact],
    evaluation: Input[Artifact],
    splits: Input[Dataset],
    settings: str,
    home: str,
    stats: Output[Artifact],
) -> bool:
    """Should the challenger become champion? Compares both on the same split; a no is an answer, not a failure.

    Returns:
        whether to promote.
    """
    from pathlib import Path

    from components.gates.policy import decide
    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.files import read_json

    version = read_json(challenger.path)["policy"]
    report = run_stage(
        "gate-policy", stats.path, decide, version, Path(evaluation.path), Path(splits.path), from_json(settings), home
    )
    return bool(report["passed"])
