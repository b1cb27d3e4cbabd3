"""Where the demo shop photographs its products: eight scenes with texture, gradients and noise, never twice the same.

Each function returns [SIZE, SIZE, 3] float32 in 0..255; all randomness comes from the generator it is given.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 224
Array = np.ndarray
Colour = tuple[float, float, float]
Y, X = (grid.astype(np.float32) / (SIZE - 1) for grid in np.mgrid[0:SIZE, 0:SIZE])


def fractal(rng: np.random.Generator, rows: int, columns: int, octaves: int = 4, size: int = SIZE) -> Array:
    """Smooth noise in about -1..1, [size, size]: random grids from rows x columns on, each octave finer and weaker."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        shape = (min(rows << octave, size), min(columns << octave, size))
        grid = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
        total += 0.55**octave * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return total


def mix(first: Colour | Array, second: Colour | Array, share: Array) -> Array:
    """`first` where share is 0, `second` where it is 1; share is [SIZE, SIZE]."""
    share = np.clip(share, 0, 1)[..., None]
    return (np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share).astype(np.float32)


def grain(rng: np.random.Generator, image: Array, strength: float) -> Array:
    return image + rng.normal(0, strength, (SIZE, SIZE, 1)).astype(np.float32)


def drawn(image: Array, draw: Callable[[ImageDraw.ImageDraw], None], blur: float = 0, share: float = 1) -> Array:
    """What `draw` paints (pixel units) over `image`, blurred and faded."""
    layer = Image.new("RGBA", (SIZE, SIZE))
    draw(ImageDraw.Draw(layer))
    if blur:
        layer = layer.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(layer, np.float32)
    return mix(image, pixels[..., :3], pixels[..., 3] / 255 * share)


def glow(image: Array, x: float, y: float, radius: float, colour: Colour, strength: float) -> Array:
    light = strength * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * radius**2))
    return image + light[..., None] * np.asarray(colour, np.float32)


def beach(rng: np.random.Generator) -> Array:
    """Sky with clouds, a band of turquoise sea with foam, and rippled sand."""
    horizon, shore = 0.30 + rng.uniform(-0.05, 0.05), 0.45 + rng.uniform(-0.03, 0.04)
    sky = mix((92, 168, 232), (206, 234, 248), Y / horizon)
    sky = mix(sky, (255, 255, 255), 0.9 * np.clip(fractal(rng, 3, 2) - 0.1, 0, 1))
    sea = mix((22, 128, 170), (126, 216, 208), (Y - horizon) / (shore - horizon))
    sea += 26 * np.clip(fractal(rng, 40, 5, 3), -1, 1)[..., None]
    tone = fractal(rng, 5, 3)
    sand = mix((240, 219, 170), (216, 182, 124), 0.5 + 0.45 * tone + 0.2 * np.sin(70 * Y + 9 * tone) * Y)
    edge = shore + 0.02 * fractal(rng, 1, 5, 3)
    image = np.where((edge > Y)[..., None], np.where((horizon > Y)[..., None], sky, sea), grain(rng, sand, 11))
    return mix(image, (252, 253, 250), 0.9 * np.exp(-(((Y - edge) / 0.012) ** 2)))


