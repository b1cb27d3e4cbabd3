"""Open the feature store of a home, and remember what has been published to it.

Feast takes seconds to import, so it is imported only inside the functions that need it.
"""

import fcntl
import json
import os
import re
import shutil
import sqlite3
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from tessera.errors import InputError, ServiceError
from tessera.files import read_json, sha256_of, write_json
from tessera.secrets import hidden

if TYPE_CHECKING:
    from feast import FeatureStore

HERE = Path(__file__).parent


@dataclass(frozen=True)
class State:
    """What the last finished publish left behind; written last, so an interrupted publish is noticed and completed."""

    recipe: str = ""
    """Digest of Feast's settings and of the definitions that were applied."""
    tokenizer_version: str = ""
    """Tokenizer whose SIDs are online."""
    policy_version: str = ""
    """Policy that is served with them; empty where the publish did not say."""
    event_timestamp: int = 0
    """Seconds since 1970 that no row is later than; the next ones are not earlier, whatever the clock says."""
    offline: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each offline file that is online as a whole."""


def feast_folder(home: Path) -> Path:
    """Registry, online store and offline files of a home."""
    return Path(home).resolve() / "feast"


def settings_file() -> Path:
    """Feast's settings: the file named by TESSERA_FEATURE_STORE, else this folder's.

    FEAST_REGISTRY_URL, the address of a PostgreSQL, chooses the stores on servers; TESSERA_REDIS, a connection string,
    puts the online store alone into Redis; without either the stores are embedded.
    """
    chosen = {"FEAST_REGISTRY_URL": "feature_store_production.yaml", "TESSERA_REDIS": "feature_store_redis.yaml"}
    own = next((file for variable, file in chosen.items() if os.environ.get(variable)), "feature_store.yaml")
    return Path(os.environ.get("TESSERA_FEATURE_STORE") or HERE / own)


def recipe(home: Path) -> str:
    """Digest of everything but the data that decides what a publish writes, and where."""
    code = [(HERE / name).read_bytes() for name in ("definitions.py", "tables.py")]
    return sha256_of(json.dumps(_settings(home), sort_keys=True, default=str), *code)


def read_state(home: Path) -> State:
    """The state of `home`; an empty one before the first publish.

    Raises:
        InputError: the file that keeps it is damaged.
    """
    path = feast_folder(home) / "published.json"
    try:
        return State(**read_json(path)) if path.is_file() else State()
    except TypeError:
        raise InputError(f"{path} is not of this version of Tessera; remove it and publish the run again.") from None


def write_state(home: Path, state: State) -> None:
    """Record a finished publish, atomically."""
    write_json(feast_folder(home) / "published.json", asdict(state))


@contextmanager
def publishing(home: Path) -> Iterator[Path]:
    """Hold the one writer's lock of `home` and yield its folder `feast`; a second writer waits."""
    folder = feast_folder(home)
    (folder / "offline").mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def in_place(home: Path, state: State) -> bool:
    """Whether the stores that `state` speaks of are still the configured ones, and the embedded one still exists."""
    online = _settings(home).get("online_store") or {}
    return state.recipe == recipe(home) and (online.get("type") != "sqlite" or Path(online["path"]).is_file())


def prepare_embedded(home: Path) -> None:
    """Let readers of the embedded SQLite files go on while a publish writes (write-ahead log); servers need nothing."""
    settings = _settings(home)
    registry, online = settings["registry"].get("path", ""), settings.get("online_store") or {}
    files = [registry.removeprefix("sqlite:///")] if registry.startswith("sqlite:///") else []
    files += [online["path"]] if online.get("type") == "sqlite" else []
    for file in files:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def open_store(home: Path) -> "FeatureStore":
    """Feast's store of `home`, for reading.

    Raises:
        ServiceError: nothing was published to `home` yet, or the store cannot be opened.
    """
    if not (feast_folder(home) / "published.json").is_file():
        raise ServiceError(f"{home} has no published features yet; run a training pipeline or check the home folder.")
    folder = feast_folder(home)
    if os.access(folder, os.W_OK):
        return connect(home)
    # SQLite opens a database with a write-ahead log only where it may write beside it. A copy is read instead.
    copy = Path(tempfile.mkdtemp(prefix="tessera-feast-"))
    try:
        for file in folder.glob("*.db*"):
            if not file.name.endswith("-shm"):
                shutil.copyfile(file, copy / file.name)
        store = connect(home, copy)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, copy, ignore_errors=True)
    return store


def connect(home: Path, folder: Path | None = None) -> "FeatureStore":
    """Feast's store of `home`, published or not; its embedded databases are in `folder`, if given.

    Raises:
        InputError: Feast does not accept the settings file.
        ServiceError: the registry does not answer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast import FeatureStore, RepoConfig

        folder = folder or feast_folder(home)
        try:
            config = RepoConfig(**_settings(home, folder), repo_path=folder)
            store = FeatureStore(repo_path=str(folder), config=config)
        except Exception as error:
            reason = hidden(str(error))
            raise InputError(f"Feast does not accept {settings_file()}: {reason}; correct the file.") from error
        try:
            _ = store.registry
        except Exception as error:
            reason = hidden(str(error))
            raise ServiceError(f"Feast's registry of {home} does not open ({reason}); is its database up?") from error
    return store


def _settings(home: Path, folder: Path | None = None) -> dict[str, Any]:
    """Feast's settings for `home`, with `folder` instead of the home's own, if given.

    Environment variables are filled into the parsed values and not into the text, so that a password or a path may
    hold quotes, backslashes and whatever else YAML reads as its own. A value without quotes is typed when it is filled
    in: a port becomes a number.

    Raises:
        InputError: the file cannot be read or is no YAML mapping.
    """
    path, names = settings_file(), {**os.environ, "TESSERA_FEAST": str(folder or feast_folder(home))}
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        for scalar in _scalars(node):
            scalar.value = Template(scalar.value).safe_substitute(names)
            if not scalar.style:
                scalar.tag = loader.resolve(yaml.ScalarNode, scalar.value, (True, False))
        settings = loader.construct_document(node) if node else None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); correct TESSERA_FEATURE_STORE or unset it.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({error}); correct the file.") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("registry"), dict):
        raise InputError(f"{settings_file()} has no 'registry' section; start from feature_repo/feature_store.yaml.")
    if missing := re.findall(r"\$\{(\w+)\}", str(settings)):
        raise InputError(f"{settings_file()} needs {', '.join(sorted({*missing}))}; set it in the environment.")
    online = settings.get("online_store")
    if isinstance(online, dict) and online.get("type") == "redis" and online.get("skip_dedup") is not True:
        # Feast would drop rows that are older than those there: one row from a fast clock freezes a user for years.
        raise InputError(f"{settings_file()} lets Redis drop rows; write 'skip_dedup: true' into its 'online_store'.")
    return settings


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The values with a variable in them, at any depth."""
    if isinstance(node, yaml.ScalarNode) and "$" in node.value:
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _scalars(child)
    elif isinstance(node, yaml.MappingNode):
        for _, child in node.value:
            yield from _scalars(child)
