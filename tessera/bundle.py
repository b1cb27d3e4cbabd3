"""Bundles: a trained artefact as a folder of safetensors, JSON and parquet, with `manifest.json` written last.

A folder without a manifest is not a bundle, so a crash while saving never leaves something that loads. Every file is
listed with its SHA-256, and nothing is pickled: loading a bundle cannot run code.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tessera.errors import BundleError, InputError
from tessera.files import read_json, sha256_file, sha256_of, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; `version` is a digest of its content, equal for equal bundles on any machine."""

    kind: str
    version: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    files: dict[str, str]
    parent: str | None = None
    schema_version: int = SCHEMA_VERSION
    extra: dict[str, Any] = field(default_factory=dict)


def save(
    folder: str | Path,
    kind: str,
    write: Callable[[Path], None],
    *,
    config: dict[str, Any],
    metrics: dict[str, Any],
    parent: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Manifest:
    """Let `write` fill an empty folder, describe it by a manifest, and move it to `folder` in one rename.

    Args:
        kind: "tokenizer" or "policy".
        parent: version of the bundle this one was made from: a policy names its tokenizer.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write(staging)
        files = {p.relative_to(staging).as_posix(): sha256_file(p) for p in sorted(staging.rglob("*")) if p.is_file()}
        config, extra = json.loads(json.dumps(config, default=str)), extra or {}
        version = _digest(kind, config, files, parent, extra)
        manifest = Manifest(kind, version, config, metrics, files, parent, SCHEMA_VERSION, extra)
        write_json(staging / MANIFEST, asdict(manifest))
        staging.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def load_manifest(folder: str | Path, kind: str, *, verify: bool = True) -> Manifest:
    """Read and check the manifest of a bundle; with `verify`, hash every file.

    Raises:
        BundleError: no manifest, another kind or schema version, or a file (the manifest too) that is missing or was
            altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} does not exist; give the folder of a {kind} bundle.")
    try:
        raw = read_json(folder / MANIFEST)
    except InputError:
        raise BundleError(
            f"{folder} has no readable {MANIFEST}, so it is no finished {kind} bundle; run its stage again."
        ) from None
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        found = raw.get("schema_version") if isinstance(raw, dict) else None
        raise BundleError(
            f"{folder} has bundle schema version {found}, this Tessera reads {SCHEMA_VERSION}; "
            "use the release that wrote it or train again."
        )
    try:
        manifest = Manifest(**raw)
    except TypeError as error:
        raise BundleError(f"{folder / MANIFEST} is not a bundle manifest ({error}); train again.") from None
    if manifest.kind != kind:
        raise BundleError(f"{folder} is a {manifest.kind} bundle, but a {kind} bundle is needed here; check the path.")
    if manifest.version != _digest(kind, manifest.config, manifest.files, manifest.parent, manifest.extra):
        raise BundleError(f"{folder} is damaged: {MANIFEST} does not match its version; copy the bundle again.")
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} is truncated: {name} is missing; copy the whole folder again.")
        if verify and sha256_file(path) != digest:
            raise BundleError(f"{folder} is damaged: {name} does not match its SHA-256; copy the bundle again.")
    return manifest


def _digest(kind: str, config: Any, files: Any, parent: Any, extra: Any) -> str:
    """The version of a bundle: everything but its metrics, which hold nothing that loading depends on."""
    return sha256_of(kind, json.dumps([config, files, parent, extra], sort_keys=True))[:12]
