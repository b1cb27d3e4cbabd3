"""A real request to a served policy, to know which one answers: Triton's readiness survives a dead model process."""

from pathlib import Path
from typing import Any

import httpx

from serving.model_repository import MODEL, newest
from tessera.errors import ServiceError
from tessera.schema import read_table

LOAD_S = 180.0


def answering_policy(http_url: str, repository: str | Path, timeout_s: float = 30.0) -> str:
    """Version of the policy that answers a recommendation for an item of the repository's newest release.

    Raises:
        ServiceError: the server is not up or did not recommend.
    """
    release, _ = newest(repository)
    sids = read_table("sids", Path(repository) / MODEL / str(release) / "policy" / "sids.parquet")
    item = sids["item_id"][0].as_py()
    inputs = [
        {"name": "history", "shape": [1, 1], "datatype": "BYTES", "data": [item]},
        {"name": "k", "shape": [1, 1], "datatype": "INT32", "data": [1]},
        {"name": "include_history", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
    ]
    answer = post(f"{http_url}/v2/models/{MODEL}/infer", {"inputs": inputs}, timeout_s)
    outputs = {output["name"]: output["data"] for output in answer.get("outputs", [])}
    if not outputs.get("item_ids") or not outputs.get("policy_version"):
        raise ServiceError(f"the server at {http_url} answered without recommendations; look into its log.")
    return str(outputs["policy_version"][0])


def load(http_url: str) -> None:
    """Make a server with explicit model control load the newest release.

    Raises:
        ServiceError: it is not up, or refused the release and serves the one before.
    """
    post(f"{http_url}/v2/repository/models/{MODEL}/load", {}, LOAD_S)


def post(url: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """POST to Triton and return its JSON answer.

    Raises:
        ServiceError: not up, too slow, or refused with Triton's reason.
    """
    try:
        response = httpx.post(url, json=body, timeout=timeout_s, trust_env=False)
    except httpx.TimeoutException:
        raise ServiceError(f"Triton did not answer {url} within {timeout_s:.0f} s; look into its log.") from None
    except httpx.HTTPError as error:
        raise ServiceError(f"no Triton server answers at {url} ({type(error).__name__}); start it.") from None
    if response.is_success:
        return dict(response.json()) if response.content else {}
    try:
        reason = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        reason = f"status {response.status_code}"
    reason = reason.split("\n\nAt:")[0]  # without the model's traceback, which is in the server's log
    raise ServiceError(f"Triton refused {url}: {' '.join(reason.split())}")
