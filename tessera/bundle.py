"""Bundles: a trained artefact as a folder of safetensors, JSON and parquet, with `manifest.json` written last.

A folder without a manifest is not a bundle, so a crash while saving never leaves something that loads. Every file is
listed with its SHA-256, and nothing is pickled: loading a bundle cannot run code. A bundle may come from a stranger, so
its names stay inside its folder, and a file that the manifest does not list is refused: a library that loads a folder
would find it.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tessera.errors import BundleError, InputError
from tessera.files import read_json, sha256_file, sha256_of, sync, sync_tree, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?:{_PART}/)*{_PART}\.(?:jinja|json|model|parquet|safetensors|txt)")
"""A file that a manifest may list: a relative POSIX path in ASCII, nothing hidden, of a kind that holds data alone."""


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
        _check_files(staging, files, _present(staging))  # what would not load is not written
        staging.chmod(0o755)
        sync_tree(staging)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def load_manifest(folder: str | Path, kind: str, *, verify: bool = True) -> Manifest:
    """Read and check the manifest of a bundle and the names in its folder; with `verify`, hash every file.

    Raises:
        BundleError: no manifest, another kind or schema version, a file (the manifest too) that is missing or was
            altered, a name or a link that leads out of the folder, or a file that the manifest does not list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} does not exist; give the folder of a {kind} bundle.")
    present = _present(folder)
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
        _check_types(manifest)
    except TypeError as error:
        raise BundleError(f"{folder / MANIFEST} is not a bundle manifest ({error}); train again.") from None
    if manifest.kind != kind:
        raise BundleError(f"{folder} is a {manifest.kind} bundle, but a {kind} bundle is needed here; check the path.")
    if manifest.version != _digest(kind, manifest.config, manifest.files, manifest.parent, manifest.extra):
        raise BundleError(f"{folder} is damaged: {MANIFEST} does not match its version; copy the bundle again.")
    _check_files(folder, manifest.files, present)
    for name, digest in manifest.files.items():
        if verify and sha256_file(folder / name) != digest:
            raise BundleError(f"{folder} is damaged: {name} does not match its SHA-256; copy the bundle again.")
    return manifest


def _present(folder: Path) -> dict[str, bool]:
    """All names below a folder, with whether each is a file; BundleError for what is no file or folder inside it."""
    root, found = folder.resolve(), {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise BundleError(f"{folder} holds the link {name!r}, which leads out of it; copy the files themselves.")
        if not path.is_file() and not path.is_dir():
            raise BundleError(f"{folder} holds {name!r}, which is neither file nor folder; copy the bundle again.")
        found[name] = path.is_file()
    return found


def _check_files(folder: Path, listed: dict[str, str], present: dict[str, bool]) -> None:
    """Refuse names that a manifest may not list, and a folder that holds more or less than it lists."""
    for name in listed:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(f"{folder} lists the file {name!r}, whose name no bundle has; do not use this bundle.")
    missing = [name for name in listed if not present.get(name)]
    if missing:
        raise BundleError(f"{folder} is truncated: {missing[0]} is missing; copy the whole folder again.")
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    strangers = sorted(present.keys() - listed.keys() - folders - {MANIFEST})
    if strangers:
        raise BundleError(f"{folder} holds {strangers[0]!r}, which {MANIFEST} does not list; remove it.")


def _check_types(manifest: Manifest) -> None:
    """A TypeError for JSON that has the fields of a manifest and other things in them."""
    for name, kinds in {"kind": str, "version": str, "parent": str | None}.items():
        if not isinstance(getattr(manifest, name), kinds):
            raise TypeError(f"{name} is no text")
    for name in ("config", "metrics", "files", "extra"):
        if not isinstance(getattr(manifest, name), dict):
            raise TypeError(f"{name} is no object")
    if not all(isinstance(digest, str) for digest in manifest.files.values()):
        raise TypeError("files holds what is no SHA-256")


def _digest(kind: str, config: Any, files: Any, parent: Any, extra: Any) -> str:
    """The version of a bundle: everything but its metrics, which hold nothing that loading depends on."""
    return sha256_of(kind, json.dumps([config, files, parent, extra], sort_keys=True))[:12]
