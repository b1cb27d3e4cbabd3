"""The Triton model repository: one model, `tessera`, whose numbered versions are the releases of the policy.

    repository/tessera/config.pbtxt
    repository/tessera/<release>/model.py
    repository/tessera/<release>/policy/                  the policy bundle, with the SIDs it was trained on
    repository/tessera/<release>/sids-<version>.parquet   newer SIDs of the same tokenizer, where there are some

A release is complete before it gets its number, so neither a poller nor a load request can see half of one. The highest
release serves; going back to an earlier policy exports it again under the next number, which costs hard links.
"""

import os
import py_compile
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.model_config import MODEL, model_config
from serving.probe import Served
from tessera.bundle import MANIFEST, Manifest, load_manifest
from tessera.errors import BundleError, InputError, ServiceError
from tessera.files import sha256_file, sync, sync_tree, write_text
from tessera.schema import read_table

KEEP = 3
"""Releases that `prune` leaves; the newest serves, the others are there to look at."""

_SIDS = "sids.parquet"  # in the policy bundle
_NAMES = re.compile(r"model\.py|policy|__pycache__(/model\.[\w.-]+)?|sids-[0-9a-f]{12}\.parquet")
_MODEL_PY = '''"""Written by Tessera with each release; the code is in serving/triton_model.py."""

from importlib import import_module

from serving.background import in_background

TritonPythonModel = in_background(lambda: import_module("serving.triton_model")).TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Release:
    """A release in the repository: a policy, and the SIDs that it recommends from.

    index_version is a digest of the SIDs table, so that two releases of one policy can be told apart.
    """

    number: int
    folder: Path
    policy_version: str
    tokenizer_version: str
    index_version: str
    sids: Path | None
    """The newer SIDs table, None for the policy's own."""

    @property
    def policy(self) -> Path:
        """The policy bundle."""
        return self.folder / "policy"

    @property
    def answer(self) -> Served:
        """What a server of this release says of itself."""
        return Served(self.policy_version, self.index_version)


def export(
    policy_bundle: str | Path,
    repository: str | Path,
    release: int | None = None,
    *,
    sids: str | Path | None = None,
    feature_server: str = "",
    workers: int = 0,
    threads: int = 0,
    max_batch: int = 64,
    max_queue: int = 256,
    prefix_cache_mb: int = 64,
) -> Path:
    """Add a policy bundle to the repository as a release and return the release's folder.

    Exporting what is the newest release already changes nothing but the configuration.

    Args:
        release: its number; by default the one after the newest. It must be the highest, because the highest serves.
        sids: a newer SIDs table of the policy's tokenizer, to recommend items that are younger than the policy.
        feature_server: base URL of Feast's feature server, as Triton reaches it; empty: no answers by user id.
        workers: batches decoded at once; 0 means one a core up to four, or one on a GPU.
        threads: torch threads of each; 0 means OMP_NUM_THREADS, else one.
        max_batch: most requests decoded together, and rows of one request.
        max_queue: most requests of a priority that wait; one more is refused as busy.
        prefix_cache_mb: memory for prompts of returning users; 0: none is kept.

    Raises:
        BundleError: the folder is no whole policy bundle, or the SIDs are of another tokenizer or no SIDs table.
        InputError: the release number is taken or too low, or the feature server's URL cannot be written down.
    """
    manifest = load_manifest(policy_bundle, "policy")
    index_version = _check_sids(Path(sids), manifest) if sids is not None else _own_index(manifest)
    config = model_config(
        max_batch=max_batch, feature_server=feature_server, workers=workers, threads=threads, max_queue=max_queue,
        prefix_cache_mb=prefix_cache_mb,
    )  # fmt: skip
    model = Path(repository) / MODEL
    existing = releases(repository)
    newest_number = existing[-1] if existing else 0
    if release is None and existing and _answer(repository, newest_number) == Served(manifest.version, index_version):
        _configure(model, config)
        return model / str(newest_number)
    if release is not None and release <= newest_number:
        raise InputError(f"release {release} cannot follow release {newest_number} in {model}; leave the number out.")
    folder = model / str(release or newest_number + 1)
    own = index_version == _own_index(manifest)
    _place(Path(policy_bundle), manifest, folder, None if own or sids is None else Path(sids), index_version)
    _configure(model, config)
    return folder


def releases(repository: str | Path) -> list[int]:
    """Numbers of the releases in the repository, the oldest first."""
    folders = (Path(repository) / MODEL).glob("[1-9]*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit() and folder.is_dir())


def newest(repository: str | Path) -> Release:
    """The release that serves.

    Raises:
        ServiceError: the repository has no release.
        BundleError: the release's bundle is not whole.
    """
    existing = releases(repository)
    if not existing:
        raise ServiceError(f"{repository} holds no release to serve; promote a policy first.")
    return read_release(Path(repository) / MODEL / str(existing[-1]))


def read_release(folder: Path) -> Release:
    """Describe the release in a folder; the hashes of its bundle are checked when it is loaded.

    Raises:
        BundleError: its bundle is not whole, or it holds what no release has: Triton's Python imports from its folder.
    """
    _check_names(folder)
    manifest = load_manifest(folder / "policy", "policy", verify=False)
    sids = next(folder.glob("sids-*.parquet"), None)
    index_version = sids.stem.removeprefix("sids-") if sids else _own_index(manifest)
    return Release(int(folder.name), folder, manifest.version, str(manifest.parent), index_version, sids)


def check_index(release: Release) -> None:
    """Hash the newer SIDs table of a release, which no manifest covers.

    Raises:
        BundleError: it is not what was exported.
    """
    if release.sids is not None and _digest(sha256_file(release.sids)) != release.index_version:
        raise BundleError(f"{release.sids} is damaged: it does not match its name; release the SIDs again.")


def withdraw(repository: str | Path, release: int) -> None:
    """Remove a release, so that the one before it is the newest again."""
    folder = Path(repository) / MODEL / str(release)
    if folder.is_dir():
        hidden = Path(tempfile.mkdtemp(prefix=".withdrawn-", dir=folder.parent))
        folder.rename(hidden / folder.name)  # one step: a loader sees the whole release or none of it
        shutil.rmtree(hidden, ignore_errors=True)


def prune(repository: str | Path) -> None:
    """Remove all but the newest few releases."""
    for old in releases(repository)[:-KEEP]:
        withdraw(repository, old)


def _check_names(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("__pycache__/*"))]
    strangers = [name for name in names if not _NAMES.fullmatch(name) or (folder / name).is_symlink()]
    several = [name for name in names if name.startswith("sids-")][1:]
    if strangers or several:
        raise BundleError(
            f"release {folder.name} in {folder.parent} holds {min(strangers or several)!r}, which no release has; "
            "remove the release and promote its policy again."
        )


def _check_sids(sids: Path, manifest: Manifest) -> str:
    """The version of a SIDs table that is of the policy's tokenizer; the server checks the codes when it loads them."""
    try:
        table = read_table("sids", sids)
    except InputError as error:
        raise BundleError(f"{sids} cannot be the index of policy {manifest.version}: {error}") from None
    found = sorted(set(table["tokenizer_version"].unique().to_pylist()))
    if found != [manifest.parent]:
        named = ", ".join(map(str, found)) or "none"
        raise BundleError(
            f"policy {manifest.version} writes SIDs of tokenizer {manifest.parent}, {sids} holds SIDs of {named}; "
            "use the SIDs that belong to it."
        )
    return _digest(sha256_file(sids))


def _own_index(manifest: Manifest) -> str:
    return _digest(manifest.files.get(_SIDS, ""))


def _digest(sha256: str) -> str:
    return sha256[:12]


def _answer(repository: str | Path, number: int) -> Served | None:
    try:
        return read_release(Path(repository) / MODEL / str(number)).answer
    except BundleError:
        return None


def _configure(model: Path, config: str) -> None:
    """Write the configuration if it is another: Triton loads a model anew whose files are newer than what it loaded."""
    path = model / "config.pbtxt"
    if not path.is_file() or path.read_bytes() != config.encode():
        write_text(path, config)


def _place(bundle: Path, manifest: Manifest, folder: Path, sids: Path | None, index_version: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".release-", dir=folder.parent))
    try:
        for name in (*manifest.files, MANIFEST):
            target = staging / "policy" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(bundle / name, target)
        if sids is not None:
            shutil.copy2(sids, staging / f"sids-{index_version}.parquet")  # no bundle: its owner may write it again
        write_text(staging / "model.py", _MODEL_PY)
        _compile(staging / "model.py", folder / "model.py")
        staging.chmod(0o755)
        sync_tree(staging)
        staging.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _compile(model: Path, later: Path) -> None:
    """Write the bytecode that Triton's Python, deaf to PYTHONDONTWRITEBYTECODE, would write when it loads the release.

    To Triton that would be a change of the release, which it would load again at the next occasion.
    """
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(model), dfile=str(later), doraise=True, invalidation_mode=unchecked)


def _link_or_copy(source: Path, target: Path) -> None:
    """Bundles are never written in place, so a hard link is as good as a copy where the file system has them."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
