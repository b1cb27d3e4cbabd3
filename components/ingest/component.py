"""Source to catalogue tables, and these to the SQL catalogue."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def ingest(
    settings: str,
    home: str,
    source_digest: str,
    catalogue: Output[Dataset],
    items: Output[Dataset],
    splits: Output[Dataset],
    stats: Output[Artifact],
) -> None:
    """Read, check, filter and split a source.

    Args:
        settings: JSON of the settings; source, path, seed, catalogue and shop are used.
        home: folder of the platform, for the embedded SQL catalogue, which must answer.
        source_digest: digest of the source's files, so that a changed source is not served from a cache.
        catalogue: folder with items, interactions and splits as parquet, and the photos.
        items: items table.
        splits: leave-last-out split.
        stats: counts and seconds.
    """
    import shutil
    from pathlib import Path

    from components.stage import run_stage
    from tessera.catalog.ingest import run
    from tessera.config import catalogue_url, from_json

    chosen = from_json(settings)
    folder = Path(catalogue.path)
    run_stage("ingest", stats.path, run, chosen, catalogue_url(chosen, home), folder)
    shutil.copyfile(folder / "items.parquet", items.path)
    shutil.copyfile(folder / "splits.parquet", splits.path)
    catalogue.metadata["source_digest"] = source_digest


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def fill_catalogue(catalogue: Input[Dataset], settings: str, home: str, stats: Output[Artifact]) -> None:
    """Make the SQL catalogue say what the tables say; to be run once the gate has passed them.

    Args:
        settings: JSON of the settings; catalogue is used.
        home: folder of the platform, for the embedded SQL catalogue.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.catalog.ingest import fill
    from tessera.config import catalogue_url, from_json

    run_stage("fill-catalogue", stats.path, fill, Path(catalogue.path), catalogue_url(from_json(settings), home))
