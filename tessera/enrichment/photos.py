"""Product photos as RGB images of bounded size."""

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import InputError, TesseraError
from tessera.files import sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 768


class PhotoError(TesseraError):
    """A photo is missing or cannot be decoded."""


def photo_hash(path: Path) -> str:
    """SHA-256 of the photo's bytes; "missing" for a file that is not there, so that its arrival changes the key."""
    try:
        return sha256_file(path)
    except (OSError, InputError):
        return "missing"


def open_photo(path: Path) -> "Image":
    """Decode a photo completely, upright, as RGB on white, no side longer than 768 pixels.

    Raises:
        PhotoError: missing, truncated, or no image at all.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.draft("RGB", (MAX_SIDE, MAX_SIDE))
                image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise PhotoError(f"photo {path.name} is missing") from None
    except Exception as error:  # decoders raise whatever they like on broken bytes: SyntaxError, struct.error, ...
        raise PhotoError(f"photo {path.name} cannot be decoded ({type(error).__name__}: {error})") from None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def data_url(image: "Image") -> str:
    """The image as a JPEG data URL, the form every vision endpoint takes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
