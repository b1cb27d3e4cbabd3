"""The process that runs the policy dies: who starts the server hears of it, although Triton waits for ever."""

import dataclasses
from pathlib import Path

import pytest

from serving import control, server, triton_env
from serving.model_repository import export
from serving.server import TritonServer
from serving.triton_env import TritonEnvironment
from tessera.errors import ServiceError

pytestmark = pytest.mark.integration


class Doomed(TritonEnvironment):
    """The real server, whose backend starts another program as the model's process."""

    triton = Path()


@pytest.fixture
def doomed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = triton_env.ensure()
    folder, backend = tmp_path / "triton", tmp_path / "triton" / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("bin", "caches"):
        (folder / name).symlink_to(real.triton / name)
    for path in real.stub.parent.iterdir():
        if path != real.stub:
            (backend / path.name).symlink_to(path)
    stub = backend / real.stub.name
    stub.write_text("#!/bin/sh\nkill -9 $$\n")
    stub.chmod(0o755)
    environment = Doomed(**{one.name: getattr(real, one.name) for one in dataclasses.fields(real)})
    monkeypatch.setattr(Doomed, "triton", folder)
    monkeypatch.setattr(triton_env, "ensure", lambda: environment)


@pytest.mark.usefixtures("doomed")
def test_a_start_whose_stub_dies_fails_in_seconds(
    policy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DEAD_S", 3.0)
    export(policy_bundle, tmp_path / "models", threads=1, workers=1)
    started = TritonServer(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0, startup_s=60)
    with pytest.raises(ServiceError, match="the policy's process died while the Triton server started"):
        started.start()
    assert started.pid is None
    assert not (tmp_path / control.FILE).exists()
