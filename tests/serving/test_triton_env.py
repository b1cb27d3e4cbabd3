"""The embedded server's environment: made once, made anew when half made, refused where it cannot run."""

import json
import platform
import subprocess
import time
from pathlib import Path

import pytest

from serving import triton_env
from tessera.errors import ServiceError


def test_a_finished_environment_is_returned_at_once_and_has_what_the_server_needs() -> None:
    environment = triton_env.ensure()
    started = time.monotonic()
    assert triton_env.ensure() == environment
    assert time.monotonic() - started < 1
    script = "import numpy, torch, tessera, serving; print(numpy.__version__)"
    command = [environment.root / "bin" / "python3", "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert said.stdout.strip() == triton_env.NUMPY
    assert environment.variables()["PATH"].startswith(str(environment.root / "bin"))


def test_a_broken_or_outdated_environment_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fail(command: list[str]) -> None:
        calls.append(command)
        raise ServiceError("no network")

    good = triton_env.ensure()
    monkeypatch.setattr(triton_env, "_call", fail)
    stamp = json.loads((good.root / triton_env.STAMP).read_text())
    for written in (None, "{", json.dumps(stamp | {"numpy": "1.0"}), json.dumps(stamp)):
        root = tmp_path / "env"
        root.mkdir()
        (root / "pyvenv.cfg").touch()
        if written is not None:
            (root / triton_env.STAMP).write_text(written)
        with pytest.raises(ServiceError, match="no network"):
            triton_env.ensure(root)
        assert not root.exists()  # what was half made is gone
    assert len(calls) == 4


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ServiceError, match="is no Python environment; remove it or set TESSERA_TRITON_ENV"):
        triton_env.ensure(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_the_place_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSERA_TRITON_ENV", str(tmp_path / "elsewhere"))
    assert triton_env.default_root() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (platform, "machine", lambda: "aarch64", "needs Linux on x86_64"),
        (platform, "libc_ver", lambda: ("glibc", "2.31"), "needs glibc 2.35 or newer, this is glibc 2.31"),
        (platform, "libc_ver", lambda: ("", ""), "this is none"),
        (triton_env, "_libpython", lambda: None, "needs a Python with a shared library"),
        (triton_env, "PYTHONS", ((3, 9),), "needs Python 3.10 to 3.12"),
    ],
)
def test_other_platforms_are_sent_to_the_container(
    module: object, name: str, value: object, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(ServiceError, match=rf"{reason}.*; run the vendor's Triton container"):
        triton_env.ensure(tmp_path / "env")
