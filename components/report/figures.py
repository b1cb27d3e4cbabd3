"""The report's plots: matplotlib as inline SVG whose colours follow the page's light and dark theme."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Stand-ins that become CSS variables of the page.
INK, MUTED, LINE, TEAL, CLAY, OCHRE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", TEAL: "--teal", CLAY: "--clay", OCHRE: "--ochre"}
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "lines.linewidth": 2, "lines.solid_capstyle": "round",
}


class Plot:
    """Axes to draw on, and the SVG once the drawing is done."""

    def __init__(self, axes: Axes) -> None:
        self.axes, self.svg = axes, Markup("")


@contextmanager
def _plot(title: str, x: str, y: str = "") -> Iterator[Plot]:
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        plot = Plot(figure.subplots())
        plot.axes.set(title=title, xlabel=x, ylabel=y)
        yield plot
        out = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=unsaid)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
                  rf'<svg class="plot" role="img" aria-label="{title}" viewBox="\1" xmlns="http://www.w3.org/2000/svg" '
                  r'xmlns:xlink="http://www.w3.org/1999/xlink">', text, count=1)
    # Identifiers are unique within a figure only, and the page has several.
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'id="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\g<1>#{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    plot.svg = Markup(text)


def history_lengths(lengths: NDArray[np.int64]) -> Markup:
    """How many users bought how many items; the longest percent share the last bar."""
    longest = int(np.quantile(lengths, 0.99)) if len(lengths) else 1
    clipped = np.minimum(lengths, longest)
    edges = np.unique(np.linspace(clipped.min(), longest + 1, min(40, longest - int(clipped.min()) + 2)).astype(int))
    with _plot("Items a user bought", "items in the history", "users") as plot:
        plot.axes.hist(clipped, bins=edges - 0.5, color=TEAL, rwidth=0.86)
        median = float(np.median(lengths))
        plot.axes.axvline(median, color=CLAY, linewidth=1.5)
        plot.axes.annotate(f"median {median:g}", (median, 0.95), xycoords=("data", "axes fraction"), color=CLAY,
                           xytext=(5, -4), textcoords="offset points", fontsize=9)
    return plot.svg


def popularity(counts: NDArray[np.int64]) -> Markup:
    """Share of all purchases that goes to the best-selling share of the catalogue; counts: [items] purchases."""
    ordered = np.sort(counts)[::-1]
    share = np.concatenate([[0.0], np.cumsum(ordered) / max(1, ordered.sum())])
    items = np.linspace(0, 1, len(share))
    points = np.unique(np.linspace(0, len(share) - 1, 200).astype(int))
    with _plot("Who gets the purchases", "best-selling share of the catalogue", "share of purchases") as plot:
        plot.axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
        plot.axes.plot(items[points], share[points], color=TEAL)
        plot.axes.fill_between(items[points], share[points], items[points], color=TEAL, alpha=0.14, linewidth=0)
        top = float(np.interp(0.1, items, share))
        plot.axes.plot([0.1], [top], "o", color=CLAY, markersize=6)
        plot.axes.annotate(f"top 10% of items: {top:.0%} of purchases", (0.1, top), xytext=(12, -10),
                           textcoords="offset points", color=CLAY, fontsize=9)
        for axis in (plot.axes.xaxis, plot.axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        plot.axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return plot.svg


def curves(
    title: str, points: Sequence[Mapping[str, Any]], names: Sequence[str], best: int | None = None, x: str = "epoch"
) -> Markup:
    """Named values over epochs; epochs that did not measure a value are passed over. Empty without any value."""
    drawn = {name: [(p["epoch"], p[name]) for p in points if _number(p.get(name))] for name in names}
    drawn = {name: line for name, line in drawn.items() if line}
    if not drawn:
        return Markup("")
    with _plot(title, x) as plot:
        for (name, line), colour in zip(drawn.items(), (TEAL, CLAY, OCHRE, MUTED), strict=False):
            epochs, values = zip(*line, strict=True)
            plot.axes.plot(epochs, values, color=colour, marker="o" if len(line) < 40 else "", markersize=3.5,
                           label=name.replace("_", " "))
        if best is not None:
            plot.axes.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            plot.axes.annotate("kept", (best, 0), xycoords=("data", "axes fraction"), xytext=(-4, 5), ha="right",
                               textcoords="offset points", color=MUTED, fontsize=9)
        if len(drawn) > 1:
            plot.axes.legend(loc="best", fontsize=9, labelcolor=INK)
    return plot.svg


def hit_rates(series: Mapping[str, Mapping[str, float]], measure: str) -> Markup:
    """HR@K or NDCG@K over K for each named split or baseline."""
    with _plot(f"{measure}@K", "K") as plot:
        for (name, metrics), colour in zip(series.items(), (TEAL, OCHRE, CLAY), strict=False):
            ks = sorted(int(key.split("@")[1]) for key in metrics if key.startswith(f"{measure.lower()}@"))
            values = [metrics[f"{measure.lower()}@{k}"] for k in ks]
            plot.axes.plot(ks, values, marker="o", markersize=5, color=colour, label=name)
            plot.axes.set_xticks(ks)
        plot.axes.set_ylim(bottom=0)
        plot.axes.legend(loc="upper left", fontsize=9, labelcolor=INK)
    return plot.svg


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
