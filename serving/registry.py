"""The model registry: runs, the registered models `sid-tokenizer` and `sid-policy`, and the aliases of promotion.

In a notebook, `mlflow.set_tracking_uri(registry.url)`, then `mlflow.pyfunc.load_model("models:/sid-policy@champion")`:
a model whose `predict` recommends.
"""

import fcntl
import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from serving import aliases as alias_moves
from serving import places
from serving.aliases import POLICY, TOKENIZER, Aliases
from serving.packaging import find_bundle, save_pyfunc
from serving.tracking import (
    DATABASE,
    EXPERIMENT,
    Curves,
    connect,
    default_url,
    embedded_url,
    experiment_id,
    scalars,
    speaking_of,
    write_run,
)
from tessera import troubles
from tessera.bundle import Manifest, load_manifest
from tessera.errors import BundleError, InputError, ServiceError
from tessera.files import sync_tree

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_DIGEST = re.compile("[0-9a-f]{12}")
_log = logging.getLogger(__name__)
MODELS = {"tokenizer": TOKENIZER, "policy": POLICY}
DOWNLOADS = "downloads"
"""Folder of a home with the bundles that came from another machine; it may be removed, and is filled again."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    version: str
    bundle_version: str
    tokenizer_version: str
    """Bundle version of the tokenizer: the policy's, or the tokenizer's own."""
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    created: datetime
    run_id: str | None
    tags: dict[str, str] = field(default_factory=dict)
    """All that was written on it; see serving/canary.py, newer_sids.py and journal.py."""


class Registry:
    """Tracking and registry of one platform home.

    Args:
        home: folder of the platform; artefacts go to home/mlartifacts, and a lock file there keeps moves apart.
        url: MLflow tracking and registry URI; empty for the server that MLFLOW_TRACKING_URI names, else the SQLite
            database home/mlflow.db.

    Raises:
        InputError: the URL is of no kind that has a registry.
        ServiceError: nothing answers at the URL.
    """

    def __init__(self, home: str | Path, url: str = "") -> None:
        self.home = Path(home).resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        self._read_only = not os.access(self.home, os.W_OK)
        self.url = url or default_url(self.home)
        self._mover = f"{socket.gethostname()}:{self.home}"
        with self._locked():  # two processes must not both create the tables
            self._follow()
            self.client = connect(self.url)

    @cached_property
    def experiment(self) -> str:
        """The experiment of all runs, made by the first who writes: an account that only reads has not the right."""
        # An MLflow server knows where its artefacts belong; a bare database does not.
        artefacts = None if self.url.startswith("http") else self.home / places.ARTEFACTS
        return experiment_id(self.client, artefacts)

    def log_run(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, Any], curves: Curves | None = None,
                artefacts: Sequence[str | Path] = ()) -> str:
        """Log one run of the pipeline and return its id.

        Args:
            params: settings, nested as they are.
            metrics: numbers, possibly nested; what is no finite number is left out.
            curves: metric name to (step, value) pairs.
            artefacts: files and folders to keep with the run.

        Raises:
            InputError: an artefact does not exist.
            ServiceError: MLflow refused.
        """
        paths = [Path(path) for path in artefacts]
        for path in paths:
            if not path.exists():
                raise InputError(f"the artefact {path} does not exist; check the path or run the stage that writes it.")
        with speaking_of(self.url), self._run(name) as run_id:
            write_run(self.client, run_id, params, metrics, curves or {}, paths)
        return run_id

    def register_tokenizer(self, bundle: str | Path, metrics: Mapping[str, Any] | None = None,
                           run_id: str | None = None) -> str:
        """Register a tokenizer bundle as a version of `sid-tokenizer`; a registered bundle keeps its version.

        Args:
            metrics: numbers shown beside the version; the bundle's own where None.
            run_id: the run that made it; a run of its own is logged where None.

        Raises:
            BundleError: the folder is not an intact tokenizer bundle.
            ServiceError: MLflow refused.
        """
        return self._register(Path(bundle), load_manifest(bundle, "tokenizer"), metrics, run_id)

    def register_policy(self, bundle: str | Path, tokenizer_version: str | None = None,
                        metrics: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Register a policy bundle as a version of `sid-policy`; a registered bundle keeps its version.

        Args:
            tokenizer_version: bundle version of its tokenizer, checked against what the bundle says.
            metrics, run_id: as in `register_tokenizer`.

        Raises:
            BundleError: the folder is not an intact policy bundle.
            InputError: the bundle names another tokenizer, or one that is not registered.
            ServiceError: MLflow refused.
        """
        manifest = load_manifest(bundle, "policy")
        if tokenizer_version is not None and tokenizer_version != manifest.parent:
            raise InputError(
                f"{bundle} was trained on tokenizer {manifest.parent}, not on {tokenizer_version}; name its own."
            )
        with speaking_of(self.url):
            alias_moves.tokenizer_of(self.client, manifest.parent or "", f"the policy in {bundle}")
        return self._register(Path(bundle), manifest, metrics, run_id)

    def versions(self) -> list[Version]:
        """All versions of both models, policies first, newest first; repairs an interrupted move."""
        with speaking_of(self.url), self._locked():
            # A read-only home keeps nothing from a registry that is elsewhere.
            if not (self._read_only and self.url == embedded_url(self.home)):
                alias_moves.settle(self.client, self._mover)
            found = []
            for name in (POLICY, TOKENIZER):
                aliases = alias_moves.named(alias_moves.registered(self.client, name))
                rows = self.client.search_model_versions(f"name = '{name}'")
                found += [_describe(row, aliases) for row in sorted(rows, key=lambda row: -int(row.version))]
            return found

    def resolve(self, reference: str, model: str = POLICY) -> Version:
        """The version that an alias ("champion") or a number ("3") names.

        Raises:
            InputError: there is no such alias or version.
        """
        versions = [version for version in self.versions() if version.model == model]
        for version in versions:
            if reference == version.version or reference in version.aliases:
                return version
        known = ", ".join(" = ".join((version.version, *version.aliases)) for version in versions)
        raise InputError(
            f"{model} has no {'version' if reference.isdigit() else 'alias'} {reference!r}; "
            + (f"it has {known}: name one of these." if known else "nothing is registered yet: run the pipeline first.")
        )

    def download(self, model: str, reference: str) -> Path:
        """The bundle of a version as a folder, not to be changed; what is on this machine already is not copied.

        Raises:
            InputError: there is no such alias or version.
            BundleError: the stored bundle is damaged.
            ServiceError: the artefacts cannot be had.
        """
        return self.bundle(self.resolve(reference, model))

    def bundle(self, version: Version) -> Path:
        """`download` of a version that was looked up already; it writes nothing to the registry.

        Raises:
            BundleError, ServiceError: as `download`.
        """
        model, promised = version.model, version.bundle_version
        if not _DIGEST.fullmatch(promised):
            raise BundleError(
                f"version {version.version} of {model} is tagged with {promised!r}, which is no version of a bundle; "
                "register the bundle again."
            )
        with speaking_of(self.url), self._locked():
            uri = self.client.get_model_version_download_uri(model, version.version)
            bundle = find_bundle(self._fetch(uri, self.home / DOWNLOADS / f"{model}-{promised}"))
        manifest = load_manifest(bundle, next(kind for kind, name in MODELS.items() if name == model))
        found = (manifest.version, manifest.parent or manifest.version)
        if found != (promised, version.tokenizer_version):
            raise BundleError(
                f"version {version.version} of {model} is registered as bundle {promised} of tokenizer "
                f"{version.tokenizer_version}, its artefacts hold {found[0]} of {found[1]}; register the bundle again."
            )
        return bundle

    def artefacts(self, version: Version, folder: str) -> Path:
        """A folder that was kept with the run that made a version, not to be changed.

        Raises:
            InputError: the version has no run, or the run kept no such folder.
            ServiceError: the artefacts cannot be had.
        """
        from mlflow.artifacts import download_artifacts

        with speaking_of(self.url):
            kept = version.run_id and [a.path for a in self.client.list_artifacts(version.run_id)]
            if not kept or folder not in kept:
                raise InputError(
                    f"version {version.version} of {version.model} has no '{folder}' with its run; "
                    "register it through the training pipeline."
                )
            return Path(download_artifacts(run_id=version.run_id, artifact_path=folder, tracking_uri=self.url))

    def named(self, *wanted: str) -> dict[str, Version]:
        """The policy versions that these aliases name this moment, for readers that are many.

        Nothing is repaired: a reader on another machine must not settle a move that its mover is in the midst of.
        """
        with speaking_of(self.url):
            aliases = alias_moves.named(alias_moves.registered(self.client, POLICY))
            there = [alias for alias in wanted if alias in aliases]
            found = [(alias, self.client.get_model_version(POLICY, aliases[alias])) for alias in there]
        return {alias: _describe(row, aliases) for alias, row in found}

    def aliases(self) -> Aliases:
        """Where the policy's aliases point, after repairing an interrupted move."""
        with speaking_of(self.url), self._locked():
            return alias_moves.settle(self.client, self._mover)

    def set_challenger(self, reference: str) -> Version:
        """Let `challenger` name a policy version, and its tokenizer.

        Raises:
            InputError: no such version, or its tokenizer is not registered.
            ServiceError: MLflow failed; the aliases are as they were.
        """
        number = self.resolve(reference).version
        self._move(lambda now: replace(now, challenger=number))
        return self.resolve(number)

    def set_canary(self, number: str | None) -> None:
        """Let `canary` name a policy version, and its tokenizer; None ends it. See serving/canary.py.

        Raises:
            InputError, ServiceError: as `set_challenger`.
        """
        self._move(lambda now: replace(now, canary=number))

    def promote(self, reference: str = "challenger", check: Callable[[Aliases], None] = lambda _: None) -> Version:
        """champion becomes previous and the version becomes champion, policy and tokenizer together or not at all.

        Promoting the champion again changes nothing. A canary ends with it.

        Args:
            check: called with the present aliases; what it raises leaves them as they are.

        Raises:
            InputError: no such alias or version, or its tokenizer is not registered.
            ServiceError: MLflow failed; the aliases are as they were.
        """
        number = self.resolve(reference).version

        def change(now: Aliases) -> Aliases:
            check(now)
            return Aliases(
                challenger=None if now.challenger == number else now.challenger,
                previous=now.previous if now.champion == number else now.champion,
                champion=number,
            )

        self._move(change)
        return self.resolve(number)

    def rollback(self) -> Version:
        """previous and champion change places; returns the new champion.

        Raises:
            InputError: there is no previous version.
            ServiceError: MLflow failed; the aliases are as they were.
        """
        def change(now: Aliases) -> Aliases:
            if now.previous is None:
                raise InputError(f"{POLICY} has no previous version to go back to; promote a second version first.")
            return replace(now, champion=now.previous, previous=now.champion, canary=None)

        self._move(change)
        return self.resolve("champion")

    def restore(self, aliases: Aliases) -> None:
        """Put the aliases back where `aliases()` saw them, when a later step of a promotion has failed."""
        self._move(lambda _: aliases)

    def _follow(self) -> None:
        """Where the home was moved or copied: let its own database name its own artefacts, not the original's."""
        if self.url != embedded_url(self.home):
            return
        try:
            moved = places.follow(self.home / DATABASE, EXPERIMENT)
        except SQLAlchemyError as error:
            if trouble := troubles.sentence(error, str(self.home / DATABASE)):
                raise ServiceError(trouble) from error
            raise ServiceError(
                f"{self.home} was moved or copied, or its registry is damaged, and {self.home / DATABASE} cannot be "
                f"brought up to date ({getattr(error, 'orig', error)}); make it writable and try again."
            ) from error
        if moved:
            _log.warning("%s was moved or copied; its registry now names the artefacts that are in it.", self.home)

    def _fetch(self, uri: str, folder: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        if urlsplit(uri).scheme in {"", "file"}:
            return Path(download_artifacts(uri, tracking_uri=self.url, registry_uri=self.url))
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
                found = download_artifacts(uri, dst_path=staging, tracking_uri=self.url, registry_uri=self.url)
                sync_tree(Path(found))
                Path(found).rename(folder)
        return folder

    def _move(self, change: Callable[[Aliases], Aliases]) -> None:
        with speaking_of(self.url), self._locked():
            alias_moves.move(self.client, self._mover, change)

    def _register(self, bundle: Path, manifest: Manifest, metrics: Mapping[str, Any] | None, run_id: str | None) -> str:
        name, numbers = MODELS[manifest.kind], scalars(manifest.metrics if metrics is None else metrics)
        tags = {
            "bundle_version": manifest.version,
            "tokenizer_version": manifest.version if manifest.kind == "tokenizer" else str(manifest.parent),
            "metrics": json.dumps(numbers),
        }
        with speaking_of(self.url), self._locked():
            if found := alias_moves.find(self.client, name, manifest.version):
                return str(found.version)
            with self._run(f"register {name}", run_id) as run:
                if run_id is None:
                    write_run(self.client, run, manifest.config, numbers, {}, [])
                model = self._log_model(name, bundle, manifest, run, tags)
            if alias_moves.registered(self.client, name) is None:
                self.client.create_registered_model(name)
            # One transaction with its tags: a version is there with all it says of itself, or not at all.
            made = self.client.create_model_version(name, model.artifact_location, run, tags, model_id=model.model_id)
            return str(made.version)

    def _log_model(self, name: str, bundle: Path, manifest: Manifest, run: str, tags: dict[str, str]) -> Any:
        with tempfile.TemporaryDirectory(prefix=".registering-", dir=self.home) as staging:
            folder = Path(staging) / name
            save_pyfunc(folder, bundle.resolve(), manifest)
            model = self.client.create_logged_model(self.experiment, name, run, tags)
            self.client.log_model_artifacts(model.model_id, str(folder))
            return self.client.finalize_logged_model(model.model_id, "READY")

    @contextmanager
    def _run(self, name: str, run_id: str | None = None) -> Iterator[str]:
        """A new run, ended with the block, or the given one, left as it is."""
        if run_id is not None:
            yield run_id
            return
        run_id = str(self.client.create_run(self.experiment, run_name=name).info.run_id)
        try:
            yield run_id
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.home / ".registry.lock"
        if self._read_only:  # nobody on this machine's side of it moves anything
            yield
            return
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _describe(row: "ModelVersion", aliases: dict[str, str]) -> Version:
    number = str(row.version)
    return Version(
        row.name, number, row.tags.get("bundle_version", ""), row.tags.get("tokenizer_version", ""),
        tuple(sorted(alias for alias, version in aliases.items() if version == number)),
        _metrics(row.tags.get("metrics", "{}")),
        datetime.fromtimestamp(row.creation_timestamp / 1000, timezone.utc), row.run_id, dict(row.tags),
    )


def _metrics(tag: str) -> dict[str, float]:
    """The numbers in a version's tag; one that cannot be read counts as empty."""
    try:
        return scalars(json.loads(tag))
    except (ValueError, AttributeError, RecursionError):
        return {}
