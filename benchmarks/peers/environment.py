"""The environment of the peers: RecBole needs numpy 1, so it gets a folder of its own that borrows torch from this one.

    make bench-setup        or: python -m benchmarks.peers.environment

It lies in `.venv-recbole` (or TESSERA_RECBOLE_ENV), about 350 MB. Nothing else needs it, and no test makes it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tessera.errors import InputError, ServiceError
from tessera.files import read_json, sha256_file, write_json, write_text

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
STAMP = "tessera.json"
NOT_INSTALLED = "not installed: make bench-setup"


def default_root() -> Path:
    """TESSERA_RECBOLE_ENV, else `.venv-recbole` in the checkout."""
    chosen = os.environ.get("TESSERA_RECBOLE_ENV", "")
    return Path(chosen or Path(__file__).resolve().parents[2] / ".venv-recbole").absolute()


def find(root: Path | None = None) -> Path | None:
    """The Python of a finished environment of the pinned versions, None without one."""
    root = root or default_root()
    try:
        stamp = read_json(root / STAMP)
    except (InputError, OSError):
        return None
    python = root / "bin" / "python"
    return python if stamp == _wanted() and os.access(python, os.X_OK) else None


def ensure(root: Path | None = None) -> Path:
    """Return the Python of the environment, made first if it is absent, half made, or of other versions.

    Raises:
        ServiceError: the packages could not be installed, or the folder is something else.
    """
    root = root or default_root()
    if python := find(root):
        return python
    if root.exists() and not (root / "pyvenv.cfg").is_file() and any(root.iterdir()):
        raise ServiceError(f"{root} exists and is no Python environment; remove it or set TESSERA_RECBOLE_ENV.")
    shutil.rmtree(root, ignore_errors=True)
    print(f"making RecBole's environment in {root} (once, about 350 MB) ...", file=sys.stderr)
    _call([sys.executable, "-m", "venv", str(root)])
    python = root / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    _call([*pip, "-r", str(REQUIREMENTS)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # The folder's own packages come first, then the borrowed ones.
    write_text(root / "lib" / version / "site-packages" / "zz_main.pth", "\n".join(_borrowed()) + "\n")
    _call([str(python), "-W", "ignore", "-c", "import recbole.trainer, recbole.data.utils"])
    write_json(root / STAMP, _wanted())
    return python


def _wanted() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "requirements": sha256_file(REQUIREMENTS),
        "borrowed": os.pathsep.join(_borrowed()),
    }


def _borrowed() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ServiceError(f"RecBole's environment could not be made ({said}); try `make bench-setup` again.")


def main() -> int:
    """Make the environment, or say in one sentence why not."""
    try:
        python = ensure()
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"python": str(python)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
