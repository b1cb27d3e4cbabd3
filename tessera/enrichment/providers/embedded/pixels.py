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
FLAT = 0.004  # grain below which surroundings are one flat colour
PATTERNED = 0.07  # grain above which a product has a pattern or print
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
    """What the rules saw: the product's colour names by share, its outline ("tall", "wide" or "compact") and whether it
    is patterned; the background's colour; the scene if one was recognised; and the light, each figure in [0, 1].
    """

    colours: tuple[str, ...]
    shape: str
    patterned: bool
    background: str
    scene: str | None
    brightness: float
    warmth: float
    vividness: float


def look_at(photo: "Image") -> Look:
    """Analyse an RGB photo."""
    rgb = np.asarray(photo.resize((SIDE, SIDE), reducing_gap=2.0), dtype=np.float32) / 255.0
    names, border = _nearest_names(rgb), _border_mask()
    product = _product_mask(rgb, border)
    _, saturation, value = _hsv(rgb)
    background = _common(names[border], np.ones(int(border.sum()), dtype=np.float32), 1)[0]
    # People name a product by its strong colours, not by its shadows.
    colours = _common(names[product], 0.3 + saturation[product], 3)
    red, _, blue = (float(mean) for mean in rgb.reshape(-1, 3).mean(axis=0))
    light = float(value.mean()), red - blue, float(saturation.mean())
    return Look(colours, _shape(product), _grain(value, product) > PATTERNED, background, scene_of(rgb), *light)


def _product_mask(rgb: NDArray[np.float32], border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[SIDE, SIDE]: central pixels whose colour is rare at the border; the whole centre if there are next to none."""
    bins = (rgb * 7.999).astype(np.int64) @ np.array([64, 8, 1])
    share = np.bincount(bins[border], minlength=512) / border.sum()
    centre = np.zeros((SIDE, SIDE), dtype=bool)
    centre[SIDE // 5 : -SIDE // 5, SIDE // 5 : -SIDE // 5] = True
    product = centre & (share[bins] < 0.02)
    return product if product.sum() >= 0.05 * centre.sum() else centre


def _shape(product: NDArray[np.bool_]) -> str:
    """The outline by the spread of the product's pixels: height over width."""
    rows, columns = np.nonzero(product)
    ratio = (rows.std() + 1e-6) / (columns.std() + 1e-6)
    return "tall" if ratio > 1.2 else "wide" if ratio < 0.83 else "compact"


def _common(names: NDArray[np.intp], weights: NDArray[np.float32], most: int) -> tuple[str, ...]:
    """The names of most weight, those with at least 12% of it, and always the first."""
    counts: dict[str, float] = {}
    for index, weight in enumerate(np.bincount(names, weights, minlength=len(NAMES))):
        counts[NAMES[index]] = counts.get(NAMES[index], 0.0) + float(weight)
    ranked = sorted(counts, key=lambda name: -counts[name])
    least = 0.12 * float(weights.sum())
    return tuple(name for rank, name in enumerate(ranked[:most]) if rank == 0 or counts[name] >= least)


def _border_mask(width: int = SIDE // 8) -> NDArray[np.bool_]:
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[width:-width, width:-width] = False
    return mask


def scene_of(rgb: NDArray[np.float32]) -> str | None:
    """The scene by what covers the ground (lower border) and the top; None for plain or unknown surroundings.

    Args:
        rgb: [SIDE, SIDE, 3] in [0, 1].
    """
    hue, saturation, value = _hsv(rgb)
    ground, top = _ground_and_top()
    if _grain(value, ground | top) < FLAT:  # one flat colour all around: a studio, whatever the colour
        return None
    below, above = _materials(hue, saturation, value, ground), _materials(hue, saturation, value, top)
    around = {name: (below[name] + above[name]) / 2 for name in below}
    lights = _hue_spread(hue[ground | top], saturation[ground | top])
    leaves = around["dim"] > 0.55 and around["green"] > 0.2 and max(around["brown"] - 0.15, around["dark"] - 0.25) > 0
    rules = {
        "forest": leaves and around["green"] + around["brown"] > 0.55,
        "grass": below["green"] > 0.45,
        "party": around["dim"] > 0.55 and around["grey"] < 0.3 and lights > 0.36,
        "night": around["dark"] > 0.55,
        "beach": below["sand"] > 0.45 and above["blue"] > 0.3,
        "snow": below["snow"] > 0.45 and around["frost"] > 0.25 and below["grey"] < 0.5,
        "home": below["sand"] > 0.3 and below["sand"] + below["wood"] > 0.5 and above["sand"] + above["wood"] > 0.45,
        "wood": below["wood"] > 0.5,
        "water": below["blue"] > 0.5,
        "office": below["grey"] > 0.5 and above["grey"] + above["snow"] > 0.5 and above["dim"] < 0.3,
        "street": below["grey"] > 0.5 and (above["blue"] > 0.3 or below["dim"] > 0.6),
    }
    return next((name for name, holds in rules.items() if holds), None)


def _materials(
    hue: NDArray[np.float32], saturation: NDArray[np.float32], value: NDArray[np.float32], where: NDArray[np.bool_]
) -> dict[str, float]:
    """Share of each material, by colour, among the pixels of a region."""
    hue, saturation, value = hue[where], saturation[where], value[where]
    cold = (hue > 185) & (hue < 265)
    masks = {
        "dark": value < 0.22,
        "dim": value < 0.55,
        "grey": (value >= 0.22) & (value <= 0.9) & (saturation < 0.15),
        "sand": (hue >= 18) & (hue <= 58) & (saturation >= 0.13) & (saturation <= 0.5) & (value > 0.62),
        "wood": (hue >= 10) & (hue <= 42) & (saturation > 0.42) & (value >= 0.3) & (value <= 0.95),
        "brown": (hue >= 8) & (hue <= 60) & (saturation > 0.2) & (value < 0.6),
        "green": (hue > 60) & (hue <= 170) & (saturation > 0.18) & (value > 0.08),
        "blue": (hue >= 170) & (hue <= 240) & (saturation > 0.2) & (value > 0.35),
        "snow": (value > 0.75) & (saturation < 0.3) & (cold | (saturation < 0.06)),
        "frost": (value > 0.6) & (saturation > 0.03) & (saturation < 0.4) & cold,
    }
    return {name: float(mask.mean()) for name, mask in masks.items()}


def _ground_and_top() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the lower and the upper part of the photo's border; the product is between them."""
    sides = np.zeros((SIDE, SIDE), dtype=bool)
    sides[:, : SIDE // 7] = sides[:, -SIDE // 7 :] = True
    ground, top = sides.copy(), sides.copy()
    ground[: int(SIDE * 0.6)] = False
    ground[-SIDE // 9 :] = True
    top[int(SIDE * 0.35) :] = False
    top[: SIDE // 9] = True
    return ground, top


def _hue_spread(hue: NDArray[np.float32], saturation: NDArray[np.float32]) -> float:
    """Entropy of the hues of the coloured pixels over 12 bins, 0 (one hue) to 1 (all alike)."""
    counts = np.bincount((hue[saturation > 0.3] / 30.0).astype(int) % 12, minlength=12)
    share = counts / max(counts.sum(), 1)
    return float(-(share * np.log(share, where=share > 0, out=np.zeros(12))).sum() / np.log(12))


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
