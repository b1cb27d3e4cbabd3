"""No flag, settings file or message carries a secret; what whole runs leave is searched in tests/pipelines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from components.stage import run_stage
from feature_repo.store import connect
from pipelines.cli import main
from serving.registry import Registry
from tessera.catalog.database import Catalogue
from tessera.config import Settings, from_json, load_settings, to_json
from tessera.errors import InputError, ServiceError, TesseraError
from tessera.secrets import hidden, holds_secret, public

SECRET = "hunter2-hunter3"
DATABASE = "TESSERA_CATALOGUE_URL"
HTTP = f"http://me:{SECRET}@127.0.0.1:9/v1"
TRAINING = ("run", "training", "--out=run")


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        ((*TRAINING, f"--catalogue.url=postgresql+psycopg://me:{SECRET}@127.0.0.1:9/shop"), DATABASE),
        ((*TRAINING, "--catalogue.url", f"postgresql+psycopg://127.0.0.1:9/shop?password={SECRET}"), DATABASE),
        ((*TRAINING, f"--catalogue.url=postgresql+psycopg://h/shop?sslpassword={SECRET}"), DATABASE),
        ((*TRAINING, f"--platform.mlflow-url={HTTP}"), "MLFLOW_TRACKING_PASSWORD"),
        ((*TRAINING, f"--platform.mlflow-url=http://{SECRET}@127.0.0.1:9"), "MLFLOW_TRACKING_PASSWORD"),
        ((*TRAINING, f"--platform.mlflow-url=postgresql://me:{SECRET}@127.0.0.1:9/mlflow"), "PGPASSWORD"),
        (("versions", "--mlflow-url", HTTP), "MLFLOW_TRACKING_PASSWORD"),
        (("promote", "--platform.mlflow-url", HTTP), "MLFLOW_TRACKING_PASSWORD"),
        ((*TRAINING, "--enrichment.base-url", HTTP), "OPENAI_API_KEY"),
        ((*TRAINING, f"--enrichment.base-url=https://models.example/v1?api_key={SECRET}"), "OPENAI_API_KEY"),
        ((*TRAINING, f"--enrichment.base-url=https://models.example/v1?api%5Fkey={SECRET}"), "OPENAI_API_KEY"),
        ((*TRAINING, f"--enrichment.api-key-env=sk-{SECRET}"), "OPENAI_API_KEY"),
        (("submit", "training", "--endpoint", HTTP), "TESSERA_KFP_TOKEN"),
        (("compile", "training", "-o", "x.yaml", "--catalogue.url", f"postgresql://a:{SECRET}@h/d"), DATABASE),
        (("serve", "--platform.replicas", "http://a:8000", HTTP), "leave it out"),
        ((*TRAINING, f"--no-such-flag={HTTP}"), "leave it out"),
    ],
)  # fmt: skip
def test_a_flag_with_a_secret_is_refused_by_the_variable_to_use(
    arguments: tuple[str, ...], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert variable in said.err
    assert said.err.count("\n") == 1
    assert SECRET not in said.err + said.out
    assert not [*tmp_path.rglob("*")]


@pytest.mark.parametrize("name", ["catalogue.url", "platform.mlflow_url", "enrichment.base_url"])
def test_a_settings_file_with_a_secret_is_refused(name: str, tmp_path: Path) -> None:
    section, field = name.split(".")
    settings = Settings()
    held = replace(settings, **{section: replace(getattr(settings, section), **{field: HTTP})})
    with pytest.raises(InputError, match=name) as caught:
        from_json(to_json(held))
    assert SECRET not in str(caught.value)
    (tmp_path / "settings.json").write_text(to_json(held))
    with pytest.raises(InputError, match=name):
        load_settings(tmp_path / "settings.json")


@given(st.text(min_size=1), st.sampled_from(["http", "https", "postgresql+psycopg", "mysql", "s3"]))
def test_no_password_is_overlooked_or_shown(password: str, scheme: str) -> None:
    url = URL.create(scheme, "user", "<" + password + ">", "host.example", 1, "name").render_as_string(False)
    assert holds_secret(url)
    assert public(url).endswith("***@host.example:1/name")


@pytest.mark.parametrize("url", [
    "", "postgresql+psycopg://user@host/shop", "sqlite:////home/a:b@c/x.db", "http://127.0.0.1:8080/v1", "me:word@host",
    "https://host:8080/a@b", "http://triton-{}.triton:8000", "postgresql://host/d?sslkey=/k&passfile=/p", "s3://bucket/k",
])  # fmt: skip
def test_urls_without_a_secret_are_taken(url: str) -> None:
    assert not holds_secret(url)
    assert public(url) == url


def test_mlflows_variable_with_an_account_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", HTTP)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME") as caught:
        Registry(tmp_path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", [
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/shop", f"postgresql+psycopg://127.0.0.1:9/shop?password={SECRET}",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/shop?{SECRET}=x", f"postgresql+psycopg://me:{SECRET}@{SECRET}/shop",
])  # fmt: skip
def test_a_database_that_fails_is_named_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CATALOGUE_URL", url)
    with pytest.raises(ServiceError) as caught:
        Catalogue(url).migrate()
    assert SECRET not in str(caught.value)


def test_what_a_step_says_has_no_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("FEAST_REDIS", f"127.0.0.1:9,password={SECRET},socket_timeout=1")
    monkeypatch.setenv("OPENAI_API_KEY", "a/key+with=signs")
    monkeypatch.setenv("TESSERA_CATALOGUE_URL", "postgresql://me:percent%2Fencoded@h/d")

    def fail() -> None:
        raise ServiceError(f"no answer: {SECRET}, a%2Fkey%2Bwith%3Dsigns, percent/encoded, percent%2Fencoded")

    with pytest.raises(SystemExit):
        run_stage("step", str(tmp_path / "stats"), fail)
    assert capsys.readouterr().err == "stage failed: no answer: ***, ***, ***, ***\n"


def test_the_traceback_of_a_step_has_none_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("FEAST_OFFLINE_PASSWORD", SECRET)

    def fail(what: str) -> None:
        raise ValueError(f"cannot read {what}")

    with pytest.raises(SystemExit):
        run_stage("step", str(tmp_path / "stats"), fail, SECRET)
    said = capsys.readouterr().err
    assert said.strip().endswith("ValueError: cannot read ***")
    assert SECRET not in said
    with pytest.raises(ValueError, match="the file"):
        run_stage("step", str(tmp_path / "stats"), fail, "the file")


def test_a_wrong_feature_store_is_told_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features.yaml").write_text("project: 7\nregistry: {path: 'postgresql://me:${FEAST_OFFLINE_PASSWORD}@h'}")
    monkeypatch.setenv("TESSERA_FEATURE_STORE", str(tmp_path / "features.yaml"))
    monkeypatch.setenv("FEAST_OFFLINE_PASSWORD", SECRET)
    with pytest.raises(TesseraError) as caught:
        connect(tmp_path)
    assert SECRET not in str(caught.value)


def test_ordinary_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("SOME_PASSWORD", "")
    assert hidden("it is true") == "it is true"
