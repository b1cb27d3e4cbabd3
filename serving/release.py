"""Hot swap: put a policy into the model repository and make a running server answer with it, or leave all as it was."""

from pathlib import Path
from typing import Any

from serving.model_repository import export, newest, prune, releases, withdraw
from serving.probe import answering_policy, load
from serving.server import http_url_of, running
from tessera.errors import ServiceError


def release(policy_bundle: str | Path, repository: str | Path, http_url: str | None = None, **options: Any) -> Path:
    """Export a policy and have it served; the way of promotion and, with the previous policy, of rollback.

    Without a server the release waits in the repository for the next start.

    Args:
        http_url: a Triton with explicit model control over this repository; by default the embedded one if it runs.
        options: further arguments of `serving.model_repository.export`.

    Raises:
        ServiceError: the server refused the release; it was withdrawn and the one before keeps serving.
    """
    before = releases(repository)
    state = running(repository) if http_url is None else None
    url = http_url or (http_url_of(state) if state else None)
    folder = export(policy_bundle, repository, **options)
    if url is not None:
        _load_or_withdraw(url, repository, int(folder.name), before)
    prune(repository)
    return folder


def _load_or_withdraw(url: str, repository: str | Path, number: int, before: list[int]) -> None:
    try:
        reload(url, repository)
    except ServiceError as error:
        if number in before or not before:  # there is nothing to go back to
            raise
        withdraw(repository, number)
        raise ServiceError(f"release {number} was withdrawn, the one before keeps serving: {error}") from None


def reload(http_url: str, repository: str | Path) -> str:
    """Make a running server load the repository's newest release; return the policy version that then answers.

    Raises:
        ServiceError: the server is not up, refused the release, or answers with another policy.
    """
    number, manifest = newest(repository)
    load(http_url)
    answered = answering_policy(http_url, repository)
    if answered != manifest.version:
        raise ServiceError(f"{http_url} answers with policy {answered}, not {manifest.version} of release {number}.")
    return answered
