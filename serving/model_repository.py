"""The Triton model repository: one model, `tessera`, whose numbered versions are the releases of the policy.

    repository/tessera/config.pbtxt
    repository/tessera/<release>/model.py
    repository/tessera/<release>/policy/     the policy bundle

A release is complete before it gets its number, so neither a poller nor a load request can see half of one. The highest
release serves; going back to an earlier policy exports it again under the next number, which costs hard links.
"""

import os
import shutil
import tempfile
from pathlib import Path

from tessera.bundle import MANIFEST, Manifest, load_manifest
from tessera.errors import BundleError, InputError, ServiceError
from tessera.files import write_text

MODEL = "tessera"
KEEP = 3
"""Releases that `prune` leaves; the newest serves, the others are there to look at."""

_MODEL_PY = '''"""Written by Tessera with each release; the code is in serving/triton_model.py."""

from serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

_CONFIG = """\
# Written by Tessera with each release.
name: "{model}"
backend: "python"
version_policy: {{ latest {{ num_versions: 1 }} }}

# Every input is ragged: requests of any lengths share a batch and one decode, if they send the same set of inputs
# (an unused text input as one empty string).
max_batch_size: {max_batch}
dynamic_batching {{ max_queue_delay_microseconds: {queue_delay_us} }}

input [
{inputs}
]
output [
{outputs}
]

# One process decodes batches one after the other.
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
parameters {{ key: "feature_server" value {{ string_value: "{feature_server}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""

_INPUTS = (
    ("history", "TYPE_STRING", -1), ("history_ids", "TYPE_INT64", -1), ("user_id", "TYPE_STRING", 1),
    ("k", "TYPE_INT32", 1), ("exclude", "TYPE_STRING", -1), ("allow", "TYPE_STRING", -1),
    ("include_history", "TYPE_BOOL", 1),
)  # fmt: skip
_OUTPUTS = (
    ("item_ids", "TYPE_STRING", -1), ("sids", "TYPE_STRING", -1), ("scores", "TYPE_FP32", -1),
    ("policy_version", "TYPE_STRING", 1), ("tokenizer_version", "TYPE_STRING", 1),
)  # fmt: skip


def export(
    policy_bundle: str | Path,
    repository: str | Path,
    release: int | None = None,
    *,
    feature_server: str = "",
    threads: int = 0,
    max_batch: int = 64,
    queue_delay_us: int = 1000,
) -> Path:
    """Add a policy bundle to the repository as a release and return the release's folder.

    Exporting the policy that is the newest release already changes nothing but the configuration.

    Args:
        release: its number; by default the one after the newest. It must be the highest, because the highest serves.
        feature_server: base URL of Feast's feature server, as Triton reaches it; empty: no answers by user id.
        threads: torch threads of the served model; 0 means OMP_NUM_THREADS, else up to four cores.
        max_batch: most requests decoded together.
        queue_delay_us: microseconds that a request may wait for others to share its decode.

    Raises:
        BundleError: the folder is no whole policy bundle.
        InputError: the release number is taken or too low, or the feature server's URL cannot be written down.
    """
    manifest = load_manifest(policy_bundle, "policy")
    config = _config(feature_server, threads, max_batch, queue_delay_us)
    model = Path(repository) / MODEL
    existing = releases(repository)
    newest = existing[-1] if existing else 0
    if release is None and existing and _version(model / str(newest)) == manifest.version:
        write_text(model / "config.pbtxt", config)
        return model / str(newest)
    if release is not None and release <= newest:
        raise InputError(f"release {release} cannot follow release {newest} in {model}; leave the number out.")
    folder = model / str(release or newest + 1)
    _place(Path(policy_bundle), manifest, folder)
    write_text(model / "config.pbtxt", config)
    return folder


def releases(repository: str | Path) -> list[int]:
    """Numbers of the releases in the repository, the oldest first."""
    folders = (Path(repository) / MODEL).glob("[1-9]*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit() and folder.is_dir())


def newest(repository: str | Path) -> tuple[int, Manifest]:
    """The release that serves and its policy's manifest.

    Raises:
        ServiceError: the repository has no release.
        BundleError: the release's bundle is not whole.
    """
    existing = releases(repository)
    if not existing:
        raise ServiceError(f"{repository} holds no release to serve; promote a policy first.")
    folder = Path(repository) / MODEL / str(existing[-1]) / "policy"
    return existing[-1], load_manifest(folder, "policy", verify=False)


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


def _version(release: Path) -> str | None:
    try:
        return load_manifest(release / "policy", "policy", verify=False).version
    except BundleError:
        return None


def _place(bundle: Path, manifest: Manifest, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".release-", dir=folder.parent))
    try:
        for name in (*manifest.files, MANIFEST):
            target = staging / "policy" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(bundle / name, target)
        write_text(staging / "model.py", _MODEL_PY)
        staging.chmod(0o755)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Bundles are never written in place, so a hard link is as good as a copy where the file system has them."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _config(feature_server: str, threads: int, max_batch: int, queue_delay_us: int) -> str:
    if any(character in feature_server for character in '"\\\n'):
        raise InputError(f"{feature_server!r} is not a URL; give the feature server as http://host:port.")
    return _CONFIG.format(
        model=MODEL, max_batch=max_batch, queue_delay_us=queue_delay_us,
        inputs=",\n".join(_tensor(*one, " optional: true allow_ragged_batch: true") for one in _INPUTS),
        outputs=",\n".join(_tensor(*one, "") for one in _OUTPUTS), feature_server=feature_server, threads=threads,
    )  # fmt: skip


def _tensor(name: str, kind: str, length: int, more: str) -> str:
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {length} ]{more} }}'
