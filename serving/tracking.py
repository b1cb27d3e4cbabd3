"""The connection to MLflow, made quiet and offline, and runs with parameters, curves and artefacts."""

import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tessera import secrets
from tessera.errors import InputError, ServiceError
from tessera.proxies import detour
from tessera.secrets import hidden, public
from tessera.troubles import sentence

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "tessera"
DATABASE = "mlflow.db"
Curves = Mapping[str, Sequence[tuple[int, float]]]


def default_url(home: Path) -> str:
    """The MLflow server that MLFLOW_TRACKING_URI names, else the SQLite database of a platform home.

    Only a server: MLflow itself writes the databases that a process has opened into that variable.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    secrets.refuse("MLFLOW_TRACKING_URI", named)
    return named if named.startswith("http") else embedded_url(home)


def embedded_url(home: Path) -> str:
    """The SQLite database of a platform home, as MLflow wants it: it makes the URL's folder without decoding it."""
    return f"sqlite:///{home.resolve() / DATABASE}"


def connect(url: str) -> "MlflowClient":
    """A client for tracking and registry at `url` (SQLite, PostgreSQL, MySQL, or an MLflow server over HTTP).

    Telemetry is off and MLflow's and Alembic's progress messages are silenced, unless the environment says otherwise.

    Raises:
        InputError: the URL is not of a kind that has a model registry.
        ServiceError: nothing answers at `url`.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # MLflow retries a database for two minutes and prints tracebacks meanwhile: ask once before it does.
    _probe(url)
    from mlflow import MlflowClient

    with speaking_of(url):
        client = MlflowClient(url, url)
        client.search_experiments(max_results=1)  # the first query creates or checks the tables
    return client


def _probe(url: str) -> None:
    scheme = urlsplit(url).scheme
    if scheme in {"http", "https"}:
        try:
            urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
        except urllib.error.HTTPError:
            return  # something answers; whether it is MLflow shows with the first request
        except (OSError, ValueError) as error:
            raise ServiceError(_unreachable(url, error)) from None
        return
    if scheme.split("+")[0] not in {"sqlite", "postgresql", "mysql", "mssql"}:
        raise InputError(
            f"the MLflow URL {public(url)!r} has no model registry; use sqlite:///..., postgresql://... or http(s)://..."
        )
    import sqlalchemy

    try:
        if scheme == "sqlite":
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        if told := sentence(error, public(url)):
            raise ServiceError(told) from None
        raise ServiceError(_unreachable(url, error)) from None


def _unreachable(url: str, error: Exception) -> str:
    reason = str(getattr(error, "orig", None) or getattr(error, "reason", None) or error).strip().splitlines()[0]
    return (
        f"no MLflow registry answers at {public(url)}{detour(url)} ({reason}); "
        "start it or check the setting platform.mlflow_url."
    )


@contextmanager
def speaking_of(url: str) -> Iterator[None]:
    """Turn what MLflow raises into a ServiceError of one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if told := sentence(error, public(url)):
            raise ServiceError(f"the MLflow registry at {public(url)} failed: {hidden(told)}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        reason = hidden(reason.replace(url, public(url)))
        raise ServiceError(f"the MLflow registry at {public(url)}{detour(url)} refused or failed: {reason}.") from error


def experiment_id(client: "MlflowClient", artifacts: Path | None) -> str:
    """The experiment of all runs and models, made on first use; `artifacts` None leaves their place to the server."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri() if artifacts else None))
    except MlflowException:
        found = client.get_experiment_by_name(EXPERIMENT)  # another process was quicker
        if found is None:
            raise
        return str(found.experiment_id)


def metric_name(name: str) -> str:
    """MLflow's names hold no "@": hr@10 is stored as hr_at_10."""
    return name.replace("@", "_at_")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `metrics`, nested keys joined with dots and lists numbered from 0."""
    flat: dict[str, Any] = {}
    for name, value in flatten(metrics).items():
        several = isinstance(value, list | tuple)
        flat.update({f"{name}.{i}": v for i, v in enumerate(value)} if several else {name: value})
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def write_run(client: "MlflowClient", run_id: str, params: Mapping[str, Any], metrics: Mapping[str, Any],
              curves: Curves, artefacts: Sequence[Path]) -> None:
    """Fill a run: nested `params`, last values, curves over steps, and files or folders as artefacts."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    points = [Metric(metric_name(n), v, now, 0) for n, v in scalars(metrics).items()]
    for name, curve in curves.items():
        points += [Metric(metric_name(name), float(value), now, int(step)) for step, value in curve]
    entries = [Param(metric_name(n), str(v)[:6000]) for n, v in flatten(params).items()]
    for start in range(0, len(entries), 100):  # MLflow's limits of one request: 100 parameters, 1000 metrics
        client.log_batch(run_id, params=entries[start : start + 100])
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])
    for path in artefacts:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))
