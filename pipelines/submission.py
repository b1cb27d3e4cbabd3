"""`tessera submit`: a pipeline to a Kubeflow Pipelines endpoint, once or on a schedule."""

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import compilation, runs
from pipelines.cluster import MOUNT
from pipelines.settings import ClusterSettings
from tessera.config import Settings, to_json
from tessera.errors import InputError, ServiceError
from tessera.files import sha256_of

if TYPE_CHECKING:
    from kfp import Client

TOKEN = "TESSERA_KFP_TOKEN"
ACCOUNT = "tessera-pipelines"


def submit(
    name: str, settings: Settings, cluster: ClusterSettings, endpoint: str, more: Mapping[str, str], cron: str = ""
) -> str:
    """Run a pipeline on a cluster, and return what to tell: the run, or its schedule.

    The endpoint is told who asks by the token in TESSERA_KFP_TOKEN, else by the token that Kubernetes projects into a
    pod for its service account, else, as through a port-forward, not at all.

    Args:
        more: parameters that no setting gives.
        cron: five fields; empty runs once. A schedule of this pipeline that is there is replaced.

    Raises:
        InputError: parameters that the pipeline does not have, or a schedule that is no cron line.
        ServiceError: the endpoint does not answer or refuses.
    """
    given, schedule = parameters(name, settings, more), _seconds(cron) if cron else ""
    title = f"tessera-{name}"
    with tempfile.TemporaryDirectory() as folder, _speaking_of(endpoint):
        package = Path(folder) / f"{name}.yaml"
        compilation.compile_one(name, package, cluster)
        client = _client(endpoint, cluster.namespace)
        experiment = client.create_experiment("tessera", namespace=cluster.namespace or None).experiment_id
        what = {"params": given, "pipeline_package_path": str(package), "service_account": ACCOUNT}
        if not schedule:
            now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
            run = client.run_pipeline(experiment, f"{title} {now}", **what)
            return f"run {run.run_id} of {title} started at {endpoint}."
        before = _schedules(client, experiment, title)
        made = client.create_recurring_run(experiment, title, cron_expression=schedule, no_catchup=True, **what)
        for old in before:  # after the new one is there: a refusal leaves the schedule as it was
            client.delete_recurring_run(old)
        return f"schedule {made.recurring_run_id} runs {title} at '{cron}' (UTC)."


def parameters(name: str, settings: Settings, more: Mapping[str, str]) -> dict[str, Any]:
    """A run's parameters on a cluster, where the home is on the shared volume.

    The number of shards is the compiled pipeline's own, and whether the source has changed is not known here: on a
    cluster its reading is never served from the cache.
    """
    # Runs of the same settings share their checkpoints, so that one goes on where another ended; others have their own.
    out = Path(MOUNT) / "work" / f"{name}-{sha256_of(to_json(settings))[:12]}"
    given = runs.parameters(name, runs.suited(name, settings), Path(MOUNT) / "home", out, more, source_digest="")
    return {key: value for key, value in given.items() if key != "shards"}


def _client(endpoint: str, namespace: str) -> "Client":
    """With a namespace, so that the client does not ask for one and remember it in the user's home."""
    from kfp import Client
    from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials

    options = {"namespace": namespace} if namespace else {}
    if token := os.environ.get(TOKEN):
        return Client(endpoint, existing_token=token, **options)
    projected = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
    if Path(projected).is_file():
        return Client(endpoint, credentials=ServiceAccountTokenVolumeCredentials(projected), **options)
    return Client(endpoint, **options)


def _schedules(client: "Client", experiment: str, title: str) -> list[str]:
    found, page = [], ""
    while True:
        listed = client.list_recurring_runs(page_token=page, page_size=100, experiment_id=experiment)
        found += [one.recurring_run_id for one in listed.recurring_runs or () if one.display_name == title]
        page = listed.next_page_token or ""
        if not page:
            return found


def _seconds(cron: str) -> str:
    """Kubeflow's cron lines begin with seconds."""
    fields = cron.split()
    if len(fields) != 5:
        raise InputError(f"the schedule '{cron}' has {len(fields)} fields; write five, as in '0 3 * * *'.")
    return " ".join(("0", *fields))


@contextmanager
def _speaking_of(endpoint: str) -> Iterator[None]:
    """Turn what the client raises into one sentence; never with a header or a body, which may hold the token."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ApiException as error:
            hint = f" Give a token in {TOKEN}, or run as a service account." if error.status in (401, 403) else ""
            said = f"{error.status} {error.reason}"
            raise ServiceError(f"Kubeflow Pipelines at {endpoint} refused ({said}).{hint}") from None
        except (HTTPError, OSError) as error:
            reason = type(error).__name__
            raise ServiceError(f"no Kubeflow Pipelines answers at {endpoint} ({reason}); check --endpoint.") from None
