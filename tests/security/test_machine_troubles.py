"""The machine's ordinary troubles are one sentence and an exit status, in commands and in steps."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kfp import dsl

from pipelines import local
from tessera.config import Settings
from tessera.errors import TesseraError
from tessera.troubles import sentence

TESSERA = Path(sys.executable).with_name("tessera")


def may_mount() -> bool:
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or not may_mount(), reason="file systems may not be mounted here"
)


def mounted(mount: str, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command in a mount namespace of its own, after the shell line `mount`."""
    line = ["unshare", "-m", "sh", "-ec", f'{mount}; exec "$@"', "sh", *command]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def read_only(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command on a home that is mounted read-only: root ignores permissions."""
    mount = f"mount --bind '{home}' '{home}'; mount -o remount,bind,ro '{home}'"
    return mounted(mount, [str(TESSERA), *arguments, f"--home={home}"])


def assert_told(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another connection is in the midst of a write."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.integration
@needs_mounts
def test_reading_commands_work_on_a_read_only_home(made_home: Path) -> None:
    usual = subprocess.run(
        [str(TESSERA), "versions", f"--home={made_home}"], capture_output=True, text=True, check=True
    )
    files = sorted(path for path in made_home.rglob("*") if not path.name.endswith(("-shm", "-wal")))
    versions = read_only(made_home, "versions")
    assert (versions.returncode, versions.stdout) == (0, usual.stdout), versions.stderr
    for kind, key, found in (("item", "item3", "3_0_0"), ("sid", "3_0_0", "item3"), ("user", "ann", "item1")):
        done = read_only(made_home, "lookup", kind, key)
        assert done.returncode == 0, done.stderr
        assert found in done.stdout
    assert files == sorted(path for path in made_home.rglob("*") if not path.name.endswith(("-shm", "-wal")))


@pytest.mark.integration
@needs_mounts
def test_writing_commands_on_a_read_only_home_say_so(made_home: Path) -> None:
    assert_told(read_only(made_home, "promote", "2"), str(made_home), "read-only")


@pytest.mark.integration
@needs_mounts
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [str(TESSERA), "run", "tokenization", f"--out={out}", f"--platform.home={out}/home", "--shop.items=300"]
    done = mounted(f"mount -t tmpfs -o size=256k none '{out}'", command)
    assert_told(done, str(out), "disk is full", "free some space")


@pytest.mark.integration
def test_a_locked_database_is_named(made_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(made_home, home)
    with locked(home / "mlflow.db"):
        done = subprocess.run(
            [str(TESSERA), "versions", f"--home={home}"], capture_output=True, text=True, check=False, timeout=240
        )
    assert_told(done, str(home / "mlflow.db"), "locked by another process", "try again")


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["versions"], ["--help"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(arguments: list[str], made_home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        home = {"TESSERA_HOME": str(made_home)}
        command = [str(TESSERA), *arguments]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, env=os.environ | home, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("MemoryError()", "memory is not enough"),
        ("OSError(28, 'No space left on device', '/data/x')", "disk is full at /data/x"),
        ("OSError(30, 'Read-only file system', '/data/x')", "/data/x is on a read-only file system"),
        ("PermissionError(13, 'Permission denied', '/data/x')", "/data/x may not be used by this user"),
        ("OSError(24, 'Too many open files', '/data/x')", "too many files are open, the last was /data/x"),
        ("sqlite3.OperationalError('database or disk is full')", "disk is full"),
        ("sqlite3.OperationalError('attempt to write a readonly database')", "is read-only"),
    ],
)
def test_a_step_tells_each_trouble_in_a_sentence(raised: str, said: str, tmp_path: Path) -> None:
    code = f"""
import sqlite3
from components.stage import run_stage
def fail():
    raise {raised}
run_stage("ingest", {str(tmp_path / "stats")!r}, fail)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_told(done, "stage failed: ", said)


def test_other_errors_are_no_trouble_of_the_machine() -> None:
    for error in (KeyError("x"), ValueError("database is locked"), ConnectionResetError(errno.ECONNRESET, "reset")):
        assert sentence(error) is None
    defect = KeyError("in a handler")
    defect.__context__ = OSError(errno.ENOSPC, "full", "/x")
    assert sentence(defect) is None


@dsl.component(install_kfp_package=False)
def fail(how: str) -> None:
    """A step with a defect, or one that the system ends."""
    import os
    import signal

    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError("colour")


@dsl.pipeline(name="fails")
def fails(how: str) -> None:
    fail(how=how)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("how", "said"), [("traceback", r"step 'fail' failed: .*defect.* KeyError: 'colour'\. "), ("signal", "by a signal")]
)
def test_a_traceback_is_told_from_an_end_by_a_signal(how: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TesseraError, match=said) as told:
        local.run(fails, {"how": how}, Settings(), tmp_path)
    assert ("memory" in str(told.value)) == (how == "signal")
