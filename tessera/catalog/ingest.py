"""The ingest stage: a source becomes the catalogue's tables and photos, and once these have passed a gate, SQL rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera.catalog.database import Catalogue
from tessera.catalog.download import fetch_all, is_url, store_for
from tessera.catalog.filtering import in_order, k_core, without_duplicates
from tessera.catalog.images import Photos, place_all
from tessera.catalog.raw import RawCatalogue
from tessera.catalog.sources import amazon, parquet, shop
from tessera.catalog.splits import leave_last_out
from tessera.config import Settings
from tessera.errors import InputError
from tessera.files import replacing
from tessera.schema import SCHEMAS, read_table, write_table


def run(settings: Settings, catalogue_url: str, out: Path) -> dict[str, Any]:
    """Read the source, filter it, place its photos; write out/{items,interactions,splits}.parquet.

    Safe to repeat: the same source gives the same files; a source that is refused leaves everything as it was. The
    database gets its tables here, and the rows from `fill`, once a gate has passed them. The shop also writes
    out/truth.parquet.

    Returns: {"items", "users", "interactions": counts, "images": {image_status: count}, "dropped_...": counts of what
        the source had and the catalogue has not, "titles_filled" and "photos_...": what the source was asked for,
        "truth": path (shop)}.

    Raises:
        InputError: the source is missing, unreadable or inconsistent.
        ServiceError: the database cannot be reached.
    """
    out = Path(out)
    raw = _read(settings, out)
    items, interactions, dropped = _filtered(raw, settings.catalogue.k_core)
    Catalogue(catalogue_url).migrate()  # before any photo is fetched: a database that is not up should say so first
    items, fetched = _with_photos(items, raw, settings, out / "images")
    stats = {**raw.stats, **dropped, **fetched}
    write_table("items", items, out / "items.parquet")
    write_table("interactions", interactions, out / "interactions.parquet")
    splits = leave_last_out(interactions)
    write_table("splits", splits, out / "splits.parquet")
    if raw.truth is not None:
        stats["truth"] = str(_write_truth(raw.truth, items, out / "truth.parquet"))
    return {
        "items": items.num_rows,
        "users": splits.num_rows,
        "interactions": interactions.num_rows,
        "images": dict(sorted(Counter(items["image_status"].to_pylist()).items())),
        **stats,
    }


def fill(folder: Path, catalogue_url: str) -> dict[str, int]:
    """Make the database say what the tables in `folder` say, in one transaction; the same tables write no row.

    Returns: {"removed_items", "removed_users"}: what the database had and the tables no longer have.

    Raises:
        InputError: a table is missing or unreadable. ServiceError: the database cannot be reached.
    """
    items, interactions = (read_table(name, folder / f"{name}.parquet") for name in ("items", "interactions"))
    catalogue = Catalogue(catalogue_url)
    catalogue.migrate()
    return catalogue.replace(items, interactions)


def _read(settings: Settings, out: Path) -> RawCatalogue:
    if settings.source == "shop":
        return shop.read(settings.shop, settings.seed, out / "images")
    if settings.path is None:
        raise InputError(f"the source '{settings.source}' needs a folder; give it with --path FOLDER.")
    folder = Path(settings.path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --path must name the folder that holds the catalogue's files.")
    return amazon.read(folder) if settings.source == "amazon" else parquet.read(folder)


def _filtered(raw: RawCatalogue, k: int) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    unique = raw.interactions if raw.repeats else without_duplicates(raw.interactions)
    core = k_core(unique, k)
    items = raw.items
    if raw.interactions.num_rows:
        if not core.num_rows:
            raise InputError(
                f"no user and item has {k} interactions within the rest, so {k}-core filtering leaves nothing; "
                "lower --catalogue.k-core (0 keeps all)."
            )
        if k > 1:
            items = items.filter(pc.is_in(items["item_id"], value_set=pc.unique(core["item_id"])))
    if not items.num_rows:
        raise InputError("the source has no items; check its files.")
    dropped = {
        "dropped_duplicate_interactions": raw.interactions.num_rows - unique.num_rows,
        "dropped_by_k_core_interactions": unique.num_rows - core.num_rows,
        "dropped_by_k_core_items": raw.items.num_rows - items.num_rows,
        "dropped_by_k_core_users": pc.count_distinct(unique["user_id"]).as_py()
        - pc.count_distinct(core["user_id"]).as_py(),
    }
    return items.sort_by("item_id"), in_order(core), dropped


def _with_photos(
    items: pa.Table, raw: RawCatalogue, settings: Settings, folder: Path
) -> tuple[pa.Table, dict[str, Any]]:
    """Items in their final schema with `image` null unless the photo is usable; and what downloading did."""
    wanted, source, counts = items["image"].to_pylist(), raw.images, {}
    corrupt: set[str] = set()
    if any(map(is_url, wanted)):
        source = store_for(raw.images, folder)
        asked, allowed = settings.catalogue, settings.catalogue.download_images
        fetched = fetch_all(wanted, items["item_id"].to_pylist(), source, allowed, asked.private_addresses)
        wanted, corrupt, counts = fetched.names, fetched.corrupt, fetched.counts
    photos = Photos(source)
    status = place_all(wanted, lambda name, at: "corrupt" if name in corrupt else photos.place(name, at), folder)
    image = [name if state == "ok" else None for name, state in zip(wanted, status, strict=True)]
    columns = {name: items[name] for name in items.column_names}
    columns |= {"image": pa.array(image, pa.string()), "image_status": pa.array(status, pa.string())}
    return pa.table(columns).select(SCHEMAS["items"].names).cast(SCHEMAS["items"]), counts


def _write_truth(truth: pa.Table, items: pa.Table, path: Path) -> Path:
    kept = truth.filter(pc.is_in(truth["item_id"], value_set=items["item_id"].combine_chunks())).sort_by("item_id")
    with replacing(path) as temporary:
        pq.write_table(kept, temporary)
    return path
