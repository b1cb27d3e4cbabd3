"""After whole runs no secret of their environment is in any file, page, log, database, MLflow record or object."""

import base64
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from serving.registry import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1200)]
KEYS = ("server.key", "control.key")
"""The files of a home that are a key, readable by their owner alone."""


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it is, as URLs write it, and as it stands inside base64, wherever it begins there."""
    yield from {one.encode() for one in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret))}
    for before, start in ((0, 0), (1, 2), (2, 3)):
        coded = base64.b64encode(bytes(before) + secret.encode()).rstrip(b"=")
        yield coded[start : -1 if (before + len(secret.encode())) % 3 else None]


def holding(places: Iterable[tuple[str, bytes]], secrets: Iterable[str]) -> list[str]:
    """The places that hold a secret in any form, each named with the secret."""
    wanted = [(secret, list(forms(secret))) for secret in secrets]
    return [
        f"{name}: {secret}"
        for name, data in places
        for secret, written in wanted
        if any(one in data for one in written)
    ]


def files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if path.is_file() and path.name not in KEYS:
                yield str(path), path.read_bytes()


def keys(home: Path) -> list[str]:
    """The home's keys, of which no other user may read the file."""
    found = [path for path in home.rglob("*.key") if path.is_file()]
    assert {path.name for path in found} <= set(KEYS)
    assert not [path for path in found if stat.S_IMODE(path.stat().st_mode) != 0o600]
    return [path.read_text().strip() for path in found]


def databases(server: str) -> Iterator[tuple[str, bytes]]:
    """Every row of every table on a PostgreSQL server: catalogue and ledger, Feast's registry and log, MLflow's own."""
    admin = create_engine(server)
    with admin.connect() as connection:
        names = connection.scalars(text("SELECT datname FROM pg_database WHERE NOT datistemplate")).all()
    admin.dispose()
    for name in names:
        engine = create_engine(make_url(server).set(database=name))
        with engine.connect() as connection:
            for table in inspect(engine).get_table_names():
                for row in connection.execute(text(f'SELECT * FROM "{table}"')):
                    yield f"{name}.{table}", b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
        engine.dispose()


def objects(store: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    import boto3

    account = {"aws_access_key_id": store["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": store["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"], region_name="us-east-1", **account)
    for one in client.list_objects_v2(Bucket="tessera").get("Contents", []):
        yield one["Key"], client.get_object(Bucket="tessera", Key=one["Key"])["Body"].read()


def records(home: Path) -> Iterator[tuple[str, bytes]]:
    """What MLflow tells of runs and versions over its API."""
    registry = Registry(home)
    for run in registry.client.search_runs([registry.experiment]):
        yield f"run {run.info.run_id}", str(run.to_dictionary()).encode()
    for version in registry.versions():
        yield f"version {version.version}", str(version).encode()


def hook(secrets: Mapping[str, str]) -> list[str]:
    """The secrets as they would be looked for: of a webhook, what it has behind the host."""
    return [value.rpartition("/hooks/")[2] for value in secrets.values()]


def test_every_form_is_found() -> None:
    secret = "seeded/one+two three"
    for number in range(4):
        data = b"x" * number + secret.encode()
        assert holding([("plain", b"--" + data), ("coded", base64.b64encode(data + b"yz"))], [secret]) == [
            f"plain: {secret}", f"coded: {secret}",
        ]  # fmt: skip
    assert holding([("url", quote(secret, safe="").encode()), ("other", b"seeded")], [secret]) == [f"url: {secret}"]


def test_an_embedded_run_leaves_none(calm: Any, command_secrets: dict[str, str]) -> None:
    secrets = [*hook(command_secrets), *keys(calm.home)]
    found = [*files(calm.out, calm.home, calm.out.parent.with_suffix(".log")), *records(calm.home)]
    assert len(found) > 100
    assert holding(found, secrets) == []


def test_a_run_on_servers_leaves_none(
    on_servers: Any, postgres: str, object_store: dict[str, str], command_secrets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    platform, chosen = on_servers
    seeded = hook(command_secrets) + [value for name, value in chosen.items() if name.endswith("PASSWORD")]
    seeded += [make_url(chosen[name]).password for name in ("TESSERA_CATALOGUE_URL", "FEAST_REGISTRY_URL")]
    seeded += [chosen["FEAST_REDIS"].rpartition("password=")[2], object_store["AWS_SECRET_ACCESS_KEY"]]
    seeded += keys(platform.home)
    assert len(seeded) >= 9
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    left = [*files(platform.out, platform.home, platform.out.parent / "run.log")]
    rows, told, stored = [*databases(postgres)], [*records(tmp_path)], [*objects(object_store)]
    assert {"runs", "params", "enrichments"} <= {name.partition(".")[2] for name, _ in rows}
    assert min(map(len, (left, told, stored))) > 2
    assert holding([*left, *rows, *told, *stored], seeded) == []
