"""Figures of `abundances`: patterns of stars, the density, structures, histories of galaxies."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orrery.figures import style
from orrery.figures.statistics import binomial_band

Arrays = Mapping[str, np.ndarray]

WIDE, NARROW = "#cfe3f1", "#8fb8d6"  # bands of 95 and 68%
OURS = style.PALETTE[0]
STARS = "#5b6470"
ARROW = {1: "v", -1: "^"}  # markers of upper and lower limits, of vertical axes
LEVELS = (0.68, 0.95)
NOTABLE = 0.05  # p-value of an element that is marked
FEWEST = 20  # measurements of a histogram
MOST_PAIRS, DRAWN_PAIRS = 12, 3


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the data allow, by name.

    data: arrays by figure, see `models.abundances.figure_data`, `comparison` and `history`.
    """
    kinds = {
        "pattern": pattern,
        "corner": corner,
        "calibration": calibration,
        "nll": nll,
        "structures": structures,
        "history": history,
        "delays": delays,
    }
    return {name: partial(kind, data[name]) for name, kind in kinds.items() if name in data}


# --- single stars ---------------------------------------------------------------------------------


@style.figure
def pattern(arrays: Arrays) -> Figure:
    """Abundances of the most unusual star and of a usual one, and what the density expects of each.

    Bands: 68 and 95% of an element's abundance, given the star's other elements.
    """
    n, elements = len(arrays["name"]), arrays["elements"]
    side_by_side = len(elements) <= 14
    shape = (n, 1) if side_by_side else (1, n)
    fig, axes = style.new(*shape, size=style.SLIDE, sharex=True, sharey=True)
    has_iron = bool(arrays["has_iron"])
    for i, axis in enumerate(axes.flat):
        _one_pattern(axis, arrays, i)
        iron = f", [Fe/H] = {arrays['iron'][i]:.2f}" if has_iron else ""
        p = arrays["p_value"][i]
        kind = ("most unusual star", "a usual star")[i]
        name = str(arrays["name"][i]).replace("$", r"\$")
        text = f"{kind}: {name}{iron}, {_p_text(p)}"
        axis.set_title(text, loc="left", fontsize=14.5)
        axis.set_xticks(range(len(elements)), labels=list(elements))
        axis.set(xlim=(-0.6, len(elements) - 0.4))
        axis.grid(axis="x", visible=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("[X/Fe]" if has_iron else "[X/H]")
    for axis in axes[-1]:
        axis.set_xlabel("element X, by atomic number")
    handles = [
        Patch(color=NARROW, label="68%, expected from the other elements"),
        Patch(color=WIDE, label="95%"),
        Line2D([], [], ls="", marker="o", color=style.INK, label="measured"),
        Line2D([], [], ls="", marker=r"$\downarrow$", ms=14, color=style.INK, label="limit"),
        Line2D([], [], ls="", marker="o", color=style.TRUTH, label=f"p < {NOTABLE:g}"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=5, columnspacing=1.4)
    return fig


def _p_text(p: float) -> str:
    return f"p = {p:.2f}" if p >= 0.095 else f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.0e}"


def _one_pattern(axis: Axes, arrays: Arrays, i: int) -> None:
    axis.use_sticky_edges = False  # bars end within the axis
    iron = arrays["iron"][i]
    value, error = arrays["value"][i] - iron, arrays["error"][i]
    bands, middle = arrays["interval"][i] - iron, arrays["expected"][i] - iron
    x = np.arange(len(value))
    for (low, high), colour, width in (((0, 3), WIDE, 0.8), ((1, 2), NARROW, 0.8)):
        axis.bar(x, bands[:, high] - bands[:, low], width, bands[:, low], color=colour, zorder=1)
    axis.hlines(middle, x - 0.4, x + 0.4, color="white", lw=2, zorder=2)
    known, limit = np.isfinite(value), arrays["limit"][i]
    odd = np.nan_to_num(arrays["p_element"][i], nan=1.0) < NOTABLE
    for which, colour in ((~odd, style.INK), (odd, style.TRUTH)):
        of = known & (limit == 0) & which
        axis.errorbar(x[of], value[of], error[of], fmt="o", ms=8, color=colour, capsize=3, lw=1.8,
                      zorder=4)  # fmt: skip
        for side in ARROW:
            of = known & (limit == side) & which
            _arrows(axis, x[of], value[of], side, colour)


def _arrows(
    axis: Axes, x: np.ndarray, y: np.ndarray, side: int, colour: str, size: float = 26
) -> None:
    """Limits of what is up the axis, as arrows from the limit on."""
    for at in zip(x, y, strict=True):
        axis.annotate(
            "", (at[0], at[1]), (0, -side * size), textcoords="offset points", zorder=4,
            arrowprops={"arrowstyle": "<-", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    axis.plot(x, y, "_", ms=12, mew=2.2, color=colour, zorder=4)


# --- the density ----------------------------------------------------------------------------------


@style.figure
def corner(arrays: Arrays) -> Figure:
    """The density of true abundances in planes of four elements, and stars with errors and limits.

    Contours hold 68 and 95% of the true abundances.
    """
    labels, grid = arrays["labels"], arrays["grid"]
    d = len(labels)
    fig, axes = style.new(d, d, size=(11.5, 10.5), sharex="col")
    true = arrays.get("true")
    for i in range(d):
        for j in range(d):
            axis = axes[i, j]
            if j > i:
                axis.remove()
                continue
            axis.set_xlim(grid[j, 0], grid[j, -1])
            axis.locator_params(nbins=4)
            axis.grid(visible=False)
            if i == j:
                _margin(axis, arrays, i)
                axis.set_ylabel("density", fontsize=12)
            else:
                _plane(axis, arrays, i, j)
                if j:
                    axis.sharey(axes[i, 0])
            axis.tick_params(labelsize=12, labelleft=j == 0 and i > 0)
            axis.tick_params(labelbottom=i == d - 1)
        if i:
            axes[i, 0].set_ylabel(str(labels[i]))
            axes[i, 0].tick_params(labelleft=True)
        axes[-1, i].set_xlabel(str(labels[i]))
    handles = [
        Patch(color=NARROW, label="68% of true abundances"),
        Patch(color=WIDE, label="95%"),
        Line2D([], [], ls="", marker="o", ms=5, color=STARS, label="stars and errors"),
        Line2D([], [], ls="", marker="v", ms=6, color=style.PALETTE[1], label="limits"),
        Patch(color=style.BAND, label="measurements, with noise"),
        Line2D([], [], color=OURS, label="density of true abundances"),
    ]
    if not arrays["limit"].any():
        handles.pop(3)
    if true is not None:
        handles.append(Line2D([], [], color=style.TRUTH, ls="--", lw=1.6, label="true density"))
    fig.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.97))
    return fig


def _margin(axis: Axes, arrays: Arrays, i: int) -> None:
    """The density of one axis, and the histogram of what was measured."""
    grid = arrays["grid"][i]
    measured = arrays["value"][arrays["limit"][:, i] == 0, i]
    measured = measured[(measured >= grid[0]) & (measured <= grid[-1])]
    if len(measured) >= FEWEST:
        bins = np.linspace(grid[0], grid[-1], min(20, len(measured) // 3) + 1)
        counts, _ = np.histogram(measured, bins, density=True)
        axis.stairs(counts, bins, fill=True, color=style.BAND)
    axis.plot(grid, arrays["density"][i, i, 0], color=OURS)
    if "true" in arrays:
        axis.plot(grid, arrays["true"][i, i, 0], color=style.TRUTH, ls="--", lw=1.6)
    axis.set_ylim(0)
    axis.set_yticks([])


def _plane(axis: Axes, arrays: Arrays, i: int, j: int) -> None:
    """Contours, and stars; a limit of the one axis is an arrow, of both it is left out."""
    x, y = arrays["grid"][j], arrays["grid"][i]
    density = arrays["density"][i, j]
    inner, outer = (_height(density, level) for level in LEVELS)
    axis.contourf(x, y, density, (outer, inner, np.inf), colors=(WIDE, NARROW), zorder=0)
    if "true" in arrays:
        heights = [_height(arrays["true"][i, j], level) for level in reversed(LEVELS)]
        axis.contour(x, y, arrays["true"][i, j], heights, colors=style.TRUTH, linestyles="--",
                     linewidths=1.3, zorder=3)  # fmt: skip
    values, errors, limits = (arrays[name][:, [j, i]] for name in ("value", "error", "limit"))
    known = np.isfinite(values).all(1)
    of = known & (limits == 0).all(1)
    axis.errorbar(values[of, 0], values[of, 1], errors[of, 1], errors[of, 0], fmt="o", ms=2.6,
                  color=STARS, lw=0.7, alpha=0.6, zorder=2)  # fmt: skip
    for k, sides in enumerate((("<", ">"), ("v", "^"))):
        for side, marker in zip((1, -1), sides, strict=True):
            of = known & (limits[:, k] == side) & (limits[:, 1 - k] == 0)
            axis.plot(*values[of].T, ls="", marker=marker, ms=4.5, mew=0, color=style.PALETTE[1],
                      alpha=0.9, zorder=2)  # fmt: skip
    axis.set_ylim(y[0], y[-1])


def _height(density: np.ndarray, level: float) -> float:
    """The height above which cells hold a share ``level`` of the density."""
    heights = np.sort(density, axis=None)[::-1]
    held = np.cumsum(heights) / max(heights.sum(), 1e-300)
    return float(max(heights[min(int(np.searchsorted(held, level)), len(heights) - 1)], 1e-300))


@style.figure
def calibration(arrays: Arrays) -> Figure:
    """How often intervals hold the abundances of each element, and how p-values are spread."""
    has_elements = len(arrays["elements"]) > 0
    columns: dict[str, Any] = {"width_ratios": (1.5, 1)} if has_elements else {}
    fig, axes = style.new(1 + has_elements, size=style.SLIDE, **columns)
    p = axes[0, -1]
    style.uniform(p, arrays["p_density"], "95% of draws, if right")
    p.set(xlabel="p-value of a star", ylabel="stars, relative to uniform")
    if has_elements:
        _coverage(axes[0, 0], arrays)
    return fig


def _coverage(axis: Axes, arrays: Arrays) -> None:
    x, n = np.arange(len(arrays["elements"])), arrays["n"]
    for level, colour, marker in zip(LEVELS, (OURS, style.PALETTE[2]), "os", strict=True):
        low, high = binomial_band(n, level)
        axis.bar(x, (high - low) / n, 0.8, low / n, color=style.BAND, zorder=1,
                 label="95% of draws, if right" if level == LEVELS[0] else None)  # fmt: skip
        axis.axhline(level, color=style.TRUTH, ls="--", lw=1.5, zorder=2)
        share = arrays[f"coverage_{level:.2f}".replace("0.", "")]
        axis.plot(x, share, marker, ms=9, color=colour, mec="white", zorder=3,
                  label=f"{level:.0%} intervals")  # fmt: skip
    axis.set_xticks(x, labels=list(arrays["elements"]))
    axis.grid(axis="x", visible=False)
    lowest = min(0.6, float(np.min(arrays["coverage_68"])))
    axis.set(xlabel="element", ylabel="share of stars in the interval", xlim=(-0.6, len(x) - 0.4),
             ylim=(lowest - 0.12, 1.02), yticks=LEVELS)  # fmt: skip
    axis.legend(loc="lower center", ncols=3, columnspacing=0.9, handletextpad=0.3, fontsize=13)


@style.figure
def nll(arrays: Arrays) -> Figure:
    """How much worse each density predicts an element from the others than the reference does."""
    fig, axes = style.new(size=style.SLIDE)
    axis = axes[0, 0]
    names = list(arrays["densities"])
    x = np.arange(len(arrays["elements"]) + 1)
    x[1:] += 1  # all of them stand apart
    order = ["ours", *(name for name in names if name != "ours")]
    colours = dict(zip(order, style.PALETTE, strict=False))
    for i, name in enumerate(names):
        place = x + 0.22 * (i - (len(names) - 1) / 2)
        axis.errorbar(place, arrays["excess"][i], arrays["error"][i], fmt="osD^"[i % 4],
                      color=colours[name], capsize=3, lw=1.6, label=name)  # fmt: skip
    reference = str(arrays["reference"])
    axis.axhline(0, color=style.TRUTH, ls="--", lw=1.6, label=reference)
    axis.axvline(1, color=style.BAND, lw=1.2)
    axis.set_xticks(x, labels=["all", *arrays["elements"]])
    axis.grid(axis="x", visible=False)
    whose = "of the truth" if reference.startswith("true") else f"of {reference}"
    axis.set(xlabel="element", ylabel=f"-ln p given the other elements,\nabove that {whose}, nat",
             xlim=(-0.7, x[-1] + 0.7))  # fmt: skip
    axis.legend(loc="best")
    return fig


# --- structures -----------------------------------------------------------------------------------


@style.figure
def structures(arrays: Arrays) -> Figure:
    """Which structures differ chemically, and in what elements, at the same [Fe/H]."""
    p = np.where(np.isfinite(arrays["p_value"]), arrays["p_value"], np.inf)
    order = np.lexsort((-np.nan_to_num(arrays["ln_bayes_factor"]), p))[:MOST_PAIRS]
    names = [" and ".join(map(str, pair)) for pair in arrays["pairs"]]
    signed = [" - ".join(map(str, reversed(pair))) for pair in arrays["pairs"]]
    fig, axes = style.new(2, size=style.SLIDE, width_ratios=(1, 1.6))
    evidence, differences = axes[0]
    y = np.arange(len(order))
    factor = arrays["ln_bayes_factor"][order]
    evidence.barh(y, np.nan_to_num(factor), 0.6, color=NARROW)
    evidence.axvline(0, color=style.INK, lw=1)
    for at, value, p_value in zip(y, np.nan_to_num(factor), arrays["p_value"][order], strict=True):
        text = _p_text(p_value) if np.isfinite(p_value) else "not compared"
        evidence.annotate(text, (max(value, 0), at), (6, 0), textcoords="offset points",
                          va="center", fontsize=12)  # fmt: skip
    evidence.set_yticks(y, labels=[style.label(names[i]) for i in order])
    evidence.tick_params(axis="y", labelsize=12)
    evidence.invert_yaxis()
    evidence.grid(axis="y", visible=False)
    low, high = evidence.get_xlim()
    evidence.set_xlim(low, high + 0.35 * (high - low))
    evidence.set(xlabel="ln Bayes factor, different / same", ylabel="pair of structures")
    drawn = [i for i in order if np.isfinite(arrays["difference"][i]).any()][:DRAWN_PAIRS]
    x = np.arange(len(arrays["elements"]))
    for k, i in enumerate(drawn):
        place = x + 0.2 * (k - (len(drawn) - 1) / 2)
        differences.errorbar(place, arrays["difference"][i], arrays["error"][i], fmt="osD"[k],
                             color=style.PALETTE[k], capsize=3, lw=1.6,
                             label=style.label(signed[i]))  # fmt: skip
    differences.axhline(0, color=style.TRUTH, ls="--", lw=1.5)
    differences.set_xticks(x, labels=list(arrays["elements"]))
    differences.tick_params(axis="x", labelsize=14 if len(x) < 15 else 11)
    differences.grid(axis="x", visible=False)
    differences.set(xlabel="element", ylabel="difference, dex",
                    xlim=(-0.6, len(x) - 0.4))  # fmt: skip
    if drawn:
        differences.legend(loc="best")
    return fig


# --- the history of a galaxy ----------------------------------------------------------------------


@style.figure
def history(arrays: Arrays) -> Figure:
    """Stars of one galaxy, and tracks of its history drawn from the posterior."""
    elements = [str(x) for x in arrays["elements"]]
    others = [x for x in elements if x != "Fe"]
    columns = min(3, len(others))
    rows = -(-len(others) // columns)
    fig, axes = style.new(columns, rows, size=style.SLIDE, sharex=True)
    at = elements.index("Fe")
    iron, iron_error = arrays["value"][:, at], arrays["error"][:, at]
    iron = np.where(arrays["limit"][:, at] == 0, iron, np.nan)
    low, high = _range(iron, 0.3)
    for axis, element in zip(axes.flat, others, strict=False):
        j = elements.index(element)
        ratio = arrays["tracks"][..., j] - arrays["tracks"][..., at]
        axis.plot(arrays["tracks"][..., at].T, ratio.T, color=OURS, lw=0.8, alpha=0.12, zorder=1,
                  rasterized=True)  # fmt: skip
        value = arrays["value"][:, j] - iron
        error = np.hypot(arrays["error"][:, j], iron_error)
        limit = arrays["limit"][:, j]
        known = np.isfinite(value)
        of = known & (limit == 0)
        axis.errorbar(iron[of], value[of], error[of], iron_error[of], fmt="o", ms=5, lw=0.9,
                      color=style.INK, zorder=3)  # fmt: skip
        for side in ARROW:
            of = known & (limit == side)
            _arrows(axis, iron[of], value[of], side, style.PALETTE[1], 18)
        axis.set(ylabel=f"[{element}/Fe]", xlim=(low, high), ylim=_range(value, 0.4))
    for axis in list(axes.flat)[len(others) :]:
        axis.remove()
    for axis in list(axes.flat)[: len(others)][-columns:]:
        axis.set_xlabel("[Fe/H]")
        axis.tick_params(labelbottom=True)
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, color=style.INK, label="stars"),
        Line2D([], [], color=OURS, label="histories of the posterior"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return fig


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    """That holds all that is known, with a margin."""
    known = values[np.isfinite(values)]
    if not len(known):
        return -1.0, 1.0
    return float(known.min() - margin), float(known.max() + margin)


@style.figure
def delays(arrays: Arrays) -> Figure:
    """Posterior of the delays of type Ia supernovae and of the r-process, and of the alpha knee."""
    labels = {
        "ia_slope": "slope of the delays of SNe Ia",
        "ia_minimum": "shortest delay of a SN Ia, Gyr",
        "r_slope": "slope of the delays of the r-process",
        "r_minimum": "shortest delay of the r-process, Gyr",
        "alpha_knee": "[Fe/H] of the alpha knee",
    }
    names = [name for name in labels if name in arrays and np.isfinite(arrays[name]).any()]
    columns = min(3, len(names))
    fig, axes = style.new(columns, -(-len(names) // columns), size=style.SLIDE)
    for axis, name in zip(axes.flat, names, strict=False):
        draws = arrays[name][np.isfinite(arrays[name])]
        axis.hist(draws, 40, density=True, color=NARROW)
        low, middle, high = np.quantile(draws, (0.16, 0.5, 0.84))
        axis.axvspan(low, high, color=WIDE, zorder=0)
        axis.axvline(middle, color=OURS)
        minus, plus = middle - low, high - middle
        axis.set_title(f"${middle:.2f}_{{-{minus:.2f}}}^{{+{plus:.2f}}}$", loc="left")
        axis.set(xlabel=labels[name], ylabel="density", yticks=[])
        axis.grid(visible=False)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    return fig
