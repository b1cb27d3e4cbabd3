"""New and changed items of a source into what the champion serves, without training."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def find_changes(
    items: Input[Dataset],
    settings: str,
    home: str,
    changed: Output[Dataset],
    published: Output[Dataset],
    tokenizer: Output[Model],
    stats: Output[Artifact],
) -> bool:
    """Compare the source with what is published under the champion.

    Args:
        settings: JSON of the settings; enrichment and platform are used.
        changed: items table of those that are new or say something else.
        published: folder of the published tables.
        tokenizer: the champion's.

    Returns:
        whether any item is new or has changed.
    """
    from pathlib import Path

    from components.refresh.refreshing import find_changes as run
    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.schema import read_table

    made = Path(changed.path), Path(published.path), Path(tokenizer.path)
    run_stage("find-changes", stats.path, run, Path(items.path), *made, from_json(settings), home)
    return read_table("items", changed.path).num_rows > 0


@dsl.component(base_image=image("train"), install_kfp_package=False)
def append_sids(
    embeddings: Input[Dataset],
    items: Input[Dataset],
    published: Input[Dataset],
    tokenizer: Input[Model],
    sids: Output[Dataset],
    stats: Output[Artifact],
) -> None:
    """Give items that have none a SID of the frozen tokenizer; no published SID moves."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.tokenizer.append import run

    paths = Path(embeddings.path), Path(items.path), Path(published.path) / "sids.parquet", Path(tokenizer.path)
    run_stage("append-sids", stats.path, run, *paths, Path(sids.path))


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def publish_refresh(
    items: Input[Dataset],
    splits: Input[Dataset],
    published: Input[Dataset],
    settings: str,
    home: str,
    stats: Output[Artifact],
    captions: Input[Dataset] = None,
    intents: Input[Dataset] = None,
    quality: Input[Dataset] = None,
    sids: Input[Dataset] = None,
) -> None:
    """Publish features, and let the champion be served over the longer table; all of it or nothing.

    Args:
        captions: of the changed items, as intents and quality; none where no item has changed.
        sids: of all items.
        settings: JSON of all settings, kept with the tables.
    """
    from pathlib import Path

    from components.refresh.refreshing import publish
    from components.stage import run_stage
    from tessera.config import from_json

    given = {"captions": captions, "intents": intents, "quality": quality, "sids": sids}
    made = {name: Path(artifact.path) for name, artifact in given.items() if artifact is not None}
    paths = Path(items.path), Path(splits.path), Path(published.path)
    run_stage("publish-refresh", stats.path, publish, *paths, made, from_json(settings), home)
