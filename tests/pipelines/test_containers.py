"""Which runner is taken, without an engine; runs in containers are tested with the images."""

from pathlib import Path

import pytest

from pipelines import containers
from tessera.errors import InputError


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(containers.VARIABLE, raising=False)
    assert not containers.wanted()
    monkeypatch.setenv(containers.VARIABLE, "containers")
    assert containers.wanted()
    monkeypatch.setenv(containers.VARIABLE, "docker")
    with pytest.raises(InputError, match=r"'docker'.*subprocess.*containers"):
        containers.wanted()


def test_no_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(InputError, match=r"no container engine answers.*DOCKER_HOST"):
        containers.runner([tmp_path])
