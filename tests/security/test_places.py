"""Homes in other places: moved and copied ones keep to themselves, and a path is never read as anything else."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_repo import store
from pipelines import local
from pipelines.cli import main
from serving.registry import Registry
from tessera.catalog.engine import open_engine
from tessera.config import Settings, catalogue_url
from tessera.errors import InputError

NAMES = ("a b", "a: b # [c] {z} 'q' ü 日本 😀 &;.")


@pytest.fixture(scope="module")
def original(registered: tuple[Path, Registry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tokenizer and the policies 1 and 2."""
    home = tmp_path_factory.mktemp("original") / "a home"
    shutil.copytree(registered[0] / "home", home)
    Registry(home).versions()
    return home


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".registry.lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_copy_reads_and_writes_its_own_files_alone(
    original: Path, tmp_path: Path, make_policy: Callable[..., Path]
) -> None:
    before, copy = hashes(original), tmp_path / "copy"
    shutil.copytree(original, copy)
    registry = Registry(copy)
    registry.promote("1")
    registry.promote("2")
    assert registry.rollback().version == "1"
    assert all(copy in registry.bundle(version).parents for version in registry.versions())
    tokenizer = registry.resolve("champion").tokenizer_version
    number = registry.register_policy(make_policy(tmp_path / "p", seed=9, version=tokenizer))
    assert copy in registry.download("sid-policy", number).parents
    assert hashes(original) == before


def test_a_home_that_was_moved_works_without_its_old_place(original: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "then here"
    shutil.copytree(original, first)
    Registry(first).promote("1")
    first.rename(second)
    assert second in Registry(second).download("sid-policy", "champion").parents
    assert not first.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_only_a_path(name: str, original: Path, tmp_path: Path) -> None:
    home = tmp_path / name / "home"
    shutil.copytree(original, home)
    registry = Registry(home)
    assert home in registry.bundle(registry.resolve("1")).parents
    with open_engine(catalogue_url(Settings(), home)).connect():
        assert (home / "catalogue.db").is_file()
    with store.publishing(home):
        assert Path(store._settings(home)["online_store"]["path"]) == home / "feast" / "online.db"
        store.connect(home)
    assert (home / "feast" / "registry.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_password_is_only_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a variable in Feast's settings is no part of their YAML; a number without quotes is one."""
    password = 'pa"ss\\word: {x} #[ \'y\' $z'
    registry = "postgresql+psycopg://tessera@db/tessera"
    variables = {"REGISTRY_URL": registry, "OFFLINE_PASSWORD": password, "OFFLINE_PORT": "5432", "OFFLINE_HOST": "1.5"}
    others = ("OFFLINE_DATABASE", "OFFLINE_USER", "OFFLINE_SSLMODE", "REDIS")
    for name, value in (variables | dict.fromkeys(others, "x")).items():
        monkeypatch.setenv(f"FEAST_{name}", value)
    settings = store._settings(tmp_path)
    assert settings["registry"]["path"] == registry
    offline = settings["offline_store"]
    assert (offline["password"], offline["port"], offline["host"]) == (password, 5432, "1.5")


@pytest.mark.parametrize("name", ["a?b", "a%20b", 'a"b', "a\\b", "${HOME}", "a\nb", "a\x1bb"])
def test_a_path_that_cannot_work_is_refused_by_the_first_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit):
        main(["versions", "--home", str(tmp_path / name)])
    assert "choose a folder without" in capsys.readouterr().err
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / name))
    with pytest.raises(InputError, match="choose a folder without"):
        local.home_of(Settings())
