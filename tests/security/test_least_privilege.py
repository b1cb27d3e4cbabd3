"""What each account may do: who serves reads the registry, and changes nothing in it."""

import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException

from serving.aliases import POLICY
from serving.canary import assigned
from serving.registry import Registry
from serving.sync import Follower
from tessera.config import TokenizerSettings
from tessera.tokenizer.bundle import Tokenizer, build

pytestmark = pytest.mark.integration


def become(account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in account.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def champion(
    mlflow_server: dict[str, str], make_policy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Bundle version of a champion, registered and promoted by the writer."""
    torch.manual_seed(0)
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    tokenizer = Tokenizer(build(settings, 4, 3), settings)
    tokenizer.save(tmp_path / "tokenizer", {}, "made by a test")
    policy = make_policy(tmp_path / "policy", version=tokenizer.version)
    become(mlflow_server, monkeypatch)
    registry = Registry(tmp_path / "writer")
    registry.register_tokenizer(tmp_path / "tokenizer")
    version = registry.promote(registry.register_policy(policy))
    return version.bundle_version


def test_a_sidecar_serves_what_it_reads_and_changes_nothing_in_the_registry(
    champion: str, mlflow_reader: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(mlflow_reader, monkeypatch)
    follower = Follower(lambda: Registry(tmp_path / "sync"), 0, tmp_path / "models")
    assert follower.look() == "waiting"  # the release is in the repository, and no Triton was started here
    registry = Registry(tmp_path / "reader")
    found = assigned(registry, 0)
    assert found is not None
    assert found.bundle_version == champion
    number, client = found.version, registry.client
    uploaded = f"{mlflow_reader['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/artifacts/"
    kept = client.get_model_version(POLICY, number).source
    before = registry.named("champion")
    attempts: dict[str, Callable[[], Any]] = {
        "move the champion": lambda: client.set_registered_model_alias(POLICY, "champion", number),
        "take the champion away": lambda: client.delete_registered_model_alias(POLICY, "champion"),
        "announce a canary": lambda: client.set_model_version_tag(POLICY, number, "canary_share", "1"),
        "say what a bundle is": lambda: client.set_model_version_tag(POLICY, number, "bundle_version", "another"),
        "add a version": lambda: client.create_model_version(POLICY, kept),
        "remove a version": lambda: client.delete_model_version(POLICY, number),
        "remove a model": lambda: client.delete_registered_model(POLICY),
        "log a run": lambda: client.create_run(registry.experiment),
        "write into a run": lambda: client.log_metric(found.run_id, "hr@10", 1.0),
        "replace a bundle": lambda: _put(f"{uploaded}{registry.experiment}/models/any/manifest.json", mlflow_reader),
    }
    answers = {what: _outcome(attempt) for what, attempt in attempts.items()}
    assert answers == dict.fromkeys(attempts, "refused")
    assert registry.named("champion") == before


def _outcome(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (MlflowException, urllib.error.HTTPError) as error:
        said = f"{getattr(error, 'error_code', '')} {error}"
        return "refused" if "PERMISSION_DENIED" in said or "403" in said else said
    return "done"


def _put(url: str, account: dict[str, str]) -> None:
    pair = f"{account['MLFLOW_TRACKING_USERNAME']}:{account['MLFLOW_TRACKING_PASSWORD']}".encode()
    headers = {"Authorization": f"Basic {b64encode(pair).decode()}"}
    urllib.request.urlopen(urllib.request.Request(url, b"planted", headers, method="PUT"), timeout=30).close()


def test_nobody_reads_without_an_account(mlflow_server: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{mlflow_server['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/search")
