"""`make images`: build the images with docker, podman or buildah, whichever is there.

    python -m images.build [KIND ...]
    python -m images.build --push [KIND ...]    # and note the digests in build/images.json, for manifests and pipelines

TESSERA_IMAGE_ENGINE chooses the engine, TESSERA_IMAGE_PYTHON another image with Python to start from. pip inside the
builds is configured as pip is here; PIP_EXTRA_INDEX_URL of torch's CPU builds, say, makes images without CUDA.
"""

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from components.images import DIGESTS, FOLDERS, ROOT, image
from images.engine import Engine
from tessera.errors import InputError, TesseraError
from tessera.files import read_json, write_json

DEBIAN = "localhost/tessera-debian-python:bookworm"
FROM_PYTHON = "ARG PYTHON="


def main(kinds: list[str]) -> int:
    """Build the kinds named, or all, after their base; print how large they are, or push them."""
    push = "--push" in kinds
    kinds = [kind for kind in kinds if kind != "--push"]
    try:
        if unknown := set(kinds) - set(FOLDERS):
            raise InputError(f"there is no image {min(unknown)!r}; choose of {', '.join(FOLDERS)}.")
        wanted = ["base", *(kind for kind in FOLDERS if kind != "base" and (not kinds or kind in kinds))]
        engine = Engine.find()
        python = python_image(engine)
        with pip_configuration() as (secret, mounts):
            for kind in wanted:
                build(engine, kind, python, secret, mounts)
        if push:
            digests = {image(kind): engine.push(image(kind)) for kind in wanted}
            DIGESTS.parent.mkdir(exist_ok=True)
            write_json(DIGESTS, (read_json(DIGESTS) if DIGESTS.exists() else {}) | digests)
    except TesseraError as error:
        print(f"images: {error}", file=sys.stderr)
        return 2
    print("".join(f"{engine.size(image(kind)) / 1e6:>8.0f} MB  {image(kind)}\n" for kind in wanted), end="")
    return 0


def python_image(engine: Engine) -> str:
    """The image with Python to start from: the one chosen, the pinned one, else one made from Debian's packages.

    Raises:
        InputError: no registry answers, and this machine cannot make one.
    """
    if chosen := os.environ.get("TESSERA_IMAGE_PYTHON"):
        return chosen
    lines = (ROOT / "images" / "Containerfile.base").read_text(encoding="utf-8").splitlines()
    pinned = next(line.removeprefix(FROM_PYTHON) for line in lines if line.startswith(FROM_PYTHON))
    if engine.has(pinned) or engine.pull(pinned):
        return pinned
    print(f"images: {pinned} cannot be pulled; starting from Debian's own Python instead.", file=sys.stderr)
    if not engine.has(DEBIAN):
        try:
            subprocess.run([ROOT / "images" / "debian-base", engine.name, DEBIAN], check=True)
        except (OSError, subprocess.CalledProcessError):
            raise InputError(
                "no base image: the registry does not answer, and images/debian-base failed (it needs root, "
                "debootstrap and a Debian mirror); name an image with Python 3.11 in TESSERA_IMAGE_PYTHON."
            ) from None
    return DEBIAN


def build(engine: Engine, kind: str, python: str, secret: Path, mounts: list[Path]) -> None:
    """Build one image under its name.

    Raises:
        InputError: it could not be built.
    """
    start = {"PYTHON": python} if kind == "base" else {"BASE": engine.local(image("base"))}
    engine.build(
        ROOT / "images" / f"Containerfile.{kind}", ROOT, image(kind), start, labels(kind, python), secret, mounts
    )


def labels(kind: str, python: str) -> dict[str, str]:
    """What an image says of itself, in OCI's words."""
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    told = {
        "title": f"tessera-python-{kind}",
        "description": "Catalogue text, photos and purchase histories to a served generative recommender",
        "licenses": "Apache-2.0",
        "version": image(kind).rpartition(":")[2],
        "revision": revision,
        "base.name": python,
    }
    return {f"org.opencontainers.image.{name}": value for name, value in told.items() if value}


@contextmanager
def pip_configuration() -> Iterator[tuple[Path, list[Path]]]:
    """pip's settings on this machine as a file, and the local files and folders that they name."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = settings_of(said)
    with tempfile.TemporaryDirectory(prefix="tessera-pip-") as folder:
        path = Path(folder) / "pip.conf"
        path.write_text("".join(["[global]\n", *(f"{key} = {value}\n" for key, value in settings.items())]), "utf-8")
        yield path, local_paths(settings)


def settings_of(listed: str) -> dict[str, str]:
    """What `pip config list` says; variables come after files there, and go before them."""
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def local_paths(settings: Mapping[str, str]) -> list[Path]:
    """Indexes, folders of wheels, certificates and constraints that are on this machine."""

    def named(*keys: str) -> list[Path]:
        return [Path(word.removeprefix("file://")) for key in keys for word in settings.get(key, "").split()]

    # An index is a folder of pages that link to files beside it.
    indexes = [path.parent for path in named("index-url", "extra-index-url")]
    found = {*indexes, *named("find-links", "cert", "client-cert", "constraint")}
    return sorted(path for path in found if path.is_absolute() and path.exists())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
