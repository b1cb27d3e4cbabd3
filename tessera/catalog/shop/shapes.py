"""The outlines of the demo shop's fifteen products, in unit coordinates."""

from collections.abc import Callable

from tessera.catalog.shop.canvas import Canvas


def ball(c: Canvas) -> None:
    """A round ball with seams."""
    c.ellipse("main", 0.14, 0.14, 0.86, 0.86)
    c.arc("dark", 0.34, 0.14, 0.66, 0.86, start=0, end=360, width=0.012)
    c.arc("dark", 0.14, 0.4, 0.86, 0.62, start=0, end=180, width=0.012)
    c.ellipse("light", 0.28, 0.22, 0.36, 0.28)


def bag(c: Canvas) -> None:
    """A rucksack with flap and pocket."""
    c.arc("dark", 0.38, 0.04, 0.62, 0.34, start=180, end=360, width=0.04)
    c.rounded("dark", 0.14, 0.4, 0.26, 0.86, radius=0.05)
    c.rounded("dark", 0.74, 0.4, 0.86, 0.86, radius=0.05)
    c.rounded("main", 0.2, 0.16, 0.8, 0.94, radius=0.14)
    c.rounded("second", 0.2, 0.16, 0.8, 0.46, radius=0.13)
    c.rounded("shade", 0.28, 0.58, 0.72, 0.88, radius=0.06)
    c.line("accent", 0.3, 0.65, 0.7, 0.65, width=0.015)
    c.rounded("accent", 0.46, 0.4, 0.54, 0.53, radius=0.02)


def lamp(c: Canvas) -> None:
    """A table lamp with a shade."""
    c.ellipse("dark", 0.28, 0.84, 0.72, 0.95)
    c.rounded("metal", 0.475, 0.48, 0.525, 0.9, radius=0.01)
    c.ellipse("light", 0.24, 0.46, 0.76, 0.6)
    c.polygon("main", 0.34, 0.1, 0.66, 0.1, 0.82, 0.53, 0.18, 0.53)
    c.line("accent", 0.18, 0.52, 0.82, 0.52, width=0.025)
    c.line("second", 0.34, 0.11, 0.66, 0.11, width=0.02)


def mug(c: Canvas) -> None:
    """A mug with its handle to the right."""
    c.arc("shade", 0.54, 0.34, 0.94, 0.76, start=-100, end=100, width=0.075)
    c.rounded("main", 0.16, 0.2, 0.7, 0.9, radius=0.08)
    c.ellipse("second", 0.16, 0.13, 0.7, 0.29)
    c.ellipse("dark", 0.2, 0.16, 0.66, 0.27)
    c.line("accent", 0.16, 0.8, 0.7, 0.8, width=0.03)


def shoe(c: Canvas) -> None:
    """A trainer seen from the side."""
    c.polygon(
        "main", 0.08, 0.36, 0.14, 0.3, 0.3, 0.3, 0.4, 0.38, 0.62, 0.5, 0.84, 0.56, 0.94, 0.66, 0.94, 0.74, 0.08, 0.74
    )
    c.polygon("second", 0.76, 0.54, 0.86, 0.56, 0.95, 0.66, 0.94, 0.74, 0.72, 0.74)
    c.polygon("shade", 0.08, 0.36, 0.14, 0.3, 0.2, 0.3, 0.24, 0.74, 0.08, 0.74)
    c.rounded("light", 0.05, 0.71, 0.96, 0.82, radius=0.045)
    c.line("dark", 0.06, 0.815, 0.95, 0.815, width=0.025)
    for x, y in ((0.38, 0.42), (0.45, 0.46), (0.52, 0.5), (0.59, 0.53)):
        c.line("light", x, y, x + 0.05, y - 0.06, width=0.022)
    c.polygon("accent", 0.34, 0.68, 0.42, 0.5, 0.48, 0.5, 0.43, 0.68)


