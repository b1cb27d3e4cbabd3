"""The bench's figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.quality.systems import TABLES
from benchmarks.quality.tables import Cells, mean_and_spread
from tessera.files import replacing


def draw(cells: Cells, titles: Mapping[str, str], shown: Sequence[str], folder: Path) -> None:
    """The figures of the tables that are shown, and of the dial where it was turned."""
    for table in shown:
        _bars(cells, titles, table, folder / f"{table}.svg")
    dials = {titles[name]: of for name, of in cells.items() if of and all("dial" in cell for cell in of)}
    if dials:
        _dial(dials, folder / "dial.svg")


def _bars(cells: Cells, titles: Mapping[str, str], table: str, path: Path) -> None:
    """Test HR@10 of a table's systems; the line is the spread over seeds."""
    title, names = TABLES[table]
    known = [name for name in names if cells.get(name)][::-1]
    found = [mean_and_spread(cells[name], "test", "hr@10") or (0.0, 0.0) for name in known]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * len(known)), layout="constrained")
    axes.barh([titles[name] for name in known], [f[0] for f in found], xerr=[f[1] for f in found], color="#4c72b0")
    axes.set(xlabel="test HR@10", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _dial(dials: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """HR@10 against the categories that one list covers, and that all of them do; a point a setting of the dial."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    covered = {
        "categories_per_list": "categories covered by a list of ten",
        "category_coverage": "share of the catalogue's categories covered by all lists",
    }
    for axes, (key, label) in zip(panels, covered.items(), strict=True):
        for title, cells in dials.items():
            x, y = _means(cells, key), _means(cells, "hr@10")
            axes.plot(x, y, marker="o", label=title)
            for at, point in enumerate(cells[0]["dial"]):
                axes.annotate(str(point["setting"]), (x[at], y[at]), fontsize=7)
        axes.set(xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="test HR@10")
    panels[0].legend(frameon=False)
    figure.suptitle("Fusion: accuracy to diversity")
    _save(figure, path)


def _means(cells: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Of one number, at each setting of the dial, over the seeds."""
    return [float(np.mean([cell["dial"][at].get(key, 0.0) for cell in cells])) for at in range(len(cells[0]["dial"]))]


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
