"""A newer SIDs table of a registered policy, in the registry, where all replicas find it.

New items get SIDs from the policy's own tokenizer without a new policy. The table is kept with the run that made the
policy, and a tag of the policy version names it: whoever serves the version serves it over this table.
"""

import re
import shutil
import tempfile
from pathlib import Path

import pyarrow.compute as pc

from serving.aliases import POLICY
from serving.model_repository import Release
from serving.registry import DOWNLOADS, Registry, Version
from serving.tracking import speaking_of
from tessera.errors import BundleError, InputError
from tessera.files import replacing, sha256_file
from tessera.schema import read_table

TAG = "newer_sids"
_PLACE = re.compile(rf"{TAG}/([0-9a-f]{{12}})/([^/\\\0]+)")
"""What the tag holds: a folder named by a digest of the table, and the table's file."""


def publish(registry: Registry, version: Version, sids: Path) -> None:
    """Let a policy version be served over a newer SIDs table; the same table again changes nothing.

    Raises:
        BundleError: it is of another tokenizer than the policy.
        InputError: it is no SIDs table, or the version has no run to keep it with.
        ServiceError: MLflow refused.
    """
    found = pc.unique(read_table("sids", sids)["tokenizer_version"]).to_pylist()
    if found != [version.tokenizer_version]:
        raise BundleError(
            f"policy {version.version} writes SIDs of tokenizer {version.tokenizer_version}, {sids} holds those of "
            f"{', '.join(map(str, found)) or 'none'}; append to the SIDs of its own tokenizer."
        )
    if version.run_id is None:
        raise InputError(f"version {version.version} of {POLICY} has no run to keep SIDs with; register it again.")
    tag = tag_of(sids)
    if version.tags.get(TAG) == tag:
        return
    with speaking_of(registry.url):  # the table before the tag that leads readers to it
        registry.client.log_artifact(version.run_id, str(sids), str(Path(tag).parent))
        registry.client.set_model_version_tag(POLICY, version.version, TAG, tag)


def fetch(registry: Registry, version: Version) -> Path | None:
    """The newer SIDs table of a version as a file, None where the policy's own is the newest.

    Raises:
        BundleError: the tag names no table that `publish` kept, or what is kept there is another one.
        ServiceError: it cannot be had.
    """
    from mlflow.artifacts import download_artifacts

    if TAG not in version.tags or version.run_id is None:
        return None
    place, again = version.tags[TAG], f"publish the SIDs of version {version.version} anew."
    if not (named := _PLACE.fullmatch(place)) or named[2] in {".", ".."}:
        raise BundleError(f"the tag {TAG} holds {place!r}, which names no SIDs table; {again}")
    target = registry.home / DOWNLOADS
    target.mkdir(exist_ok=True)
    with speaking_of(registry.url), tempfile.TemporaryDirectory(dir=target) as staging:
        kept = {"run_id": version.run_id, "artifact_path": place, "tracking_uri": registry.url}
        found = Path(download_artifacts(**kept, dst_path=staging))
        if sha256_file(found)[:12] != named[1]:
            raise BundleError(f"the SIDs table that MLflow keeps as {place} does not match its name; {again}")
        with replacing(target / place) as temporary:
            shutil.copyfile(found, temporary)
    return target / place


def tag_of(sids: Path) -> str:
    """The tag that leads to a table: the folder named by its content, and its name."""
    return f"{TAG}/{sha256_file(sids)[:12]}/{sids.name}"


def served_by(release: Release, version: Version) -> bool:
    """Whether a release is a version with its newest SIDs table."""
    newer = index_version(version)
    same_index = release.sids is None if newer is None else release.index_version == newer
    return release.policy_version == version.bundle_version and same_index


def index_version(version: Version) -> str | None:
    """What a server of the version says of its index, where it has a newer table."""
    if TAG not in version.tags:
        return None
    named = _PLACE.fullmatch(version.tags[TAG])
    return named[1] if named else ""  # no index has it, and `fetch` says what is wrong
