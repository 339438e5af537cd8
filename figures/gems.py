"""Figures of `gems`: stars among clusters in action space, who is taken for whom, calibration."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orrery.figures import style

NAMED = 5  # likely hosts that have a colour and a bar
LINES = 40  # of the map of confusion
BINS = np.linspace(0, 1, 11)
ERROR_DRAWS = 300
FEWEST = 20  # stars of which a purity is drawn
HOSTS = "#8fb8d6"  # clusters that are not likely


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the data allow, by name.

    data: arrays by figure, see `models.gems.figure_data`.
    """
    kinds = {
        "actions": actions,
        "confusion": confusion,
        "calibration": calibration,
        "purity": purity,
        "mock": mock,
    }
    return {name: partial(kind, data[name]) for name, kind in kinds.items() if name in data}


@style.figure
def actions(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Stars and clusters in the action diamond, and the posterior of one star's host."""
    has_star = "star" in arrays
    columns: dict[str, Any] = {"width_ratios": (1.7, 1)} if has_star else {}
    fig, axes = style.new(2 if has_star else 1, size=style.SLIDE, **columns)
    axis = axes[0, 0]
    edge = np.array([[-1, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])
    axis.plot(*edge.T, color=style.INK, lw=1, zorder=1)
    x, y = diamond(arrays["stars"])
    axis.plot(x, y, ".", ms=2.5, color=style.INK, alpha=0.25, mew=0, rasterized=True)
    axis.plot([], [], ".", ms=8, color=style.INK, alpha=0.6, mew=0, label="stars")
    x, y = diamond(arrays["clusters"])
    axis.plot(x, y, "o", ms=7, color=HOSTS, mec="white", mew=0.8, label="clusters")
    axis.set(
        xlabel=r"$L_z\,/\,(J_R + |L_z| + J_z)$", ylabel=r"$(J_z - J_R)\,/\,(J_R + |L_z| + J_z)$",
        xlim=(-1.28, 1.28), ylim=(-1.12, 1.12), aspect="equal",
        xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1),
    )  # fmt: skip
    axis.grid(visible=False)
    corners = (("prograde", 1, 0, "left", "center"), ("retrograde", -1, 0, "right", "center"),
               ("polar", 0, 1, "center", "bottom"), ("radial", 0, -1, "center", "top"))  # fmt: skip
    for text, at, above, ha, va in corners:
        axis.text(1.03 * at, 1.03 * above, text, ha=ha, va=va, fontsize=13, style="italic",
                  rotation=-90 * at)  # fmt: skip
    if has_star:
        _posterior(axis, axes[0, 1], arrays)
    axis.legend(loc="lower left", borderaxespad=0, handletextpad=0.3)
    return fig


def _posterior(diagram: Axes, bars: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """One star, its errors and its likeliest hosts, each in the colour of its bar."""
    p, best = arrays["p"], np.argsort(-arrays["p"])[:NAMED]
    colours = [c for c in style.PALETTE if c != style.TRUTH][: len(best)]
    noise = np.random.default_rng(0).normal(size=(ERROR_DRAWS, 3))
    J = arrays["star"] + arrays["star_error"] * noise
    x, y = diamond(np.where([True, False, True], J.clip(0), J))
    diagram.plot(x, y, ".", ms=4, color=style.TRUTH, alpha=0.35, mew=0, zorder=2)
    for i, colour in zip(best, colours, strict=True):
        x, y = diamond(arrays["clusters"][i][None])
        diagram.plot(x, y, "o", ms=11, color=colour, mec="white", mew=1.2, zorder=4)
    x, y = diamond(arrays["star"][None])
    diagram.plot(x, y, "*", ms=20, color=style.TRUTH, mec="white", zorder=5, label="one star")
    others = max(0.0, p.sum() - p[best].sum())
    names = [*arrays["names"][best], f"{len(p) - len(best)} others", "field"]
    values = [*p[best], others, max(0.0, 1 - p.sum())]
    bars.barh(range(len(values)), values, color=[*colours, HOSTS, style.BAND], height=0.7)
    for i, value in enumerate(values):
        text = f"{value:.2f}" if value >= 0.005 else f"{value:.0e}" if value > 0 else "0"
        bars.text(value + 0.02, i, text, va="center", fontsize=13)
    bars.set_yticks(range(len(values)), labels=names)
    bars.invert_yaxis()
    bars.set(xlabel="probability", ylabel="where the star is from", xlim=(0, 1.15),
             xticks=(0, 0.5, 1))  # fmt: skip
    bars.grid(visible=False)


def diamond(J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of actions (n, 3) in the diamond of Vasiliev (2019, MNRAS 484, 2832)."""
    J_R, L_z, J_z = J.T
    total = J_R + np.abs(L_z) + J_z
    return L_z / total, (J_z - J_R) / total


@style.figure
def confusion(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Clusters whose stars are most often taken for those of another, joined by lines."""
    fig, axis = _sky()
    places = galactic(arrays["ra"], arrays["dec"])
    counts = np.array(arrays["counts"], float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = share.diagonal().copy()
    mixed = np.triu(share + share.T, 1)  # either taken for the other
    strongest = np.sort(mixed, axis=None)[-LINES:].min()
    largest = max(mixed.max(), 1e-9)
    for i, j in zip(*np.nonzero((mixed >= strongest) & (mixed > 0)), strict=True):
        x, y = _great_circle(places[0][[i, j]], places[1][[i, j]])
        axis.plot(x, y, color=style.TRUTH, lw=1 + 3 * mixed[i, j] / largest, alpha=0.5)
    drawn = axis.scatter(*places, c=right, cmap=style.DENSITY, s=80, vmin=0, vmax=1,
                         edgecolor="white", zorder=3)  # fmt: skip
    fig.colorbar(drawn, ax=axis, location="bottom", aspect=40, shrink=0.6, pad=0.04,
                 label="share of a cluster's stars that are given to it")  # fmt: skip
    return fig


def _great_circle(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shortest way on the sky between two places, radian; NaN where it leaves the map."""
    ends = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
                     np.sin(latitude)], 1)  # fmt: skip
    x = np.linspace(1, 0, 60)[:, None] * ends[0] + np.linspace(0, 1, 60)[:, None] * ends[1]
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return _unbroken(np.arctan2(x[:, 1], x[:, 0])), np.arcsin(x[:, 2].clip(-1, 1))


def _unbroken(longitude: np.ndarray) -> np.ndarray:
    """A line's longitudes, radian, with NaN where it leaves the map's edge."""
    jumps = np.abs(np.diff(longitude, prepend=longitude[0])) > np.pi
    return np.where(jumps, np.nan, longitude)


@style.figure
def calibration(arrays: Mapping[str, np.ndarray]) -> Figure:
    """How often the likeliest host, and any cluster, is true against its probability."""
    cases = [("p_host", "is_host", "of the likeliest host, among clusters")]
    if "p_ejected" in arrays:
        cases.append(("p_ejected", "is_ejected", "of a cluster, not of the field"))
    fig, axes = style.new(len(cases), size=(6.7 * len(cases), 6.4))
    for axis, (p, truth, text) in zip(axes[0], cases, strict=True):
        _reliability(axis, arrays[p], arrays[truth])
        axis.set(xlabel=f"probability {text}", ylabel="fraction that is true", aspect="equal")
    return fig


def _reliability(axis: Axes, p: np.ndarray, true: np.ndarray) -> None:
    axis.plot([0, 1], [0, 1], color=style.TRUTH, ls="--", lw=1.5)
    which = np.clip(np.digitize(p, BINS) - 1, 0, len(BINS) - 2)
    n = np.bincount(which, minlength=len(BINS) - 1)
    used = n > 0
    mean = np.bincount(which, p, len(BINS) - 1)[used] / n[used]
    fraction = np.bincount(which, true, len(BINS) - 1)[used] / n[used]
    error = np.sqrt(np.maximum(mean * (1 - mean), 1e-4) / n[used])
    axis.errorbar(mean, fraction, error, fmt="o", color=style.PALETTE[0], capsize=3)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


@style.figure
def purity(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Purity of the stars taken for ejected ones, against how many of these are found."""
    fig, axes = style.new(size=(9, 6.5))
    axis = axes[0, 0]
    order = np.argsort(-arrays["p"], kind="stable")
    true = arrays["ejected"][order].cumsum()
    complete, pure = true / max(1, true[-1]), true / np.arange(1, len(order) + 1)
    first = min(FEWEST, len(order)) - 1
    axis.plot(complete[first:], pure[first:], color=style.PALETTE[0], label="likeliest stars")
    half = min(int(np.searchsorted(complete, 0.5)), len(pure) - 1)
    axis.plot(0.5, pure[half], "o", ms=10, color=style.PALETTE[0], mec="white")
    axis.annotate(f"{pure[half]:.2f}", (0.5, pure[half]), (10, 8), textcoords="offset points")
    share = arrays["ejected"].mean()
    axis.axhline(share, color=style.TRUTH, ls="--", lw=1.5, label="stars taken at random")
    axis.set(xlabel="share of the ejected stars that are found", ylabel="purity", xlim=(0, 1),
             ylim=(0, 1.02))  # fmt: skip
    axis.legend(loc="upper right")
    return fig


@style.figure
def mock(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Stars that one cluster has thrown out, as they are on the sky today, and its orbit."""
    fig, axis = _sky()
    x, y = galactic(arrays["orbit_ra"], arrays["orbit_dec"])
    axis.plot(_unbroken(x), y, color=style.INK, lw=1.2, alpha=0.6, label="orbit of the cluster")
    x, y = galactic(arrays["ra"], arrays["dec"])
    low, high = np.quantile(arrays["distance"], (0.02, 0.98))
    drawn = axis.scatter(x, y, c=arrays["distance"], s=9, cmap=style.DENSITY, lw=0, alpha=0.8,
                         vmin=low, vmax=max(high, low + 0.1), rasterized=True)  # fmt: skip
    x, y = galactic(arrays["cluster_ra"], arrays["cluster_dec"])
    axis.plot(x, y, "*", ms=22, color=style.TRUTH, mec="white", label=str(arrays["name"]), zorder=4)
    fig.colorbar(drawn, ax=axis, location="bottom", aspect=40, shrink=0.6, pad=0.04,
                 label="distance, kpc")  # fmt: skip
    fig.legend(*axis.get_legend_handles_labels(), loc="upper right")
    return fig


@style.figure
def shifts(arrays: Mapping[str, np.ndarray]) -> Figure:
    """How far other potentials shift and spread the actions of what clusters eject.

    arrays: ``potential`` and, of each action, ``shift_J_R``, ``spread_J_R``..., a row for each
    cluster and potential; from `benchmarks.gems_shifts`.
    """
    names = list(dict.fromkeys(arrays["potential"]))
    colours = dict(zip(("J_R", "L_z", "J_z"), style.PALETTE, strict=False))
    fig, axes = style.new(2, size=style.SLIDE, sharey=True)
    for kind, axis in zip(("shift", "spread"), axes[0], strict=True):
        for k, (action, colour) in enumerate(colours.items()):
            for i, name in enumerate(names):
                values = arrays[f"{kind}_{action}"][arrays["potential"] == name]
                low, q16, middle, q84, high = np.quantile(values, (0.05, 0.16, 0.5, 0.84, 0.95))
                place = i + 0.22 * (k - 1)
                axis.plot([low, high], [place, place], color=colour, lw=1.5)
                axis.plot([q16, q84], [place, place], color=colour, lw=6, solid_capstyle="butt")
                label = f"${action[0]}_{action[2]}$" if not i else None
                axis.plot(middle, place, "o", ms=9, color=colour, mec="white", label=label)
        axis.grid(axis="y", visible=False)
    shift, spread = axes[0]
    shift.set_yticks(range(len(names)), labels=[style.label(name) for name in names])
    shift.invert_yaxis()
    shift.axvline(0, color=style.TRUTH, ls="--", lw=1.5, zorder=0)
    spread.axvline(1, color=style.TRUTH, ls="--", lw=1.5, zorder=0)
    spread.set_xscale("log")
    low, high = spread.get_xlim()
    ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low < tick < high]
    spread.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    spread.set_xticks([], minor=True)
    shift.set(xlabel="shift of the median, in spreads", ylabel="potential")
    spread.set(xlabel="spread, in that of the base potential")
    fig.legend(*shift.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def galactic(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places on a map in Galactic coordinates, radian: -l from -pi to pi, b."""
    from astropy.coordinates import SkyCoord

    sky = SkyCoord(ra, dec, unit="deg").galactic
    return -sky.l.wrap_at("180d").radian, sky.b.radian


def _sky() -> tuple[Figure, Axes]:
    """An empty map of the sky in Galactic coordinates."""
    fig = Figure(figsize=style.SLIDE, layout="constrained")
    axis = fig.add_subplot(projection="mollweide")
    axis.set_longitude_grid_ends(90)  # type: ignore[attr-defined]
    axis.set(xlabel="Galactic longitude", ylabel="Galactic latitude")
    degrees = np.array([-120, -60, 0, 60, 120])
    axis.set_xticks(np.deg2rad(degrees), labels=[f"{-x % 360}°" for x in degrees])
    axis.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]))
    axis.tick_params(labelsize=12)
    return fig, axis
