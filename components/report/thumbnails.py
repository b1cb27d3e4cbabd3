"""Photos for a page without links: each shown item is embedded once, small, as a CSS class; others get a tile."""

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageOps

EDGE = 168
BUDGET = 3_000_000
Shown = tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """How the page shows an item; `photo` is a CSS class, empty for an item without a usable photo."""

    item_id: str
    title: str
    photo: str
    sid: str
    codes: Shown

    @property
    def initials(self) -> str:
        """Up to two letters for the tile of an item without a photo."""
        words = [word for word in self.title.split() if word[:1].isalnum()]
        return "".join(word[0] for word in words[:2]).upper() or "?"


class Album:
    """The items of a catalogue as tiles; thumbnails are made when an item is first shown.

    Args:
        items: table of schema "items"; images: folder of the photos, or None.
        sids: table of schema "sids", or None before there are any.
    """

    def __init__(self, items: pa.Table, images: Path | None, sids: pa.Table | None) -> None:
        self._items, self._images = items, images.resolve() if images is not None else None
        self._row = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
        self._sids = sids
        self._sid_row = {item: row for row, item in enumerate(sids["item_id"].to_pylist())} if sids is not None else {}
        self._tiles: dict[str, Tile] = {}
        self._encoded: list[str] = []
        self._spent = 0

    def has_photo(self, item_id: str) -> bool:
        """Whether the catalogue names a usable photo for the item."""
        row = self._row.get(item_id)
        return self._images is not None and row is not None and self._items["image"][row].as_py() is not None

    def tile(self, item_id: str) -> Tile:
        """The item's tile; an id that the catalogue does not know is its own title."""
        if item_id not in self._tiles:
            row, place = self._row.get(item_id), self._sid_row.get(item_id)
            title = self._items["title"][row].as_py() if row is not None else item_id
            sid, codes = "", ()
            if self._sids is not None and place is not None:
                sid, codes = self._sids["sid"][place].as_py(), tuple(self._sids["codes"][place].as_py())
            self._tiles[item_id] = Tile(item_id, title, self._photo(row), sid, codes)
        return self._tiles[item_id]

    def css(self) -> str:
        """One rule for every thumbnail made so far."""
        return "\n".join(self._encoded)

    def _photo(self, row: int | None) -> str:
        name = self._items["image"][row].as_py() if row is not None else None
        if name is None or self._images is None or self._spent > BUDGET:
            return ""
        path = (self._images / name).resolve()
        data = thumbnail(path) if path.is_relative_to(self._images) else None
        if data is None:
            return ""
        encoded = base64.b64encode(data).decode("ascii")
        self._spent += len(encoded)
        self._encoded.append(f".p{len(self._encoded)}{{background-image:url(data:image/webp;base64,{encoded})}}")
        return f"p{len(self._encoded) - 1}"


def thumbnail(path: Path) -> bytes | None:
    """A square WebP of a photo, padded with white; None if the file cannot be read as one."""
    try:
        with warnings.catch_warnings(), Image.open(path) as photo:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            photo.draft("RGB", (2 * EDGE, 2 * EDGE))
            upright = ImageOps.exif_transpose(photo).convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            square = ImageOps.pad(Image.alpha_composite(white, upright).convert("RGB"), (EDGE, EDGE), color="white")
            out = io.BytesIO()
            square.save(out, "WEBP", quality=72)
            return out.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
