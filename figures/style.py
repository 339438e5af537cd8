"""The house style of every figure: colours safe for colour-blind readers, sizes for a talk.

Nothing here touches the global state of matplotlib: figures are `matplotlib.figure.Figure` objects
without pyplot, and the settings hold only inside `figure` and `save`. A notebook may take them,
``plt.rcParams.update(SETTINGS)``.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from orrery.figures.statistics import binomial_band
from orrery.files import written_atomically

Rows = Mapping[str, np.ndarray]
FigureData = Mapping[str, Mapping[str, np.ndarray]]  # arrays by figure: `Evaluation.figures`
NO_DATA: FigureData = {}
SLIDE = (13.33, 7.5)  # inches: a 16:9 slide, on which 15 pt is read from the last row

# Okabe & Ito (2008), "Color Universal Design", ordered so that neighbours differ in lightness too.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
INK = "#222222"
TRUTH = "#d55e00"  # what we compare with: the truth, the 1:1 line, the limits of an outlier
BAND = "#c9ced6"  # what chance alone would do
DENSITY = "viridis"  # for counts of objects

DPI = 150  # of files; the tests take less
SETTINGS: Any = {
    "font.size": 15,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures look alike everywhere
    "axes.labelsize": 16,
    "axes.titlesize": 16,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "legend.fontsize": 14,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 8,
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}

P = ParamSpec("P")


def figure(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws one figure: house style inside, its caption on the result.

    The caption is the first line of the function's docstring; read it with `fig.get_label()`.
    """
    caption = (inspect.getdoc(draw) or "").partition("\n")[0]

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(SETTINGS):
            drawn = draw(*args, **kwargs)
        drawn.set_label(caption)
        return drawn

    return styled


def new(
    ncols: int = 1, nrows: int = 1, size: tuple[float, float] = SLIDE, **grid: Any
) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, shape (nrows, ncols); `grid` goes to `Figure.subplots`."""
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots(nrows, ncols, squeeze=False, **grid)


def save(fig: Figure, path: str | Path) -> Path:
    """Write the figure to `path` (its ending says the format) and return the path."""
    path = Path(path)
    with matplotlib.rc_context(SETTINGS), written_atomically(path) as part:
        fig.savefig(part, format=path.suffix[1:], dpi=DPI)
    return path


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order; for more than seven names, steps from blue to red instead."""
    names = list(names)
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    steps = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    return {name: to_hex(step) for name, step in zip(names, steps, strict=True)}


def label(name: str) -> str:
    """A column's name as text: `label("deep2_faint") == "deep2 faint"`."""
    # "$" would start mathematics, and matplotlib leaves labels with a leading "_" out of legends.
    name = f"source {name}" if name.isdigit() else name
    return name.replace("_", " ").strip().replace("$", r"\$")


def density(
    axis: Axes,
    x: np.ndarray,
    y: np.ndarray,
    extent: tuple[float, float, float, float],
    cells: tuple[int, int],
) -> PolyCollection | None:
    """Counts of objects on a logarithmic colour scale; fewer than 500 objects one by one.

    extent: (x low, x high, y low, y high) to count in. cells: how many along x and y.
    Returns what a colour bar needs, or None for fewer than 500 objects.
    """
    if len(x) < 500:
        axis.plot(x, y, "o", ms=7, alpha=0.6, color=PALETTE[0], mew=0)
        return None
    # hexbin counts what lies outside `extent` too, in cells that are never seen.
    inside = (x >= extent[0]) & (x <= extent[1]) & (y >= extent[2]) & (y <= extent[3])
    drawn = axis.hexbin(
        x[inside],
        y[inside],
        gridsize=cells,
        extent=extent,
        bins="log",
        mincnt=1,
        lw=0.1,
        cmap=DENSITY,
    )
    counts = np.asarray(drawn.get_array())
    drawn.set_clim(1, max(10.0, *counts))  # one decade at least, for the colour bar
    return drawn


def inner(values: np.ndarray) -> Normalize:
    """The range of colours for all but 1% of the values, in mag, at each end."""
    low, high = np.quantile(values, (0.01, 0.99))
    return Normalize(low - 0.05, high + 0.05)  # a range also of one value


def uniform(axis: Axes, values: np.ndarray, chance: str) -> None:
    """A histogram of what is uniform in [0, 1] if a model is honest.

    chance: the name of the band that holds 95% of an honest model's draws.
    """
    n, bins = len(values), int(np.clip(len(values) // 50, 5, 20))
    counts, edges = np.histogram(values, bins, (0, 1))
    low, high = map(float, binomial_band(n, 1 / bins))
    axis.axhspan(bins * low / n, bins * high / n, color=BAND, label=chance)
    axis.stairs(bins * counts / n, edges, baseline=None, color=PALETTE[0], lw=2.5)
    axis.axhline(1, color=TRUTH, lw=1.6, label="uniform")
    axis.set(xlim=(0, 1), ylim=(0, 1.15 * bins * max(high, counts.max()) / n))
    axis.legend(loc="lower center", ncols=2, frameon=True, edgecolor="none")
