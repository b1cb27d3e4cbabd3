"""The SID tree as a mosaic: a treemap whose tiles are first codes, cut into second codes, sized by their items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 1120.0, 460.0
GAP = 1.5
MOST_TILES = 2500

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Piece:
    """One tile of the mosaic: a prefix of one or two codes, with a hover text; label is empty where it has no room."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    text: str
    label: str


def colour(code: int, level: int = 0, shade: float = 0.0) -> str:
    """The colour of a code; neighbouring codes are a golden angle apart. `shade` in [-1, 1] darkens or lightens."""
    hue = (code * 137.508 + level * 47) % 360
    return f"hsl({hue:.0f} {40 - 4 * level}% {53 + 13 * shade:.0f}%)"


def squarify(sizes: Sequence[float], box: Rect) -> list[Rect]:
    """Cut a box into rectangles of the given areas, near squares (Bruls, Huizing, van Wijk: Squarified Treemaps, 2000).

    Args:
        sizes: positive, in falling order; box: x, y, width, height.
    """
    x, y, width, height = box
    scale = width * height / sum(sizes)
    areas, out, start = [size * scale for size in sizes], list[Rect](), 0
    while start < len(areas):
        side = max(min(width, height), 1e-9)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        row, thick, along = areas[start:end], sum(areas[start:end]) / side, 0.0
        for area in row:
            length = area / thick if thick else 0.0
            out.append((x, y + along, thick, length) if width >= height else (x + along, y, length, thick))
            along += length
        if width >= height:
            x, width = x + thick, max(width - thick, 0.0)
        else:
            y, height = y + thick, max(height - thick, 0.0)
        start = end
    return out


def _worst(row: Sequence[float], side: float) -> float:
    total = sum(row)
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * min(row)))


def mosaic(codes: NDArray[np.int64], titles: Callable[[int], str]) -> list[Piece]:
    """Tiles of the SIDs `codes` [items, levels]; `titles` names an item by its row.

    A huge catalogue keeps its first codes whole where there is no room for second ones.
    """
    if not len(codes):
        return []
    first, starts, counts = _groups(codes[:, 0])
    order = np.argsort(-counts, kind="stable")
    rows = np.argsort(codes[:, 0], kind="stable")
    pieces: list[Piece] = []
    detail = len(np.unique(codes[:, :2], axis=0)) <= MOST_TILES
    patches = squarify(counts[order].tolist(), (0, 0, WIDTH, HEIGHT))
    for group, (x, y, width, height) in zip(order, patches, strict=True):
        code, members = int(first[group]), rows[starts[group] : starts[group] + counts[group]]
        inner = (x + GAP, y + GAP, max(width - 2 * GAP, 0.3), max(height - 2 * GAP, 0.3))
        if codes.shape[1] > 1 and (detail or width * height > 900):
            pieces += _cut(code, members, codes[:, 1], inner, titles)
        else:
            pieces.append(Piece(*inner, colour(code), _text(str(code), members, titles), ""))
        if width > 16 + 8 * len(str(code)) and height > 24:
            pieces.append(Piece(*inner, "none", _text(str(code), members, titles), str(code)))
    return pieces


def _cut(code: int, members: NDArray[np.int64], second: NDArray[np.int64], box: Rect,
         titles: Callable[[int], str]) -> list[Piece]:
    ordered = members[np.argsort(second[members], kind="stable")]
    values, starts, counts = _groups(second[ordered])
    order = np.argsort(-counts, kind="stable")
    pieces = []
    for place, (part, (x, y, width, height)) in enumerate(
        zip(order, squarify(counts[order].tolist(), box), strict=True)
    ):
        inside = ordered[starts[part] : starts[part] + counts[part]]
        shade = 0.9 * (-1) ** place * (place % 5) / 4
        text = _text(f"{code} › {int(values[part])}", inside, titles)
        pieces.append(Piece(x, y, max(width - 0.6, 0.2), max(height - 0.6, 0.2), colour(code, 0, shade), text, ""))
    return pieces


def _groups(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct values, and where each starts and how often it occurs once `values` are sorted."""
    found, counts = np.unique(values, return_counts=True)
    return found, np.concatenate([[0], np.cumsum(counts)[:-1]]), counts


def _text(prefix: str, members: NDArray[np.int64], titles: Callable[[int], str]) -> str:
    some = "; ".join(titles(int(row))[:60] for row in members[:3])
    return f"{prefix}: {len(members)} item{'s' if len(members) != 1 else ''}: {some}{'; …' if len(members) > 3 else ''}"
