"""A follower in trouble: what cannot be had, a full disk, a Triton that stops answering; without any server."""

import errno
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import sync
from serving.probe import Served
from serving.registry import Version
from serving.sync import Follower
from tessera.errors import ServiceError

OLD = Served("policy", "index")
ASSIGNED = Version("sid-policy", "2", "another", "tokenizer", (), {}, datetime.now(timezone.utc), None)


class Triton:
    """Answers with what is in `served`, if anything."""

    served: Served | None = OLD

    def ask(self, *_: object) -> Served:
        if self.served is None:
            raise ServiceError("no Triton server answers.")
        return self.served


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    triton = Triton()
    monkeypatch.setattr(sync, "ask", triton.ask)
    monkeypatch.setattr(sync, "assigned", lambda *_: ASSIGNED)
    return triton


def follower(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Follower:
    """Is assigned a version, and fails with an error to bring it."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Follower, "_install", fail)
    registry: Any = SimpleNamespace(home=folder)
    return Follower(lambda: registry, 0, folder / "models", "http://triton:8000")


def test_what_triton_answers_with_is_told_although_another_version_cannot_be_had(
    triton: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follower(tmp_path, ServiceError("the artefacts cannot be had."), monkeypatch)
    assert one.look() == "absent"
    assert (one.seen.serving, one.seen.in_place, one.seen.failures) == (OLD, False, 1)
    triton.served = None
    assert one.look() == "absent"
    assert (one.seen.serving, one.seen.failures) == (None, 1)  # and not tried again at once
    triton.served = OLD

    def away(*_: object) -> None:
        raise ServiceError("the registry is away.")

    monkeypatch.setattr(sync, "assigned", away)
    one.look()
    assert (one.seen.serving, one.seen.registry_up) == (OLD, False)


@pytest.mark.usefixtures("triton")
def test_a_full_disk_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = follower(tmp_path, OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with caplog.at_level("INFO", "tessera.sync"):
        assert one.look() == "absent"
    assert one.seen.failures == 1
    assert "version 2 could not be brought to serve: [Errno 28] No space left on device" in caplog.text
