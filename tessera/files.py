"""Crash-safe files: everything is written beside its final name and renamed, so a reader sees all of it or none."""

import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tessera.errors import InputError


@contextmanager
def replacing(path: str | Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds, remove it if not.

    The content reaches the disk before the name does, so that a power cut never leaves an empty file under it.

    Args:
        mode: permissions of the file; nobody but its owner can read it before it is complete.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(target)  # a write does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> Path:
    """The folder, as it was given.

    Raises:
        InputError: its path has a character that addresses and settings files of other programs read as their own:
            MLflow decodes "%20" twice, and Feast's command line fills the path into its settings as text.
    """
    found = [one for one in str(folder) if one in '?%$"\\' or not one.isprintable()]
    if found:
        raise InputError(
            f"the path {str(folder)!r} holds {found[0]!r}; choose a folder without question mark, percent sign, dollar "
            "sign, double quote, backslash or invisible characters."
        )
    return folder


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Have all files and folders below `folder`, and itself, reach the disk: to be called before it is renamed."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def write_text(path: str | Path, text: str, mode: int = 0o644) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def new_key(path: str | Path) -> str:
    """Write a new random key of 256 bits to `path`, readable by its owner alone (0600), and return it."""
    key = secrets.token_urlsafe(32)
    write_text(path, key, mode=0o600)
    return key


def read_key(path: str | Path) -> str:
    """The key that `new_key` wrote.

    Raises:
        InputError: there is none, or it belongs to another user.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it is written when its server starts.") from None
    except PermissionError:
        raise InputError(f"{path} is the key of another user; run this as the user whose server it is.") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path or run the stage that writes it.") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nesting without end
        raise InputError(f"{path} is not readable JSON ({error}); it may be truncated: write it again.") from None


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        InputError: the file is missing.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path or run the stage that writes it.") from None
    return digest.hexdigest()


def sha256_of(*parts: str | bytes) -> str:
    """SHA-256 over length-prefixed parts, in hex: unlike a plain join, no two different lists share a digest."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
