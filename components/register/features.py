"""The tables that are published with a policy version: those it was registered with, or the newest refresh's."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serving import newer_sids
from serving.aliases import POLICY
from serving.registry import Registry, Version
from serving.tracking import speaking_of
from tessera.config import Settings, save_settings
from tessera.errors import InputError
from tessera.files import sha256_file, sha256_of

FEATURES = "features"
TABLES = ("items", "captions", "intents", "quality", "sids", "splits")
SETTINGS = "settings.json"
TAG = "newer_features"


@contextmanager
def gathered(tables: Mapping[str, Path], settings: Settings) -> Iterator[Path]:
    """A folder with the tables and with the settings by which they were made, for as long as it takes to log it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / FEATURES
        folder.mkdir()
        for name, path in tables.items():
            shutil.copyfile(path, folder / f"{name}.parquet")
        save_settings(settings, folder / SETTINGS)
        yield folder


def newest(registry: Registry, version: Version) -> Path:
    """The folder with a version's tables, not to be changed.

    Raises:
        InputError: the version was registered without tables.
        ServiceError: the artefacts cannot be had.
    """
    return registry.artefacts(version, version.tags.get(TAG, FEATURES))


def renew(registry: Registry, version: Version, tables: Mapping[str, Path], settings: Settings) -> Version:
    """Let a version be published with, and served over, newer tables; returns it with the tags that say so.

    Raises:
        BundleError: the SIDs are of another tokenizer. InputError: it has no run to keep tables with.
        ServiceError: MLflow refused.
    """
    if version.run_id is None:
        raise InputError(f"version {version.version} of {POLICY} has no run to keep tables with; register it again.")
    kept_as = tags_of(tables)[TAG]
    if kept_as != version.tags.get(TAG):
        with gathered(tables, settings) as folder, speaking_of(registry.url):
            registry.client.log_artifacts(version.run_id, str(folder), kept_as)
            registry.client.set_model_version_tag(POLICY, version.version, TAG, kept_as)
    newer_sids.publish(registry, version, tables["sids"])
    return registry.resolve(version.version)


def tags_of(tables: Mapping[str, Path]) -> dict[str, str]:
    """The tags of a version that is published with, and served over, these tables."""
    kept_as = f"{FEATURES}-{sha256_of(*(sha256_file(tables[name]) for name in TABLES))[:12]}"
    return {TAG: kept_as, newer_sids.TAG: newer_sids.tag_of(tables["sids"])}


def tags_now(version: Version) -> dict[str, str]:
    """Those of the tags that a version has."""
    return {tag: version.tags[tag] for tag in (TAG, newer_sids.TAG) if tag in version.tags}


def restore(registry: Registry, number: str, tags: Mapping[str, str]) -> None:
    """Put a version's tables back to those that it had when it had these tags.

    Raises:
        ServiceError: MLflow refused.
    """
    now = registry.resolve(number).tags
    with speaking_of(registry.url):
        for tag in (newer_sids.TAG, TAG):
            if tag in tags:
                registry.client.set_model_version_tag(POLICY, number, tag, tags[tag])
            elif tag in now:
                registry.client.delete_model_version_tag(POLICY, number, tag)
