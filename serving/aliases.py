"""Moving the aliases of two registered models together, on a registry that can only move one at a time.

The policy's alias `champion` is the one source of truth. The tokenizer's aliases follow from it, because every policy
version names its tokenizer in a tag. A move is announced in a tag of the registered model before it starts, and the
champion moves when what it replaces has been written down: a process that died in between leaves a move that the next
call finishes or undoes. A canary goes after the champion has moved: replicas that follow it must not turn back for a
moment. Moves from one home exclude each other by a lock; one that was announced elsewhere, and just now, is left alone:
somebody is in the midst of it.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tessera.errors import InputError, ServiceError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

TOKENIZER, POLICY = "sid-tokenizer", "sid-policy"
PENDING = "pending_move"
MOVED_WITHIN_S, CLOCKS_DIFFER_S = 60.0, 5.0
"""A move takes a few requests; one that was announced longer ago was left by a process that died. So was one that was
announced later than now by more than the clocks of two machines differ: nobody waits for a clock that is ahead."""


@dataclass(frozen=True)
class Aliases:
    """Which version of `sid-policy` each alias names; None where it names none."""

    challenger: str | None = None
    previous: str | None = None
    champion: str | None = None
    canary: str | None = None


@dataclass(frozen=True)
class _Announced:
    """A move as its tag announces it; `when` by the clock of the machine that makes it, in seconds since 1970."""

    before: Aliases
    after: Aliases
    home: str
    when: float

    @property
    def is_recent(self) -> bool:
        """Whether somebody may be in the midst of it."""
        return -CLOCKS_DIFFER_S < time.time() - self.when < MOVED_WITHIN_S


def registered(client: "MlflowClient", model: str) -> "RegisteredModel | None":
    """The registered model of this name, if it is there."""
    found = client.search_registered_models(f"name = '{model}'", max_results=1)
    return found[0] if found else None


def named(model: "RegisteredModel | None") -> dict[str, str]:
    """All aliases of a registered model, with the versions they name."""
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def find(client: "MlflowClient", model: str, bundle_version: str) -> "ModelVersion | None":
    """The version of a registered model that holds this bundle."""
    found = client.search_model_versions(f"name = '{model}' and tags.bundle_version = '{bundle_version}'")
    return min(found, key=lambda version: int(version.version)) if found else None


def tokenizer_of(client: "MlflowClient", tokenizer: str, whose: str) -> str:
    """The version of `sid-tokenizer` that holds the bundle `tokenizer`; InputError if there is none."""
    found = find(client, TOKENIZER, tokenizer)
    if found is None:
        raise InputError(f"{whose} needs tokenizer {tokenizer}, which is not registered; register it first.")
    return str(found.version)


def settle(client: "MlflowClient", home: str) -> Aliases:
    """Finish or undo an interrupted move and let the tokenizer's aliases follow the policy's; returns the result.

    A move whose champion is in place is finished, any other is undone, and one that is under way is left alone. An
    announcement that cannot be read is taken away, and the policy's aliases stay where they are.

    Args:
        home: where this process moves from, as "host:path"; it holds the lock there.
    """
    policy = registered(client, POLICY)
    if policy is None:
        return Aliases()
    aliases, pending = named(policy), policy.tags.get(PENDING)
    now = Aliases(**{alias: aliases.get(alias) for alias in asdict(Aliases())})
    announced = _read(pending)
    if announced is not None and announced.home != home and announced.is_recent:
        return now
    if announced is not None:
        now = announced.after if now.champion == announced.after.champion else announced.before
    _point(client, now)
    if pending is not None:
        client.delete_registered_model_tag(POLICY, PENDING)
    return now


def move(client: "MlflowClient", home: str, change: Callable[[Aliases], Aliases]) -> None:
    """Move both models' aliases to what `change` makes of the present ones; on failure put them back and raise.

    Raises:
        ServiceError: somebody else's move is under way.
    """
    before = settle(client, home)
    policy = registered(client, POLICY)
    if policy is not None and PENDING in policy.tags:
        raise ServiceError("another promotion moves the aliases at this moment; try again in a minute.")
    after = change(before)
    if after == before:
        return
    for version in {*asdict(after).values()} - {None}:
        policy = client.get_model_version(POLICY, version)
        tokenizer_of(client, policy.tags.get("tokenizer_version", ""), f"version {version} of {POLICY}")
    announced = _Announced(before, after, home, time.time())
    client.set_registered_model_tag(POLICY, PENDING, json.dumps(asdict(announced)))
    try:
        _point(client, after)
    except Exception:
        # If this fails too, the announcement stays and the next call settles it.
        with suppress(Exception):
            _point(client, before)
            client.delete_registered_model_tag(POLICY, PENDING)
        raise
    with suppress(Exception):  # the move is made; an announcement that stays is found finished by the next call
        client.delete_registered_model_tag(POLICY, PENDING)


def _read(pending: str | None) -> _Announced | None:
    """The move that a tag announces; None where there is none, or what nobody can read."""
    try:
        read = json.loads(pending or "")
        before, after = (Aliases(**read[key]) for key in ("before", "after"))
        if not all(isinstance(one, str | None) for aliases in (before, after) for one in asdict(aliases).values()):
            return None
        return _Announced(before, after, str(read["home"]), float(read["when"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _point(client: "MlflowClient", target: Aliases) -> None:
    """Move what is not yet in place: the tokenizer's aliases first, the policy's champion behind its predecessor."""
    policy_rows, tokenizer_rows = (client.search_model_versions(f"name = '{name}'") for name in (POLICY, TOKENIZER))
    needs = {str(row.version): row.tags.get("tokenizer_version") for row in policy_rows}
    holds = {row.tags.get("bundle_version"): str(row.version) for row in tokenizer_rows}
    policies = {alias: version for alias, version in asdict(target).items() if version in needs}
    _set(client, TOKENIZER, {a: holds[needs[version]] for a, version in policies.items() if needs[version] in holds})
    _set(client, POLICY, policies)


def _set(client: "MlflowClient", model: str, wanted: dict[str, str]) -> None:
    now = named(registered(client, model))
    for alias in asdict(Aliases()):
        if now.get(alias) == wanted.get(alias):
            continue
        if alias in wanted:
            client.set_registered_model_alias(model, alias, wanted[alias])
        else:
            client.delete_registered_model_alias(model, alias)
