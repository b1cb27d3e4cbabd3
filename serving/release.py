"""Hot swap: put a policy into the model repository and make a running server answer with it, or leave all as it was."""

import contextlib
from pathlib import Path
from typing import Any

from serving.control import key_of
from serving.model_repository import export, newest, prune, releases, withdraw
from serving.probe import StillLoading, ask, load
from serving.server import http_url_of, running
from tessera.errors import ServiceError


def release(policy_bundle: str | Path, repository: str | Path, http_url: str | None = None, **options: Any) -> Path:
    """Export a policy and have it served; the way of promotion and, with the previous policy, of rollback.

    With `sids` the policy recommends from a newer SIDs table; `newest(repository).policy` is then the bundle to give
    if only new items are to be added. Without a server the release waits in the repository for the next start.

    Args:
        http_url: a Triton with explicit model control over this repository; by default the embedded one if it runs.
        options: further arguments of `serving.model_repository.export`.

    Raises:
        BundleError: the bundle or the SIDs cannot be served together.
        StillLoading: the server is at it for too long; the release stays, and serves once it is loaded.
        ServiceError: the server refused the release, which was withdrawn, and the one before keeps serving; or the key
            to its control plane is not at hand.
    """
    before = releases(repository)
    url = http_url or _embedded(repository)
    if url is not None:
        key_of(repository)  # without it nothing would serve what is written now
    folder = export(policy_bundle, repository, **options)
    if url is not None:
        _load_or_withdraw(url, repository, int(folder.name), before)
    prune(repository)
    return folder


def take_back(repository: str | Path, release: int) -> None:
    """Withdraw a release although it loaded, and have the embedded server, if it runs, serve the one before."""
    withdraw(repository, release)
    url = _embedded(repository)
    if url is not None:
        _settle(url, repository)


def reload(http_url: str, repository: str | Path) -> str:
    """Make a running server load the repository's newest release; return the policy version that then answers.

    Raises:
        ServiceError: the server is not up, refused the release, or answers with another one.
    """
    wanted = newest(repository)
    load(http_url, key_of(repository))
    answered = ask(http_url)
    if answered != wanted.answer:
        raise ServiceError(
            f"{http_url} answers with policy {answered.policy_version} over index {answered.index_version}, not with "
            f"release {wanted.number} ({wanted.policy_version} over {wanted.index_version}); its log says why."
        )
    return answered.policy_version


def _settle(url: str, repository: str | Path) -> None:
    """Have a server that is up serve the newest release; one on its way up or down loads it when it starts."""
    with contextlib.suppress(ServiceError):
        if ask(url) != newest(repository).answer:
            reload(url, repository)


def _serves_another(url: str, repository: str | Path) -> bool:
    """Whether a server answers with another release than the newest, which it was still loading at an earlier try."""
    try:
        return ask(url) != newest(repository).answer
    except ServiceError:
        return False


def _embedded(repository: str | Path) -> str | None:
    state = running(repository)
    return http_url_of(state) if state else None


def _load_or_withdraw(url: str, repository: str | Path, number: int, before: list[int]) -> None:
    try:
        reload(url, repository)
    except StillLoading:  # what is being loaded needs its files
        raise
    except ServiceError as error:
        if number in before and not _serves_another(url, repository):
            raise
        withdraw(repository, number)
        _settle(url, repository)  # it may have been loaded all the same, by a start of the server meanwhile
        serving = "the one before keeps serving" if before else "nothing serves"
        raise ServiceError(f"release {number} was withdrawn, {serving}: {error}") from None
