"""The refresh: what of a source is new to the champion, and its publication under the champion that serves.

The policy stays: items that it was never trained on get SIDs from its frozen tokenizer, near the items that they are
like, and it recommends from the longer table.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.promote.moves import Move, alone, begin, end, feature_server, install, put_back, settle, settled
from components.refresh.merging import merge
from components.register import features
from serving.aliases import TOKENIZER
from serving.registry import Registry
from tessera.config import EnrichmentSettings, Settings, load_settings
from tessera.errors import InputError, ServiceError
from tessera.files import read_json, write_json
from tessera.schema import read_table, write_table

log = logging.getLogger(__name__)
CHAMPION = "champion.json"
MADE = ("captions", "intents", "quality")
# What an item's vector depends on: a tokenizer places only vectors of the kind that it was fitted on.
EMBEDDED_BY = ("text_encoder", "image_encoder", "multimodal", "use_captions", "use_intents")


def find_changes(
    items: Path, changed: Path, published: Path, tokenizer: Path, settings: Settings, home: str
) -> dict[str, Any]:
    """Compare a source with what is published under the champion.

    Args:
        items: the source's table.
        changed: gets the rows of `items` that are new, say something else, or failed to be enriched before.
        published: folder that gets the published tables, and which version they belong to.
        tokenizer: folder that gets the champion's tokenizer.

    Returns:
        new, changed, again, gone: numbers of items. A photo that was replaced under its old name is not seen.

    Raises:
        InputError: nothing is promoted, the source is another catalogue, or the settings embed items otherwise than
            the champion's were.
        ServiceError: the registry does not answer.
    """
    settle(Path(home), settings.platform.mlflow_url)
    registry = Registry(home, settings.platform.mlflow_url)
    champion = registry.resolve("champion")
    folder = features.newest(registry, champion)
    _check_encoders(folder / features.SETTINGS, settings.enrichment)
    before = {row["item_id"]: row for row in read_table("items", folder / "items.parquet").to_pylist()}
    table = read_table("items", items)
    now = {row["item_id"]: row for row in table.to_pylist()}
    _check_overlap(before, now)
    again = _unfinished(folder, before)
    write_table("items", table.filter(pa.array([before.get(i) != now[i] or i in again for i in now])), changed)
    shutil.copytree(folder, published, dirs_exist_ok=True)
    write_json(published / CHAMPION, {"version": champion.version})
    shutil.copytree(registry.download(TOKENIZER, "champion"), tokenizer, dirs_exist_ok=True)
    found = {
        "new": len(now.keys() - before.keys()),
        "changed": sum(before[i] != now[i] for i in now.keys() & before.keys()),
        "again": len(again & now.keys()),
        "gone": len(before.keys() - now.keys()),
    }
    log.info("%(new)d items are new, %(changed)d changed, %(gone)d gone, %(again)d failed before", found)
    return found


def publish(
    items: Path, splits: Path, published: Path, made: Mapping[str, Path], settings: Settings, home: str
) -> dict[str, Any]:
    """Publish a refreshed catalogue: tables with the champion's version, features in Feast, SIDs where policies serve.

    All of it or nothing: if a store or a server refuses, what was published before is put back.

    Args:
        published: what `find_changes` found.
        made: captions, intents and quality of the changed items, and the SIDs of all; nothing where none has changed.

    Returns:
        champion, policy_version, release, features_changed.

    Raises:
        ServiceError: another version was promoted meanwhile, or a server refused.
    """
    registry, folder, url = Registry(home, settings.platform.mlflow_url), Path(home), feature_server(settings.platform)
    with alone(folder), tempfile.TemporaryDirectory() as temporary:
        with put_back():
            settled(registry, folder)
        champion = registry.resolve("champion")
        if champion.version != read_json(published / CHAMPION)["version"]:
            raise ServiceError(f"version {champion.version} was promoted meanwhile; run the refresh again.")
        given = {"items": items, "splits": splits, **made}
        tables = merge(features.TABLES, given, published, Path(temporary))
        grown, before = any(path.parent != published for path in tables.values()), features.tags_now(champion)
        after = features.tags_of(tables) if grown else before
        begin(folder, Move("refresh", champion.version, url, before, after))
        try:
            version = features.renew(registry, champion, tables, settings) if grown else champion
            done = install(registry, folder, version, url)
        except BaseException as error:
            with put_back():
                features.restore(registry, champion.version, before)
                settled(registry, folder, str(error) or type(error).__name__)
            raise
        end(folder)
    return {"champion": champion.version, "policy_version": champion.bundle_version, **done}


def _unfinished(folder: Path, before: Mapping[str, Any]) -> set[str]:
    """Published items without a SID, or that a model has failed on."""
    found = before.keys() - set(read_table("sids", folder / "sids.parquet")["item_id"].to_pylist())
    for name in MADE:
        table = read_table(name, folder / f"{name}.parquet")
        found |= set(table.filter(pc.not_equal(table["status"], "ok"))["item_id"].to_pylist())
    return found


def _check_overlap(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    known = len(before.keys() & now.keys())
    if 2 * known < len(before):
        raise InputError(
            f"the source has {len(now)} items and {len(before)} are published, of which it has only {known}: that is "
            "another catalogue, or a part of one; check the source, or train on it."
        )


def _check_encoders(path: Path, now: EnrichmentSettings) -> None:
    then = load_settings(path).enrichment
    other = [name for name in EMBEDDED_BY if getattr(then, name) != getattr(now, name)]
    if other:
        raise InputError(
            f"the champion's items were embedded with another enrichment.{other[0]} "
            f"({getattr(then, other[0])}, now {getattr(now, other[0])}); give the same, or train."
        )
