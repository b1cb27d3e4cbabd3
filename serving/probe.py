"""A real question to a served policy: Triton's own readiness survives the death of the model's process.

    python -m serving.probe http://127.0.0.1:8000

exits with 0 where the server recommends and with 1 where it does not: the check of the embedded server's watchdog and
of Kubernetes' probes. A probe overtakes what waits in the queue, so a server that is merely busy answers it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from serving.control import HEADER
from serving.model_config import MODEL
from tessera.errors import ServiceError

LOAD_S = 600.0
"""How long a load is waited for; Triton goes on with it."""
PROBE_S = 5.0

# The whole question: an item of whatever catalogue is served, so that nobody needs to know one.
_QUESTION = {
    "inputs": [
        {"name": "probe", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
        {"name": "k", "shape": [1, 1], "datatype": "INT32", "data": [1]},
        {"name": "include_history", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
    ]
}


class TooSlow(ServiceError):
    """No answer in time."""


class StillLoading(ServiceError):
    """A load that was not waited for any longer; whether it succeeds is not known yet."""


@dataclass(frozen=True)
class Served:
    """What answered."""

    policy_version: str
    index_version: str


def ask(http_url: str, timeout_s: float = 30.0, history: Sequence[str] = ()) -> Served:
    """Ask for a recommendation and return what answered.

    Args:
        history: asked as anybody's request, in the queue with the others; without it the question is a probe.

    Raises:
        ServiceError: the server is not up, too slow or busy, or did not recommend.
    """
    asked = {"name": "history", "shape": [1, len(history)], "datatype": "BYTES", "data": list(history)}
    question = {"inputs": [asked]} if history else _QUESTION
    answer = post(f"{http_url}/v2/models/{MODEL}/infer", question, timeout_s)
    outputs = {output["name"]: output["data"] for output in answer.get("outputs", [])}
    if not outputs.get("item_ids") or not outputs.get("policy_version"):
        raise ServiceError(f"the server at {http_url} answered without recommendations; look into its log.")
    return Served(str(outputs["policy_version"][0]), str(outputs["index_version"][0]))


def load(http_url: str, key: str) -> None:
    """Make a server with explicit model control load the newest release.

    Args:
        key: to its control plane (see `serving.control`).

    Raises:
        StillLoading: it is at it for too long.
        ServiceError: it is not up, or refused the release and serves the one before.
    """
    try:
        post(f"{http_url}/v2/repository/models/{MODEL}/load", {}, LOAD_S, key)
    except TooSlow:
        raise StillLoading(
            f"{http_url} has been loading its newest release for {LOAD_S:.0f} s and goes on; release it again to wait."
        ) from None


def post(url: str, body: dict[str, Any], timeout_s: float, key: str = "") -> dict[str, Any]:
    """POST to Triton and return its JSON answer.

    Args:
        key: to its control plane, where the call needs it.

    Raises:
        TooSlow: no answer in time.
        ServiceError: not up, or refused with Triton's reason.
    """
    headers = {HEADER: key} if key else {}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=timeout_s, trust_env=False)
    except httpx.TimeoutException:
        raise TooSlow(f"Triton did not answer {url} within {timeout_s:.0f} s; look into its log.") from None
    except httpx.HTTPError as error:
        raise ServiceError(f"no Triton server answers at {url} ({type(error).__name__}); start it.") from None
    if response.is_success:
        return dict(response.json()) if response.content else {}
    if response.status_code == httpx.codes.FORBIDDEN:
        raise ServiceError(
            f"Triton refused {url}: the key to its control plane is not this one, but that of a later start or of "
            f"another user's server; try again, as the user who started the server."
        )
    try:
        reason = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        reason = f"status {response.status_code}"
    reason = reason.split("\n\nAt:")[0]  # without the model's traceback, which is in the server's log
    raise ServiceError(f"Triton refused {url}: {' '.join(reason.split())}")


def main() -> int:
    """The check as a command."""
    parser = argparse.ArgumentParser(prog="python -m serving.probe", description="Ask a served policy a real question.")
    parser.add_argument("url", help="Triton over HTTP, as http://host:port")
    parser.add_argument("--timeout", type=float, default=PROBE_S, help="seconds to wait for the answer")
    given = parser.parse_args()
    try:
        served = ask(given.url.rstrip("/"), given.timeout)
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"policy {served.policy_version}, index {served.index_version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
