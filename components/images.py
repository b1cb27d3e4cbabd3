"""Container images of the components, tagged by a digest of the code inside: a cache never serves stale code."""

import os
from functools import cache
from pathlib import Path

from tessera.files import read_json, sha256_of

ROOT = Path(__file__).resolve().parent.parent
DIGESTS = ROOT / "build" / "images.json"
"""What `make push` noted: digests by name and tag."""
PLATFORM = ("tessera", "components", "validation", "feature_repo", "serving", "pipelines")
FOLDERS: dict[str, tuple[str, ...]] = {
    "base": (),
    "enrich": ("tessera", "components"),
    "train": ("tessera", "components"),
    "publish": PLATFORM,
    "serve": ("tessera", "serving"),
}
SUFFIXES = {".py", ".md", ".json", ".yaml", ".j2", ".ini", ".mako", ".lock"}
LOCKS = ("pip.lock", "requirements.lock", "requirements-cuda.lock", "torch-cpu.lock", "sbom.lock")
RECIPE = (
    *LOCKS, "images/requirements.py", "images/install", "images/metadata.py", "images/feast", "images/tritonserver",
)  # fmt: skip


@cache
def image(kind: str) -> str:
    """Name of the image for one kind of work ("enrich", "train", "publish" or "serve"), or of the "base" of them all.

    TESSERA_IMAGE_PREFIX puts a registry or a project in front.
    """
    files = sorted(p for folder in FOLDERS[kind] for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
    # An installation without the checkout builds no images.
    recipe = (*RECIPE, "images/Containerfile.base", f"images/Containerfile.{kind}")
    files += [ROOT / name for name in dict.fromkeys(recipe) if (ROOT / name).exists()]
    parts = [part for p in files for part in (p.relative_to(ROOT).as_posix(), p.read_bytes())]
    return f"{os.environ.get('TESSERA_IMAGE_PREFIX', '')}tessera-python-{kind}:{sha256_of(*parts)[:16]}"


def pinned(kind: str) -> str:
    """The image as a cluster is told of it: by the digest that its registry gave it, known once `make push` has run for
    this very code, else by the tag."""
    name = image(kind)
    digest = read_json(DIGESTS).get(name) if DIGESTS.exists() else None
    return f"{name.rpartition(':')[0]}@{digest}" if digest else name