def bottle(c: Canvas) -> None:
    """A flask with a screw cap."""
    c.rounded("ink", 0.4, 0.04, 0.6, 0.17, radius=0.025)
    c.polygon("shade", 0.41, 0.17, 0.59, 0.17, 0.69, 0.34, 0.31, 0.34)
    c.rounded("main", 0.31, 0.29, 0.69, 0.96, radius=0.06)
    c.rounded("second", 0.31, 0.52, 0.69, 0.66, radius=0.0)
    c.line("accent", 0.31, 0.59, 0.69, 0.59, width=0.03)
    c.line("light", 0.37, 0.36, 0.37, 0.88, width=0.018)


def tent(c: Canvas) -> None:
    """A dome tent with its door open."""
    c.line("ink", 0.04, 0.88, 0.24, 0.5, width=0.008)
    c.line("ink", 0.96, 0.88, 0.76, 0.5, width=0.008)
    c.polygon("main", 0.06, 0.86, 0.16, 0.52, 0.3, 0.3, 0.5, 0.2, 0.7, 0.3, 0.84, 0.52, 0.94, 0.86)
    c.polygon("second", 0.5, 0.2, 0.62, 0.48, 0.7, 0.86, 0.94, 0.86, 0.84, 0.52, 0.7, 0.3)
    c.polygon("dark", 0.34, 0.86, 0.4, 0.56, 0.49, 0.4, 0.58, 0.56, 0.64, 0.86)
    c.polygon("accent", 0.34, 0.86, 0.4, 0.56, 0.49, 0.4, 0.42, 0.62, 0.4, 0.86)
    c.line("accent", 0.06, 0.86, 0.94, 0.86, width=0.022)


def blanket(c: Canvas) -> None:
    """Three folds of a blanket with a fringe."""
    for step in range(28):
        x = 0.1 + step * 0.028
        c.line("second", x, 0.82, x, 0.92, width=0.01)
    for role, top in (("shade", 0.6), ("main", 0.42), ("main", 0.22)):
        c.rounded(role, 0.07, top, 0.93, top + 0.26, radius=0.1)
        c.line("dark", 0.12, top + 0.25, 0.9, top + 0.25, width=0.012)
    c.line("accent", 0.14, 0.29, 0.86, 0.29, width=0.025)
    c.rounded("light", 0.74, 0.36, 0.86, 0.44, radius=0.01)


def toy(c: Canvas) -> None:
    """A tipper truck."""
    c.polygon("main", 0.04, 0.3, 0.62, 0.3, 0.58, 0.64, 0.12, 0.64)
    c.rounded("second", 0.62, 0.28, 0.94, 0.68, radius=0.05)
    c.rounded("light", 0.72, 0.33, 0.9, 0.48, radius=0.02)
    c.rounded("shade", 0.08, 0.63, 0.96, 0.72, radius=0.02)
    for x in (0.12, 0.34, 0.7):
        c.ellipse("ink", x, 0.62, x + 0.22, 0.84)
        c.ellipse("accent", x + 0.065, 0.685, x + 0.155, 0.775)


def jacket(c: Canvas) -> None:
    """A jacket with collar, zip and pockets."""
    c.polygon("main", 0.3, 0.16, 0.1, 0.3, 0.03, 0.8, 0.17, 0.83, 0.28, 0.42)
    c.polygon("main", 0.7, 0.16, 0.9, 0.3, 0.97, 0.8, 0.83, 0.83, 0.72, 0.42)
    c.polygon("main", 0.28, 0.17, 0.72, 0.17, 0.77, 0.92, 0.23, 0.92)
    c.polygon("second", 0.28, 0.17, 0.72, 0.17, 0.74, 0.38, 0.26, 0.38)
    c.polygon("dark", 0.38, 0.08, 0.62, 0.08, 0.66, 0.2, 0.5, 0.26, 0.34, 0.2)
    c.line("accent", 0.5, 0.2, 0.5, 0.92, width=0.018)
    for x in (0.3, 0.58):
        c.line("dark", x, 0.66, x + 0.12, 0.62, width=0.016)
    c.line("shade", 0.23, 0.9, 0.77, 0.9, width=0.035)


