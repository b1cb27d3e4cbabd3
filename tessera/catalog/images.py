"""Photos: found in a folder or a zip, placed in the run's `images/`, and read whole before anything relies on them."""

import errno
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image
from tqdm import tqdm

from tessera.errors import InputError
from tessera.files import replacing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_BYTES = 32 << 20  # a product photo is far below; anything above is not one
# What the file system says of one photo's name. Anything else, as a full disk, concerns the whole run.
_BAD_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP}


def is_photo(file: Path | BinaryIO) -> bool:
    """Whether the whole file decodes as one of `FORMATS`; a truncated or absurdly large one does not."""
    try:
        if isinstance(file, Path) and file.stat().st_size > MAX_BYTES:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                image.draft("RGB", (64, 64))  # a JPEG is read to its end, but not at full size
                image.load()
        return True
    except Exception:  # decoders raise whatever they like on broken bytes: SyntaxError, struct.error, a warning, ...
        return False


def relative_name(name: str, of: str) -> str:
    """A photo's name as a path inside the photo folder, "images/" in front removed; `of` says whose, for the message.

    Raises:
        InputError: the name is absolute or leads out of the folder.
    """
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0] or not path.parts:
        raise InputError(f"the photo name {name!r} of {of} leads out of the photo folder; name a file inside images/.")
    parts = path.parts[1:] if path.parts[0] == "images" and len(path.parts) > 1 else path.parts
    return "/".join(parts)


class Photos:
    """The photos of a source: a folder, a zip, or none. Only names that items ask for are ever read."""

    def __init__(self, source: Path | None) -> None:
        self.source = source
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, str] = {}
        if source is not None and source.is_file():
            try:
                self._zip = zipfile.ZipFile(source)
            except Exception as error:  # a broken directory of files raises struct.error, UnicodeDecodeError, ...
                raise InputError(f"{source} is not a readable zip file ({error}); make it again.") from None
            self._members = _members(self._zip)
        elif source is not None:
            self._members = {
                path.relative_to(source).as_posix(): str(path) for path in sorted(source.rglob("*")) if path.is_file()
            }

    def names(self) -> list[str]:
        """Relative names of all files."""
        return list(self._members)

    def place(self, name: str, target: Path) -> str:
        """Put photo `name` at `target` if it is whole. Returns its image_status: "ok", "missing" or "corrupt"."""
        member = self._members.get(name)
        if member is None:
            return "missing"
        if self._zip is None:
            return _link(Path(member), target)
        content = _unpacked(self._zip, member)
        if content is None or not is_photo(BytesIO(content)):
            return "corrupt"
        if not (target.is_file() and target.read_bytes() == content):
            with replacing(target) as temporary:
                temporary.write_bytes(content)
        return "ok"


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Files of an archive by their relative name; a name that leads out of the archive can be nobody's photo."""
    found: dict[str, str] = {}
    for member in archive.namelist():
        if not member.endswith("/"):
            with suppress(InputError):
                found[relative_name(member, str(archive.filename))] = member
    return found


def _unpacked(archive: zipfile.ZipFile, member: str) -> bytes | None:
    """A file's content; None if it is damaged, encrypted, or larger than any photo, whatever size it claims."""
    try:
        if archive.getinfo(member).file_size > MAX_BYTES:
            return None
        with archive.open(member) as file:
            content = file.read(MAX_BYTES + 1)
    except Exception:  # each compression has errors of its own: zlib.error, lzma.LZMAError, RuntimeError, ...
        return None
    return content if len(content) <= MAX_BYTES else None


def _link(source: Path, target: Path) -> str:
    if not is_photo(source):
        return "corrupt"
    if target.exists() and target.samefile(source):
        return "ok"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".placing.", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    return "ok"


def place_all(wanted: list[str | None], place: Callable[[str, Path], str], folder: Path) -> list[str]:
    """Place each named photo in `folder` (None for an item without one). Returns one image_status an item."""
    folder.mkdir(parents=True, exist_ok=True)
    status: dict[str, str] = {}
    for name in tqdm(dict.fromkeys(name for name in wanted if name), desc="photos", unit="photo", disable=None):
        try:
            status[name] = place(name, folder / name)
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            status[name] = "corrupt"  # no file can have this name here
    return [status[name] if name else "none" for name in wanted]
