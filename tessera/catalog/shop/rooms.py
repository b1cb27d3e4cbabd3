"""The indoor scenes of the demo shop: a desk, a bedroom and a party."""

import numpy as np
from PIL import ImageDraw

from tessera.catalog.shop.scenes import SIZE, Array, X, Y, drawn, fractal, glow, grain, mix


def office(rng: np.random.Generator) -> Array:
    """A grey desk before a window with blinds: monitor, keyboard, files."""
    edge = 0.55 + rng.uniform(-0.04, 0.04)
    wall = mix((222, 225, 229), (190, 195, 202), Y / edge + 0.1 * fractal(rng, 2, 2, 2))
    left, right = (0.05, 0.42) if rng.random() < 0.5 else (0.58, 0.95)
    window = (left < X) & (right > X) & (Y > 0.04) & (edge - 0.1 > Y)
    blinds = mix((246, 250, 255), (176, 190, 206), (Y * SIZE / 7 % 1 > 0.62) * 1.0)
    image = np.where(window[..., None], blinds, wall)
    laminate = mix((176, 172, 168), (140, 138, 138), (Y - edge) / (1 - edge) + 0.25 * fractal(rng, 40, 3, 3))
    image = np.where((edge < Y)[..., None], laminate, image)
    screen = (0.64 if left < 0.3 else 0.06) * SIZE

    def things(draw: ImageDraw.ImageDraw) -> None:
        top, low = 0.16 * SIZE, 0.47 * SIZE
        draw.rectangle((screen + 28, low, screen + 40, edge * SIZE + 4), (64, 67, 72, 255))
        draw.rectangle((screen, top, screen + 68, low), (38, 41, 46, 255))
        draw.rectangle((screen + 3, top + 3, screen + 65, low - 3), (98, 138, 178, 255))
        for row in range(5):
            y = top + 12 + 10 * row
            draw.line((screen + 9, y, screen + 20 + rng.uniform(8, 38), y), (226, 236, 244, 255), 2)
        for number in range(4):
            x, tint = (0.45 if left < 0.3 else 0.36) * SIZE + 9 * number, int(rng.integers(70, 150))
            draw.rectangle((x, 0.36 * SIZE, x + 8, edge * SIZE), (tint, tint + 6, tint + 16, 255))
        y = 0.9 * SIZE
        draw.rounded_rectangle((0.1 * SIZE, y - 8, 0.6 * SIZE, y + 16), 4, (68, 71, 77, 255))
        for row in range(3):
            for key in range(15):
                x = 0.115 * SIZE + 7.1 * key
                draw.rectangle((x, y - 5 + 7 * row, x + 5, y - 1 + 7 * row), (116, 120, 127, 255))

    return grain(rng, drawn(image, things, 0.5), 3)


def bedroom(rng: np.random.Generator) -> Array:
    """A warm wall with fairy lights, pillows, and a knitted bedspread in lamp light."""
    edge = 0.5 + rng.uniform(-0.04, 0.04)
    wall = mix((190, 140, 104), (150, 100, 76), Y / edge + 0.2 * fractal(rng, 3, 3))
    wall += 7 * (np.sin(X * 90) * np.sin(Y * 90) > 0.3)[..., None]
    stitch = np.abs(np.sin(X * 62 + 1.6 * np.sin(Y * 118))) * (0.7 + 0.3 * np.sin(Y * 118))
    shade = fractal(rng, 3, 3, 3)
    knit = mix((238, 221, 196), (186, 152, 122), 0.85 - 0.75 * stitch - 0.3 * shade)
    fold = 0.02 * fractal(rng, 1, 4, 3)[0][None]
    image = np.where((edge + fold < Y)[..., None], knit, wall)
    tints = ((214, 168, 148), (232, 214, 190), (172, 112, 96))

    def pillows(draw: ImageDraw.ImageDraw) -> None:
        for index, x in enumerate(rng.uniform(-10, 30, 3) + np.array([0.0, 74, 146])):
            top = (edge - 0.2 + rng.uniform(-0.03, 0.03)) * SIZE
            draw.rounded_rectangle((x, top, x + 78, top + 58), 22, (*tints[(index + int(x)) % 3], 255))

    image = drawn(image, pillows, 1.0) + 9 * fractal(rng, 20, 20, 2)[..., None]
    phase = rng.uniform(0, 6)
    for step in np.linspace(0.03, 0.97, 11):
        image = glow(image, step, 0.1 + 0.05 * np.sin(step * 7 + phase), 0.016, (255, 214, 140), 1.0)
    image = glow(image, rng.choice([0.05, 0.95]), 0.28, 0.26, (255, 190, 110), 0.5)
    return grain(rng, image * (1.05, 0.97, 0.88), 4)


def party(rng: np.random.Generator) -> Array:
    """Neon in the dark: coloured lights out of focus, bunting, confetti, a glossy floor."""
    edge = 0.68 + rng.uniform(-0.04, 0.04)
    image = mix((34, 10, 66), (112, 24, 126), Y / edge + 0.3 * fractal(rng, 2, 2))
    neon = ((255, 60, 170), (60, 210, 255), (255, 200, 60), (160, 90, 255), (90, 255, 160))
    for x, y, size in rng.uniform((0, 0.1, 0.025), (1, edge, 0.075), (22, 3)):
        disc = 1 / (1 + np.exp((np.hypot(X - x, Y - y) - size) * 160))
        image += (rng.uniform(0.25, 0.6) * disc)[..., None] * np.asarray(neon[rng.integers(5)], np.float32)
    mirror = np.clip(2 * edge * (SIZE - 1) - np.arange(SIZE), 0, SIZE - 1).astype(int)
    floor = image[mirror] * 0.42 + np.asarray((30, 6, 46)) + 10 * fractal(rng, 60, 3, 2)[..., None]
    image = np.where((edge < Y)[..., None], floor, image)

    def paper(draw: ImageDraw.ImageDraw) -> None:
        for flag in range(10):
            x, y = flag * 24.0 - 6, 12 + 12 * np.sin(np.pi * flag / 9)
            draw.polygon((x, y, x + 20, y, x + 10, y + 22), (*neon[(flag + int(edge * 1000)) % 5], 255))
        for x, y in rng.uniform(0, SIZE, (120, 2)):
            wide, tall = rng.uniform(1.5, 5, 2)
            draw.rectangle((x, y, x + wide, y + tall), (*neon[rng.integers(5)], 230))

    return grain(rng, drawn(image, paper, 0.4), 5)
