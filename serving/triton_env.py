"""The environment of the embedded Triton server: a real tritonserver from a wheel, for machines without containers.

The server's Python backend needs numpy 1 (its stub reads numeric inputs as zeros under numpy 2), so it gets a small
environment of its own that borrows everything else from the main one. Run `python -m serving.triton_env` to make it;
production uses the vendor's container with the same model repository instead.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tessera
from tessera.errors import InputError, ServiceError
from tessera.files import read_json, write_json, write_text

NUMPY, PYTRITON = "1.26.4", "0.7.0"
LOCK = Path(__file__).resolve().with_name("triton-requirements.lock")  # these two, with the hashes of their files
PYTHONS, GLIBC = ((3, 10), (3, 11), (3, 12)), (2, 35)
STAMP = "tessera.json"
CONTAINER = "run the vendor's Triton container with the same model repository instead (see serving/README.md)"


@dataclass(frozen=True)
class TritonEnvironment:
    """A finished environment; `libpython` is the folder of the shared Python library that the backend's stub links."""

    root: Path
    libpython: Path

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return self.root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def triton(self) -> Path:
        """Folder of the server's program, backends and caches."""
        return self.site / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        """The tritonserver program."""
        return self.triton / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The Python backend's child program, of the running Python's version."""
        return self.triton / "backends" / "python" / "triton_python_backend_stub"

    def variables(self) -> dict[str, str]:
        """Environment variables of the server process; the stub finds its Python as `python3` on PATH."""
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        libraries = [str(self.libpython), str(self.site / "nvidia_pytriton.libs"), inherited]
        return {
            # Threads that spin while they wait for work stall the server wherever another process wants a core.
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "PATH": os.pathsep.join([str(self.root / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        }


def default_root() -> Path:
    """TESSERA_TRITON_ENV, else `.venv-triton` in the checkout, else in the current folder."""
    if chosen := os.environ.get("TESSERA_TRITON_ENV"):
        return Path(chosen).absolute()
    checkout = _project_root()
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / ".venv-triton"


def ensure(root: Path | None = None) -> TritonEnvironment:
    """Return the environment in `root`, made first if it is absent, half made, or of other versions.

    Raises:
        ServiceError: this platform cannot run the embedded server, or the installation failed.
    """
    root = root or default_root()
    environment = TritonEnvironment(root, _check_platform())
    wanted = _wanted()
    if _is_finished(environment, wanted):
        return environment
    with _locked(root.parent):
        if not _is_finished(environment, wanted):  # another process may have made it while this one waited
            _make(environment, wanted)
    return environment


def _project_root() -> Path:
    return Path(tessera.__file__).resolve().parent.parent


def _wanted() -> dict[str, Any]:
    """What the stamp must say; another Python, checkout or pinned version means the environment is made anew."""
    paths = sysconfig.get_paths()
    return {
        "python": platform.python_version(),
        "numpy": NUMPY,
        "pytriton": PYTRITON,
        # A .pth file inside a folder that a .pth file adds is not processed, so an editable install of the project
        # would go unseen: its root is named as well.
        "paths": list(dict.fromkeys([paths["purelib"], paths["platlib"], str(_project_root())])),
    }


def _is_finished(environment: TritonEnvironment, wanted: dict[str, Any]) -> bool:
    try:
        stamp = read_json(environment.root / STAMP)
    except (InputError, OSError):
        return False
    programs = (environment.server, environment.stub, environment.root / "bin" / "python3")
    return stamp == wanted and all(os.access(program, os.X_OK) for program in programs)


def _make(environment: TritonEnvironment, wanted: dict[str, Any]) -> None:
    root = environment.root
    if root.exists() and not (root / "pyvenv.cfg").is_file() and any(root.iterdir()):
        raise ServiceError(f"{root} exists and is no Python environment; remove it or set TESSERA_TRITON_ENV.")
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    print(f"making the embedded Triton server's environment in {root} (once, about 120 MB) ...", file=sys.stderr)
    _call([sys.executable, "-m", "venv", str(root)])
    pip = [str(root / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    _call([*pip, "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)])
    write_text(environment.site / "zz_main.pth", "\n".join(wanted["paths"]) + "\n")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(environment.triton / "python_backend_stubs" / version / environment.stub.name, environment.stub)
    for program in (environment.server, environment.stub):
        program.chmod(program.stat().st_mode | 0o111)
    write_json(root / STAMP, wanted)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ServiceError(f"the embedded Triton server could not be installed ({said}); try again or {CONTAINER}.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, so that two runs do not make the same environment at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check_platform() -> Path:
    """Return the folder of libpython, or say why the embedded server cannot run here."""
    problem = ""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        problem = f"it needs Linux on x86_64, this is {sys.platform} on {platform.machine()}"
    elif sys.version_info[:2] not in PYTHONS:
        problem = f"it needs Python 3.10 to 3.12, this is {platform.python_version()}"
    elif not _glibc_is_new_enough():
        found = " ".join(platform.libc_ver()).strip() or "none"
        problem = f"it needs glibc {GLIBC[0]}.{GLIBC[1]} or newer, this is {found}"
    else:
        library = _libpython()
        if library:
            return library
        problem = "it needs a Python with a shared library (libpython3.so), and this one was built without"
    raise ServiceError(f"the embedded Triton server cannot run here: {problem}; {CONTAINER}.")


def _glibc_is_new_enough() -> bool:
    name, version = platform.libc_ver()
    try:
        return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= GLIBC
    except ValueError:
        return False


def _libpython() -> Path | None:
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    folders = [Path(sys.base_prefix) / "lib", libdir, libdir / multiarch, Path("/usr/lib") / multiarch]
    return next((folder for folder in [*folders, Path("/usr/lib64")] if (folder / name).is_file()), None)


def main() -> int:
    """Make the environment, or say in one sentence why not."""
    try:
        environment = ensure()
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"environment": str(environment.root), "tritonserver": str(environment.server)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