def pitch(rng: np.random.Generator) -> Array:
    """A mown football pitch with white lines, a goal, and a stand out of focus."""
    horizon = 0.27 + rng.uniform(-0.05, 0.03)
    depth = 1 / np.maximum(Y - horizon + 0.10, 0.02)
    stripes = np.sin(2.2 * depth + rng.uniform(0, 6)) > 0
    lawn = np.where(stripes[..., None], (70.0, 150, 52), (50.0, 124, 42)) + 16 * fractal(rng, 4, 4)[..., None]
    blades = fractal(rng, 56, 112, 2) * (0.4 + Y)
    lawn = grain(rng, lawn + blades[..., None] * (26, 34, 18), 9)
    slant, start = rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.8)
    line = np.abs(X - start - slant * (Y - horizon)) < 0.02 * (0.4 + Y)
    lawn = mix(lawn, (238, 243, 236), 0.85 * (line | (np.abs(Y - horizon - 0.07) < 0.006)))
    crowd = mix((58, 84, 62), (120, 140, 120), 0.5 + 0.5 * fractal(rng, 14, 24, 2)) + 12 * fractal(rng, 2, 4)[..., None]
    image = np.where((horizon > Y)[..., None], crowd, lawn)
    left, top, bottom = rng.uniform(20, 110), 0.11 * SIZE, (horizon + 0.045) * SIZE

    def goal(draw: ImageDraw.ImageDraw) -> None:
        for step in range(0, 91, 6):
            draw.line((left + step, top, left + step, bottom), (235, 240, 240, 90))
        for height in np.arange(top, bottom, 6):
            draw.line((left, height, left + 90, height), (235, 240, 240, 90))
        draw.line((left, bottom, left, top, left + 90, top, left + 90, bottom), (250, 250, 250, 255), 3)

    return drawn(image, goal)


def court(rng: np.random.Generator) -> Array:
    """A gym hall: varnished planks in perspective with court lines, a panelled wall, light from above."""
    horizon = 0.30 + rng.uniform(-0.05, 0.05)
    across = (X - 0.5) / np.maximum(Y - horizon + 0.28, 0.05)
    plank = np.floor(across * 13 + 100).astype(int)
    tone = rng.uniform(-1, 1, 256)[plank % 256] + 0.35 * fractal(rng, 3, 60, 3)
    floor = mix((196, 132, 68), (150, 90, 40), 0.5 + 0.4 * tone)
    floor = floor * (1 - 0.35 * (np.abs(across * 13 % 1 - 0.5) > 0.46))[..., None]
    floor = glow(floor, rng.uniform(0.2, 0.8), horizon + 0.1, 0.22, (110, 96, 70), 0.8)
    arc = np.abs(np.hypot((X - 0.5) * 1.1, (Y - horizon) * 2.1) - rng.uniform(0.5, 0.7)) < 0.013
    floor = mix(floor, (240, 238, 230), 0.8 * arc)
    floor = mix(floor, (36, 74, 150), 0.8 * (np.abs(across - rng.uniform(-0.7, 0.7)) < 0.03))
    wall = mix((190, 186, 176), (150, 148, 142), Y / horizon) * (1 - 0.2 * (X * 7 % 1 < 0.04))[..., None]
    pad = (horizon - 0.12 < Y)[..., None]
    wall = np.where(pad, np.asarray((44.0, 70, 120)) * (0.85 + 0.3 * (X * 5 % 1 > 0.04))[..., None], wall)
    image = np.where((horizon > Y)[..., None], wall, floor)
    x, y = rng.uniform(50, 170), 0.1 * SIZE

    def hoop(draw: ImageDraw.ImageDraw) -> None:
        draw.rectangle((x - 28, y - 18, x + 28, y + 18), (238, 238, 240, 255), (60, 60, 60, 255), 2)
        draw.rectangle((x - 10, y - 6, x + 10, y + 8), None, (200, 60, 30, 255), 2)
        draw.ellipse((x - 11, y + 10, x + 11, y + 18), None, (226, 92, 30, 255), 3)

    return grain(rng, drawn(image, hoop), 4)


