"""A transparent sheet on which products are drawn in an intent's colours and surface pattern, then lit."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tessera.catalog.shop.scenes import Array, fractal

EDGE = 320  # drawn at twice its size in the photo and scaled down, which smooths the edges
Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]


def tint(colour: Rgb, factor: float) -> Rgb:
    """Darker below 1, lighter above."""
    values = np.asarray(colour, float)
    values = values * factor if factor <= 1 else 255 - (255 - values) / factor
    return (int(values[0]), int(values[1]), int(values[2]))


class Canvas:
    """Shapes in unit coordinates (0..1, y downwards), filled by role: "main" is patterned, the others are plain."""

    def __init__(self, palette: tuple[Rgb, Rgb, Rgb], pattern: str, rng: np.random.Generator) -> None:
        main, second, accent = palette
        self.image = Image.new("RGBA", (EDGE, EDGE))
        self.colours: dict[str, Rgb] = {
            "second": second, "accent": accent, "shade": tint(main, 0.66), "dark": tint(main, 0.34),
            "ink": (34, 34, 38), "light": (246, 245, 240), "metal": (178, 182, 188),
        }
        self.fabric = Image.fromarray(_pattern(pattern, main, second, accent, rng))

    def polygon(self, role: str, *points: float) -> None:
        """A filled polygon; `points` are x, y, x, y, ..."""
        self._fill(role, lambda draw: draw.polygon(_scaled(points), 255))

    def ellipse(self, role: str, *box: float) -> None:
        """A filled ellipse in a box."""
        self._fill(role, lambda draw: draw.ellipse(_scaled(box), 255))

    def rounded(self, role: str, *box: float, radius: float = 0.05) -> None:
        """A rectangle with round corners."""
        self._fill(role, lambda draw: draw.rounded_rectangle(_scaled(box), radius * EDGE, 255))

    def arc(self, role: str, *box: float, start: float, end: float, width: float = 0.03) -> None:
        """A part of an ellipse's line, in degrees clockwise from three o'clock."""
        self._fill(role, lambda draw: draw.arc(_scaled(box), start, end, 255, int(width * EDGE)))

    def line(self, role: str, *points: float, width: float = 0.02) -> None:
        """A line through the points."""
        self._fill(role, lambda draw: draw.line(_scaled(points), 255, int(width * EDGE), "curve"))

    def _fill(self, role: str, draw: Callable[[ImageDraw.ImageDraw], None]) -> None:
        mask = Image.new("L", (EDGE, EDGE))
        draw(ImageDraw.Draw(mask))
        box = mask.getbbox()
        if box is None:
            return
        mask = mask.crop(box)
        paint = self.fabric.crop(box) if role == "main" else Image.new("RGB", mask.size, self.colours[role])
        paint.putalpha(255)
        self.image.paste(paint, box[:2], mask)

    def lit(self) -> Image.Image:
        """The drawing with the roundness that light from the upper left gives."""
        alpha = self.image.getchannel("A").resize((EDGE // 4, EDGE // 4))
        height = np.asarray(alpha.filter(ImageFilter.GaussianBlur(6)), np.float32) / 255
        down, right = np.gradient(height)
        relief = Image.fromarray(np.asarray(1 + 4.0 * (right + down), np.float32))
        light = np.asarray(relief.resize((EDGE, EDGE), Image.Resampling.BILINEAR))
        pixels = np.array(self.image)
        pixels[..., :3] = np.clip(pixels[..., :3] * np.clip(light, 0.5, 1.35)[..., None], 0, 255)
        return Image.fromarray(pixels)


def _scaled(points: Sequence[float]) -> list[float]:
    return [value * EDGE for value in points]


def _pattern(kind: str, main: Rgb, second: Rgb, accent: Rgb, rng: np.random.Generator) -> Array:
    """[EDGE, EDGE, 3] uint8 of a surface."""
    y, x = (grid.astype(np.float32) / EDGE for grid in np.mgrid[0:EDGE, 0:EDGE])
    x, y = x + rng.uniform(0, 1), y + rng.uniform(0, 1)
    layers = np.zeros((EDGE, EDGE), np.uint8)  # 0 main, 1 second, 2 accent
    if kind == "stripes":
        layers = np.digitize((0.5 * x + y) * rng.uniform(4.5, 6.5) % 1, [0.5, 0.85]).astype(np.uint8)
    elif kind == "dots":
        row = np.floor(y * 11)
        layers[np.hypot((x * 11 + 0.5 * (row % 2)) % 1 - 0.5, y * 11 % 1 - 0.5) < 0.27] = 1
    elif kind == "panels":
        row = np.floor(y * 5)
        cell = np.hypot((x * 5 + 0.5 * (row % 2)) % 1 - 0.5, y * 5 % 1 - 0.5)
        layers[cell < 0.3] = 1
        layers[(cell > 0.3) & (cell < 0.36)] = 2
    elif kind == "halves":
        layers = np.digitize((x - y) * 1.6 % 1, [0.5, 0.58]).astype(np.uint8)
        layers = np.choose(layers, [0, 2, 1]).astype(np.uint8)
    elif kind == "zigzag":
        wave = (y * 8 + 0.6 * np.abs((x * 8) % 2 - 1)) % 1
        layers = np.digitize(wave, [0.55, 0.8]).astype(np.uint8)
    elif kind == "camo":
        cloud = fractal(rng, 6, 6, 3, EDGE)
        layers = np.digitize(cloud, [0.1, 0.55]).astype(np.uint8)
    elif kind == "plaid":
        layers[(x * 7 % 1 < 0.3) | (y * 7 % 1 < 0.3)] = 1
        layers[(x * 7 % 1 < 0.06) | (y * 7 % 1 < 0.06)] = 2
    elif kind == "pinstripe":
        layers[x * 26 % 1 < 0.1] = 1
    elif kind == "confetti":
        bits = rng.uniform(0, 1, (40, 40))
        layers = np.kron(np.digitize(bits, [0.72, 0.88]), np.ones((8, 8)))[:EDGE, :EDGE].astype(np.uint8)
    fabric = np.asarray([main, second, accent], np.float32)[layers]
    if kind == "knit":
        fabric = fabric * (0.8 + 0.3 * np.abs(np.sin(x * 95 + 2 * np.sin(y * 140))))[..., None]
    fabric = fabric + rng.normal(0, 5, (EDGE, EDGE, 1)).astype(np.float32)
    return np.clip(fabric, 0, 255).astype(np.uint8)
