"""The demo shop's photos: a product in its intent's colours, placed in its intent's scene, as JPEG files."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from tessera.catalog.shop import rooms, scenes
from tessera.catalog.shop.canvas import Canvas, Rgb
from tessera.catalog.shop.definition import Item
from tessera.catalog.shop.scenes import SIZE
from tessera.catalog.shop.shapes import SHAPES
from tessera.files import replacing

STYLE = 1  # raise when photos are to look different: those on disk are then drawn again
SCENES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    scene.__name__: scene
    for scene in (
        scenes.beach, scenes.pitch, scenes.court, scenes.snow, scenes.forest, rooms.office, rooms.bedroom, rooms.party,
    )
}
_Palette = tuple[Rgb, Rgb, Rgb]
# By scene: colours as (main, second, accent), and surface patterns.
LOOKS: dict[str, tuple[tuple[_Palette, ...], tuple[str, ...]]] = {
    "beach": (
        (
            ((255, 150, 140), (255, 244, 214), (92, 200, 208)), ((250, 224, 120), (255, 255, 250), (255, 140, 150)),
            ((140, 220, 205), (255, 250, 235), (255, 170, 130)), ((168, 208, 255), (255, 236, 180), (255, 130, 140)),
        ),
        ("stripes", "dots"),
    ),
    "pitch": (
        (
            ((248, 248, 248), (24, 24, 26), (210, 30, 40)), ((214, 32, 40), (250, 250, 250), (20, 20, 24)),
            ((250, 210, 30), (24, 24, 26), (250, 250, 250)), ((28, 70, 180), (250, 250, 250), (240, 40, 40)),
        ),
        ("panels", "halves"),
    ),
    "court": (
        (
            ((226, 112, 40), (44, 28, 20), (250, 240, 224)), ((232, 92, 30), (30, 50, 110), (255, 250, 240)),
            ((128, 60, 30), (240, 150, 60), (28, 22, 20)),
        ),
        ("plain", "halves"),
    ),
    "snow": (
        (
            ((40, 84, 150), (240, 246, 255), (200, 40, 50)), ((196, 36, 48), (248, 248, 252), (30, 50, 96)),
            ((150, 200, 236), (250, 252, 255), (44, 70, 130)),
        ),
        ("zigzag", "dots"),
    ),
    "forest": (
        (
            ((96, 108, 56), (66, 76, 44), (196, 110, 44)), ((150, 128, 84), (92, 84, 54), (60, 70, 40)),
            ((172, 88, 40), (88, 92, 52), (226, 190, 120)),
        ),
        ("camo", "plaid"),
    ),
    "office": (
        (
            ((44, 50, 60), (92, 100, 112), (180, 150, 90)), ((26, 42, 78), (110, 124, 150), (210, 214, 220)),
            ((128, 132, 138), (60, 64, 70), (30, 34, 40)),
        ),
        ("plain", "pinstripe"),
    ),
    "bedroom": (
        (
            ((236, 222, 200), (200, 160, 130), (150, 90, 76)), ((204, 128, 104), (242, 226, 208), (120, 70, 60)),
            ((210, 164, 164), (246, 234, 224), (150, 96, 104)),
        ),
        ("knit", "dots"),
    ),
    "party": (
        (
            ((240, 50, 160), (255, 214, 60), (60, 220, 255)), ((60, 200, 250), (250, 70, 180), (255, 230, 90)),
            ((250, 200, 50), (150, 60, 220), (255, 80, 170)), ((140, 70, 230), (80, 250, 190), (255, 210, 70)),
        ),
        ("confetti", "stripes"),
    ),
}


def render(item: Item, seed: int) -> bytes:
    """An item's photo as JPEG, SIZE x SIZE; the same bytes for the same item and seed."""
    rng = np.random.default_rng([seed, 3, *item.item_id.encode()])
    palettes, patterns = LOOKS[item.scene]
    backdrop = Image.fromarray(np.clip(SCENES[item.scene](rng), 0, 255).astype(np.uint8))
    main, second, accent = palettes[rng.integers(len(palettes))]
    palette = (_jittered(main, rng), _jittered(second, rng), _jittered(accent, rng))
    canvas = Canvas(palette, str(rng.choice(patterns)), rng)
    SHAPES[item.product](canvas)
    photo = _placed(canvas.lit(), backdrop, rng)
    buffer = BytesIO()
    photo.save(buffer, "JPEG", quality=90, comment=_mark(item, seed))
    return buffer.getvalue()


def render_all(items: list[Item], seed: int, folder: Path) -> list[str]:
    """Write each item's photo into `folder`, atomically, unless it is there already. Returns the file names."""
    names = [f"{item.item_id}.jpg" for item in items]
    for item, name in tqdm(list(zip(items, names, strict=True)), desc="rendering", unit="photo", disable=None):
        if not _is_drawn(folder / name, _mark(item, seed)):
            with replacing(folder / name) as temporary:
                temporary.write_bytes(render(item, seed))
    return names


def _mark(item: Item, seed: int) -> bytes:
    """What the file says of how it was made, as its JPEG comment."""
    return f"tessera demo shop {STYLE}: {item.item_id} {item.scene}, seed {seed}".encode()


def _is_drawn(path: Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark in file.read(4096)


def _jittered(colour: Rgb, rng: np.random.Generator) -> Rgb:
    red, green, blue = np.clip(np.asarray(colour) + rng.normal(0, 9, 3), 0, 255).astype(int)
    return (int(red), int(green), int(blue))


def _placed(product: Image.Image, backdrop: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    product = product.rotate(rng.uniform(-7, 7), Image.Resampling.BILINEAR)
    side = int(SIZE * rng.uniform(0.60, 0.72))
    product = product.resize((side, side), Image.Resampling.LANCZOS)
    left = (SIZE - side) // 2 + int(rng.integers(-18, 19))
    top = SIZE - side - int(rng.integers(4, 20))
    alpha = product.getchannel("A")
    foot = top + (alpha.getbbox() or (0, 0, side, side))[3]
    # Its own outline, flattened and blurred, around the line on which it stands.
    shadow = Image.new("L", (side, side // 3))
    shadow.paste(alpha.resize((side, side // 6)), (0, side // 12))
    shadow = shadow.filter(ImageFilter.GaussianBlur(5)).point([int(value * 0.6) for value in range(256)])
    photo = backdrop.copy()
    photo.paste((12, 12, 18), (left + 4, foot - side // 5), shadow)
    photo.paste(product, (left, top), product)
    return photo