def notebook(c: Canvas) -> None:
    """A bound notebook with an elastic band."""
    c.polygon("light", 0.26, 0.1, 0.86, 0.12, 0.86, 0.94, 0.26, 0.94)
    c.rounded("main", 0.18, 0.07, 0.82, 0.9, radius=0.03)
    c.rounded("dark", 0.18, 0.07, 0.27, 0.9, radius=0.02)
    c.rounded("light", 0.37, 0.22, 0.68, 0.38, radius=0.015)
    c.line("second", 0.41, 0.28, 0.64, 0.28, width=0.014)
    c.line("second", 0.41, 0.33, 0.58, 0.33, width=0.014)
    c.line("accent", 0.75, 0.07, 0.75, 0.9, width=0.026)


def hat(c: Canvas) -> None:
    """A hat with a brim."""
    c.ellipse("second", 0.04, 0.56, 0.96, 0.84)
    c.ellipse("main", 0.24, 0.18, 0.76, 0.62)
    c.polygon("main", 0.24, 0.4, 0.76, 0.4, 0.79, 0.68, 0.21, 0.68)
    c.ellipse("main", 0.21, 0.6, 0.79, 0.75)
    c.polygon("accent", 0.23, 0.55, 0.77, 0.55, 0.785, 0.66, 0.215, 0.66)


def chair(c: Canvas) -> None:
    """A folding chair from the side."""
    c.line("metal", 0.24, 0.94, 0.72, 0.5, width=0.032)
    c.line("metal", 0.8, 0.94, 0.3, 0.5, width=0.032)
    c.line("ink", 0.22, 0.08, 0.32, 0.56, width=0.036)
    c.polygon("main", 0.2, 0.08, 0.68, 0.08, 0.74, 0.5, 0.3, 0.5)
    c.polygon("second", 0.26, 0.5, 0.76, 0.5, 0.9, 0.62, 0.28, 0.62)
    c.line("accent", 0.28, 0.62, 0.9, 0.62, width=0.026)
    c.line("ink", 0.7, 0.36, 0.9, 0.4, width=0.036)


def speaker(c: Canvas) -> None:
    """A loudspeaker with two cones."""
    c.arc("dark", 0.34, 0.02, 0.66, 0.26, start=180, end=360, width=0.03)
    c.rounded("main", 0.22, 0.1, 0.78, 0.94, radius=0.09)
    for y, radius in ((0.65, 0.21), (0.29, 0.12)):
        for role, r in (("second", radius), ("ink", radius - 0.02), ("accent", radius * 0.38)):
            c.ellipse(role, 0.5 - r, y - r, 0.5 + r, y + r)


def towel(c: Canvas) -> None:
    """A rolled towel upon a folded one."""
    c.rounded("main", 0.08, 0.54, 0.92, 0.78, radius=0.08)
    c.rounded("second", 0.08, 0.7, 0.92, 0.9, radius=0.08)
    c.line("accent", 0.12, 0.72, 0.9, 0.72, width=0.02)
    c.rounded("main", 0.14, 0.24, 0.86, 0.56, radius=0.15)
    c.ellipse("shade", 0.66, 0.24, 0.9, 0.56)
    for inset in (0.03, 0.08):
        c.arc("light", 0.66 + inset, 0.24 + inset, 0.9 - inset, 0.56 - inset, start=20, end=330, width=0.014)
    c.line("accent", 0.3, 0.25, 0.3, 0.55, width=0.03)


SHAPES: dict[str, Callable[[Canvas], None]] = {
    shape.__name__: shape
    for shape in (
        ball, bag, lamp, mug, shoe, bottle, tent, blanket, toy, jacket, notebook, hat, chair, speaker, towel,
    )
}
