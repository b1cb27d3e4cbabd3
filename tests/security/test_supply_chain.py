"""Every package that is installed anywhere is one whose files are known by their hashes."""

import re
from collections import Counter
from pathlib import Path

import pytest

from components.images import LOCKS, RECIPE, ROOT
from serving import triton_env

ALL = sorted({*ROOT.glob("*.lock"), *ROOT.glob("tests/*.lock"), triton_env.LOCK})


def requirements(lock: Path) -> list[str]:
    """The requirements of a lock file, each with its hashes on one line."""
    return lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("lock", ALL, ids=lambda path: path.name)
def test_every_package_is_pinned_with_hashes(lock: Path) -> None:
    assert requirements(lock)
    for line in requirements(lock):
        assert re.fullmatch(r"[\w.-]+==[^ ]+( ;[^#]*?)?( +--hash=sha256:[0-9a-f]{64})+", line), line[:80]


def test_all_locks_are_known() -> None:
    assert {path.name for path in ALL} == {*LOCKS, "models.lock", triton_env.LOCK.name}
    assert set(LOCKS) <= set(RECIPE)  # so that another hash makes another image


def test_tritons_environment_is_made_of_files_with_these_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(triton_env, "_call", calls.append)
    with pytest.raises(OSError):  # nothing was installed, so there is no program to go on with
        triton_env.ensure(tmp_path / "env")
    (install,) = (call for call in calls if "install" in call)
    assert {"--require-hashes", "--no-deps", str(triton_env.LOCK)} <= set(install)
    pinned = {line.split(" ")[0] for line in requirements(triton_env.LOCK)}
    assert pinned == {f"numpy=={triton_env.NUMPY}", f"nvidia-pytriton=={triton_env.PYTRITON}"}


@pytest.mark.parametrize("recipe", ["Makefile", "images/install"])
def test_recipes_install_nothing_else(recipe: str) -> None:
    """But for the project itself, which pip builds with what the lock file gave it."""
    text = (ROOT / recipe).read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if re.search(r"\bpip\b.* install\b|\$\(PIP\)|^ *pip ", line)]
    unchecked = [line.strip() for line in commands if "--require-hashes" not in line]
    allowed = {
        "Makefile": Counter({"-e": 1, "PIP :=": 1}),
        "images/install": Counter({"pip --python": 1, "pip install": 1}),  # functions that the checked one is behind
    }[recipe]
    found = Counter(key for line in unchecked for key in allowed if key in line)
    assert (found, len(unchecked)) == (allowed, sum(allowed.values()))


def test_torch_may_come_from_either_index() -> None:
    (both,) = (line for line in requirements(ROOT / "requirements.lock") if line.startswith("torch=="))
    (cpu,) = requirements(ROOT / "torch-cpu.lock")
    assert cpu.split(" ")[0] == both.split(" ")[0] + "+cpu"
    assert set(re.findall("[0-9a-f]{64}", cpu)) < set(re.findall("[0-9a-f]{64}", both))
