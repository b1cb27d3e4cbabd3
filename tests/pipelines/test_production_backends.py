"""The same run on the embedded backends and on servers: PostgreSQL, Redis, MLflow with accounts, an object store."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from feature_repo.store import feast_folder
from pipelines.cli import main
from serving.registry import Registry
from tessera.bundle import load_manifest
from tessera.errors import ServiceError
from tessera.files import read_json
from tessera.schema import read_table

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1200)]
TIMELESS = {"seconds", "model_calls", "reused", "reused_steps"}


@pytest.fixture
def servers(on_servers: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The run on servers, whose variables are this process's, too."""
    for name, value in on_servers[1].items():
        monkeypatch.setenv(name, value)
    return on_servers[0]


def bucket(store: dict[str, str]) -> set[str]:
    """Keys in the object store."""
    import boto3

    account = {"aws_access_key_id": store["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": store["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"], region_name="us-east-1", **account)
    return {one["Key"] for one in client.list_objects_v2(Bucket="tessera").get("Contents", [])}


def test_sids_bundles_and_metrics_are_those_of_the_embedded_run(calm: Any, servers: Any) -> None:
    assert servers.sids == calm.sids
    assert servers.versions == calm.versions
    embedded, produced = ({k: v for k, v in one.metrics.items() if k not in TIMELESS} for one in (calm, servers))
    assert produced == embedded
    assert servers.metrics["model_calls"] == calm.metrics["model_calls"]


def test_nothing_is_left_to_files_that_servers_keep(servers: Any) -> None:
    assert not [*servers.home.rglob("*.db")]
    assert not (servers.home / "mlartifacts").exists()


def test_the_ledger_holds_the_same_answers(calm: Any, on_servers: Any) -> None:
    names = "kind, item_id, content_hash, model, prompt_version, status, length(payload)"
    engine = create_engine(on_servers[1]["TESSERA_CATALOGUE_URL"])
    with engine.connect() as connection:
        rows = sorted(map(tuple, connection.execute(text(f"SELECT {names} FROM enrichments"))))
    engine.dispose()
    assert rows == sorted(row[:6] + row[7:] for row in calm.ledger())


def test_the_registry_has_the_release_and_the_object_store_its_bundles(
    servers: Any, object_store: dict[str, str], tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "another")
    champion = registry.resolve("champion")
    assert (champion.bundle_version, champion.tokenizer_version) == (servers.versions[1], servers.versions[0])
    assert load_manifest(registry.download("sid-policy", "champion"), "policy").version == servers.versions[1]
    assert {path.name for path in registry.artefacts(champion, "features").iterdir()} >= {"sids.parquet"}
    stored = bucket(object_store)
    assert any(key.endswith("model.safetensors") for key in stored), stored
    assert all(key.startswith("mlflow/") for key in stored)


@pytest.mark.usefixtures("servers")
def test_another_account_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    with pytest.raises(ServiceError, match=r"MLflow registry at http.* refused") as caught:
        Registry(tmp_path / "home")
    assert "another-password" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lookups_say_what_the_embedded_ones_say(
    calm: Any, servers: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    item, sid = next(iter(calm.sids.items()))
    user = read_table("splits", calm.out / "catalogue" / "splits.parquet")["user_id"][0].as_py()

    def told(home: Path) -> list[Any]:
        answers = []
        for kind, key in (("item", item), ("sid", sid), ("user", user)):
            capsys.readouterr()
            main(["lookup", kind, key, f"--home={home}"])
            answers.append(json.loads(capsys.readouterr().out))
        return answers

    produced = told(servers.home)
    for name in ("FEAST_REGISTRY_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name)
    assert produced == told(calm.home)
    said = read_json(feast_folder(servers.home) / "published.json")
    assert said["policy_version"] == servers.versions[1]