def snow(rng: np.random.Generator) -> Array:
    """Mountains under a cold sky, firs, and fresh snow with flakes in the air."""
    horizon = 0.42 + rng.uniform(-0.05, 0.05)
    image = mix((118, 164, 214), (222, 234, 246), Y / horizon)
    ridge = horizon - 0.15 + 0.12 * fractal(rng, 1, 3, 5)[0]
    rock = mix((228, 238, 250), (104, 126, 160), 0.35 + 0.8 * fractal(rng, 6, 10, 4))
    image = np.where((ridge[None] < Y)[..., None], rock, image)
    slope = horizon + 0.03 * fractal(rng, 1, 2, 2)[0]
    drift = fractal(rng, 3, 3, 4)
    ground = grain(rng, mix((250, 252, 255), (184, 206, 236), 0.3 + 0.45 * drift), 5)
    image = np.where((slope[None] < Y)[..., None], ground, image)

    def firs(draw: ImageDraw.ImageDraw) -> None:
        for x in rng.uniform(0, SIZE, 13):
            foot = (slope[int(x)] + rng.uniform(0, 0.04)) * SIZE
            tall = rng.uniform(26, 62)
            for tier in range(3):
                low, wide = foot - tier * tall / 4, tall * (0.26 - 0.06 * tier)
                draw.polygon((x - wide, low, x + wide, low, x, low - tall / 2), (34, 72 - 6 * tier, 66, 255))
                draw.line((x - wide * 0.6, low - tall / 6, x, low - tall / 2), (236, 243, 250, 230), 3)

    def flakes(draw: ImageDraw.ImageDraw) -> None:
        for x, y, r in zip(rng.uniform(0, SIZE, 70), rng.uniform(0, SIZE, 70), rng.uniform(0.6, 2.6, 70), strict=True):
            draw.ellipse((x - r, y - r, x + r, y + r), (255, 255, 255, 235))

    return drawn(drawn(image, firs, 0.6), flakes, 0.7)


def forest(rng: np.random.Generator) -> Array:
    """A clearing at dusk: trunks in mist, leaf litter, and the light of a fire at one side."""
    horizon = 0.5 + rng.uniform(-0.05, 0.05)
    image = mix((26, 46, 36), (126, 140, 104), Y / horizon + 0.25 * fractal(rng, 3, 3))

    def trunks(draw: ImageDraw.ImageDraw) -> None:
        for depth in np.sort(rng.uniform(0.25, 1, 13)):
            x, wide = rng.uniform(-5, SIZE), 4 + 12 * depth
            shade = 96 - 62 * depth
            foot, bark = (horizon + 0.06 * depth) * SIZE, np.asarray((1.0, 0.86, 0.66)) * shade
            draw.rectangle((x, 0, x + wide, foot), (*bark.astype(int), 255))
            draw.rectangle((x, 0, x + wide * 0.25, foot), (*(bark * 1.5).astype(int), 255))

    image = drawn(image, trunks, 0.7) + 14 * fractal(rng, 8, 50, 2)[..., None]
    crowns = fractal(rng, 7, 9, 4) + 1.6 * (0.26 - Y) * 3
    image = mix(image, mix((18, 46, 22), (66, 102, 44), 0.5 + fractal(rng, 40, 40, 2)), (crowns > 0.25) * 0.95)
    litter = fractal(rng, 30, 44, 3)
    ground = mix((58, 66, 30), (128, 92, 50), 0.5 + 0.7 * litter) * (0.75 + 0.4 * fractal(rng, 3, 3, 2))[..., None]
    image = np.where((horizon + 0.02 * fractal(rng, 1, 6, 3)[0][None] < Y)[..., None], grain(rng, ground, 9), image)
    side = 0.06 if rng.random() < 0.5 else 0.94
    image = glow(image, side, 0.68, 0.2, (255, 130, 30), 0.75)

    def fire(draw: ImageDraw.ImageDraw) -> None:
        for colour, scale in (((240, 90, 20, 255), 1.0), ((255, 170, 40, 255), 0.65), ((255, 240, 150, 255), 0.3)):
            x, y, r = side * SIZE, 0.72 * SIZE, 17 * scale
            tongues = (x - r / 2, y - r * 1.5, x, y - r * 0.9, x + r * 0.2, y - r * 2.3)
            draw.polygon((x - r, y, *tongues, x + r, y), colour)

    return drawn(image, fire, 1.4)
