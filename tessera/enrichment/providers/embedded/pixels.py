"""What pixels say of a photo without any model: colours of product and surroundings, surface, place and light.

Plain rules over HSV and Lab values of a 64 x 64 version of the photo. They know materials by colour and grain only:
pale sand and a grainy beige wall are the same to them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64
# Names of colours by sRGB anchors; a pixel takes the name of its nearest anchor in CIELAB.
PALETTE: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (20, 20, 22)), ("charcoal", (60, 62, 66)), ("grey", (128, 128, 128)), ("light grey", (195, 196, 198)),
    ("white", (248, 248, 248)), ("red", (200, 30, 40)), ("red", (235, 60, 60)), ("dark red", (110, 20, 30)),
    ("orange", (240, 130, 30)), ("brown", (115, 72, 42)), ("brown", (150, 100, 60)), ("tan", (195, 155, 110)),
    ("beige", (228, 210, 178)), ("yellow", (245, 215, 60)), ("olive", (120, 120, 50)), ("lime", (165, 210, 60)),
    ("green", (60, 150, 70)), ("green", (95, 160, 60)), ("dark green", (25, 75, 45)), ("teal", (30, 135, 135)),
    ("turquoise", (80, 205, 205)), ("light blue", (160, 205, 240)), ("blue", (40, 105, 205)), ("navy", (25, 40, 95)),
    ("purple", (120, 60, 160)), ("lavender", (190, 170, 225)), ("pink", (240, 150, 180)), ("magenta", (215, 50, 140)),
)  # fmt: skip
NAMES = tuple(name for name, _ in PALETTE)


@dataclass(frozen=True)
class Look:
    """What the rules saw: colour names by share of the product, the scene if one was recognised, and the light."""

    colours: tuple[str, ...]
    background: str
    scene: str | None
    brightness: float
    warmth: float
    vividness: float


def look_at(photo: "Image") -> Look:
    """Analyse an RGB photo."""
    rgb = np.asarray(photo.resize((SIDE, SIDE), reducing_gap=2.0), dtype=np.float32) / 255.0
    names = _nearest_names(rgb)
    border = _border_mask()
    background = _common(names[border], 1)[0]
    colours = _product_colours(rgb, names, border)
    hue, saturation, value = _hsv(rgb)
    scene = _scene(hue, saturation, value)
    light = rgb.reshape(-1, 3).mean(axis=0)
    return Look(
        colours, background, scene, float(value.mean()), float(light[0] - light[2]), float(saturation.mean())
    )


def _product_colours(rgb: NDArray[np.float32], names: NDArray[np.intp], border: NDArray[np.bool_]) -> tuple[str, ...]:
    """Up to three names that cover the product: central pixels whose colour is rare at the border."""
    bins = (rgb * 7.999).astype(np.int64) @ np.array([64, 8, 1])
    share = np.bincount(bins[border], minlength=512) / border.sum()
    centre = np.zeros((SIDE, SIDE), dtype=bool)
    centre[SIDE // 5 : -SIDE // 5, SIDE // 5 : -SIDE // 5] = True
    product = centre & (share[bins] < 0.02)
    if product.sum() < 0.05 * centre.sum():
        product = centre
    return _common(names[product], 3)


def _common(names: NDArray[np.intp], most: int) -> tuple[str, ...]:
    """The most frequent colour names with at least 12% of the pixels, and always the first."""
    counts: dict[str, int] = {}
    for index, count in enumerate(np.bincount(names, minlength=len(NAMES))):
        counts[NAMES[index]] = counts.get(NAMES[index], 0) + int(count)
    ranked = sorted(counts, key=lambda name: -counts[name])
    return tuple(n for rank, n in enumerate(ranked[:most]) if rank == 0 or counts[n] >= 0.12 * len(names))


def _border_mask(width: int = SIDE // 8) -> NDArray[np.bool_]:
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[width:-width, width:-width] = False
    return mask


def _scene(hue: NDArray[np.float32], saturation: NDArray[np.float32], value: NDArray[np.float32]) -> str | None:
    """The scene by what covers the ground (lower border) and the top; None for plain or unknown surroundings."""
    sides = np.zeros((SIDE, SIDE), dtype=bool)
    sides[:, : SIDE // 7] = sides[:, -SIDE // 7 :] = True
    ground, top = sides.copy(), sides.copy()
    ground[: int(SIDE * 0.6)] = False
    ground[-SIDE // 9 :] = True
    top[int(SIDE * 0.35) :] = False
    top[: SIDE // 9] = True
    white = (value > 0.9) & (saturation < 0.1)
    materials = {
        "night": value < 0.25,
        "snow": (value > 0.78) & (saturation < 0.16) & ((hue > 170) & (hue < 270) & (saturation > 0.015) | white),
        "street": (value >= 0.25) & (value <= 0.78) & (saturation < 0.15),
        "beach": (hue >= 25) & (hue <= 58) & (saturation >= 0.13) & (saturation <= 0.48) & (value > 0.68),
        "wood": (hue >= 10) & (hue <= 42) & (saturation > 0.3) & (value >= 0.25) & (value <= 0.85),
        "forest": (hue >= 70) & (hue <= 175) & (saturation > 0.15) & (value >= 0.1) & (value < 0.36),
        "grass": (hue >= 65) & (hue <= 165) & (saturation > 0.25) & (value >= 0.33),
        "water": (hue >= 175) & (hue <= 235) & (saturation > 0.3) & (value > 0.3),
    }
    below = {name: float(mask[ground].mean()) for name, mask in materials.items()}
    above = {name: float(mask[top].mean()) for name, mask in materials.items()}
    grain = _grain(value, ground | top)
    if grain < 0.004:  # one flat colour all around: a studio, whatever the colour
        return None
    if above["night"] > 0.6 and below["night"] > 0.45:
        return "night"
    if below["snow"] > 0.5:
        # White paper is as white as snow; snow has grain, or a sky above it.
        return "snow" if grain > 0.012 and (above["snow"] < 0.95 or grain > 0.02) else None
    name = max(below, key=lambda material: below[material])
    if below[name] < 0.45 or name == "night":
        return None
    return name


def _grain(value: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    """Mean absolute difference of neighbouring brightness in a region, 0 to 1."""
    steps = np.zeros_like(value)
    steps[:, 1:] += np.abs(np.diff(value, axis=1))
    steps[1:] += np.abs(np.diff(value, axis=0))
    return float(steps[where].mean() / 2)


def _hsv(rgb: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Hue in degrees, saturation and value in [0, 1], each [H, W]."""
    value, low = rgb.max(axis=2), rgb.min(axis=2)
    span = value - low
    safe = np.where(span > 0, span, 1.0)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    by_red, by_green, by_blue = (green - blue) / safe % 6.0, (blue - red) / safe + 2.0, (red - green) / safe + 4.0
    hue = np.select([value == red, value == green], [by_red, by_green], by_blue)
    return (60.0 * hue).astype(np.float32), span / np.maximum(value, 1e-6), value


def _nearest_names(rgb: NDArray[np.float32]) -> NDArray[np.intp]:
    """[H, W, 3] to [H, W] indices into PALETTE."""
    anchors = _lab(np.array([anchor for _, anchor in PALETTE], dtype=np.float32) / 255.0)
    distance = ((_lab(rgb)[:, :, None, :] - anchors) ** 2).sum(axis=-1)
    return distance.argmin(axis=-1)


def _lab(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB in [0, 1], last axis 3, to CIELAB (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)
