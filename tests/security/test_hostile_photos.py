"""Archives of photos as an attacker or a bad disk makes them: each failure is the state of one photo."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.catalog.images import MAX_BYTES, Photos, place_all

SIZE = 600 << 20


def png() -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def states(source: Path, names: list[str], target: Path) -> list[str]:
    return place_all(list(names), Photos(source).place, target)


PLACE = """
import resource, sys
from pathlib import Path
from tessera.catalog.images import Photos
photos = Photos(Path(sys.argv[1]))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(photos.place("bomb.png", Path(sys.argv[2])))
"""


@pytest.mark.parametrize("claimed", [None, 1000], ids=["says its size", "claims to be small"])
def test_a_member_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path, claimed: int | None) -> None:
    """A process that may take 256 MiB more places the file all the same, which it could not unpack."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("bomb.png", bytes(SIZE))
    if claimed is not None:
        whole = path.read_bytes()
        assert whole.count(SIZE.to_bytes(4, "little")) == 2  # before the data, and in the directory
        path.write_bytes(whole.replace(SIZE.to_bytes(4, "little"), claimed.to_bytes(4, "little")))
    command = [sys.executable, "-c", PLACE, str(path), str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "corrupt"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_flipped_bit_is_one_photo(tmp_path: Path, compression: int) -> None:
    """Wherever in the member's data the bit is, and whatever compressed it; some bits of a stream say nothing."""
    content = png()
    path = archive(tmp_path / "images.zip", {"a.png": content, "b.png": content}, compression)
    with zipfile.ZipFile(path) as file:
        start, size = file.getinfo("a.png").header_offset + 30 + len("a.png"), file.getinfo("a.png").compress_size
    whole = path.read_bytes()
    found = []
    for place in range(start, start + size, max(1, size // 40)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        (tmp_path / "flipped.zip").write_bytes(flipped)
        state, other = states(tmp_path / "flipped.zip", ["a.png", "b.png"], tmp_path / "out")
        assert other == "ok"
        assert state == "corrupt" or (tmp_path / "out" / "a.png").read_bytes() == content
        found.append(state)
    assert found.count("corrupt") > len(found) / 2


def test_names_that_no_file_can_have_are_one_photo_each(tmp_path: Path) -> None:
    content = png()
    names = ["good.png", "x" * 400 + ".png", "good.png/inside.png"]
    path = archive(tmp_path / "images.zip", dict.fromkeys(names, content))
    assert states(path, names, tmp_path / "out") == ["ok", "corrupt", "corrupt"]


def test_a_folder_with_an_absurdly_large_file_is_read_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    with (folder / "b.png").open("wb") as file:
        file.write(png())
        file.truncate(MAX_BYTES + 1)
    assert states(folder, ["a.png", "b.png"], tmp_path / "out") == ["ok", "corrupt"]
