"""Figures of `dust`: the map on the sky and from above, a sightline, calibration."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from orrery.figures import style

EXTINCTION = "extinction $E$ [Zhang, Green & Rix 2023]"
NAMES = {"mean": "map, posterior mean", "truth": "truth", "std": "posterior standard deviation"}


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures, by name; for ``data`` see `dust.figure_data`."""
    figures = {"sky": sky, "slices": slices, "plane": plane, "sightline": sightline}
    drawn: dict[str, Callable[[], Figure]] = {
        name: partial(figure, data[name]) for name, figure in figures.items() if name in data
    }
    if "pull" in rows and np.isfinite(rows["pull"]).any():
        drawn["calibration"] = partial(calibration, rows)
    return drawn


def _mollweide(axis: Any, image: np.ndarray, top: float) -> Any:
    lon = np.radians(np.linspace(180, -180, image.shape[1]))
    lat = np.radians(np.linspace(-90, 90, image.shape[0]))
    drawn = axis.pcolormesh(-lon, lat, image, cmap="inferno", vmin=0, vmax=top, rasterized=True)
    axis.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["120°", "60°", "0°", "300°", "240°"])
    axis.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"])
    axis.tick_params(axis="x", colors="white", labelsize=11)
    axis.tick_params(axis="y", labelsize=11)
    axis.grid(color="white", lw=0.3, alpha=0.5)
    return drawn


@style.figure
def sky(data: style.Rows) -> Figure:
    """Extinction through the map; the Galactic centre is in the middle."""
    names = [name for name in NAMES if name in data]
    fig, axes = style.new(
        len(names), 1, size=(6.6 * len(names), 4.9), subplot_kw={"projection": "mollweide"}
    )
    top = float(np.quantile(data["mean"], 0.995))
    for axis, name in zip(axes[0], names, strict=True):
        limit = float(np.quantile(data["std"], 0.995)) if name == "std" else top
        drawn = _mollweide(axis, data[name], limit)
        axis.set_title(NAMES[name], pad=14)
        fig.colorbar(drawn, ax=axis, label=EXTINCTION, location="bottom", shrink=0.8, extend="max")
    return fig


@style.figure
def slices(data: style.Rows) -> Figure:
    """Extinction between distances, in Galactic coordinates."""
    names = [name for name in ("mean", "truth") if name in data]
    edges = data["edges"]
    n = len(data["mean"])
    fig, axes = style.new(
        n,
        len(names),
        size=(5.2 * n, 3.6 * len(names) + 0.6),
        subplot_kw={"projection": "mollweide"},
    )
    for j in range(n):
        top = float(np.quantile(data["mean"][j], 0.995))
        for i, name in enumerate(names):
            drawn = _mollweide(axes[i, j], data[name][j], top)
            title = f"{edges[j]:.0f} to {edges[j + 1]:.0f} pc" if i == 0 else ""
            axes[i, j].set_title(title or NAMES[name], pad=14, fontsize=14)
        fig.colorbar(drawn, ax=axes[:, j], label="$E$", location="bottom", shrink=0.8, extend="max")
    return fig


@style.figure
def plane(data: style.Rows) -> Figure:
    """The Galactic plane from above, with the Sun in the middle: density at b = 0."""
    names = [name for name in ("mean", "truth") if name in data]
    fig, axes = style.new(len(names), 1, size=(7.4 * len(names), 7.2), sharey=True)
    low, high = np.nanquantile(data[names[-1]], (0.01, 0.99)) / np.log(10)
    for axis, name in zip(axes[0], names, strict=True):
        drawn = axis.imshow(
            data[name] / np.log(10), extent=data["extent"], origin="lower",
            cmap="inferno", vmin=low, vmax=high,
        )  # fmt: skip
        axis.plot(0, 0, "o", color=style.PALETTE[4], ms=6)
        axis.grid(False)
        axis.set(title=NAMES[name], xlabel="$x$ towards the Galactic centre [pc]")
    axes[0, 0].set_ylabel("$y$ towards $l$ = 90° [pc]")
    fig.colorbar(drawn, ax=axes, label=r"$\log_{10}$ extinction density [$E$ pc$^{-1}$]",
                 extend="both")  # fmt: skip
    return fig


@style.figure
def sightline(data: style.Rows) -> Figure:
    """Extinction along the sightline with most stars; whiskers are errors of parallax and E."""
    fig, axes = style.new()
    axis, r = axes[0, 0], data["edges"]
    samples = data["samples"]
    for i, line in enumerate(samples):
        axis.plot(r, line, color=style.PALETTE[4], lw=1, label="samples" if i == 0 else None)
    axis.plot(r, samples.mean(0), color=style.PALETTE[0], lw=3, label="posterior mean")
    if "truth" in data:
        axis.plot(r, data["truth"], color=style.TRUTH, lw=2.5, ls="--", label="truth")
    parallax, error = data["parallax"], data["parallax_error"]
    distance = 1e3 / parallax
    near, far = 1e3 / (parallax + error), 1e3 / np.maximum(parallax - error, 1e-2)
    axis.errorbar(
        distance, data["extinction"], data["extinction_error"],
        (distance - near, far - distance), fmt="o", color=style.INK, ms=6, elinewidth=1,
        label="held-out stars",
    )  # fmt: skip
    axis.set(xlabel="distance [pc]", ylabel=EXTINCTION, xlim=(0, 1.05 * r[-1]))
    axis.legend()
    return fig


@style.figure
def calibration(rows: style.Rows) -> Figure:
    """Held-out stars: their extinction minus the map's, over the total error."""
    fig, axes = style.new(2)
    pull = rows["pull"][np.isfinite(rows["pull"])]
    left, right = axes[0]
    x = np.linspace(-5, 5, 201)
    left.hist(pull, 50, range=(-5, 5), density=True, color=style.PALETTE[0], alpha=0.85)
    left.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color=style.TRUTH, label="unit normal")
    left.set(xlabel="pull", ylabel="density", title=f"variance {np.var(pull):.2f}")
    left.legend()
    true = rows["extinction_true"]
    style.density(right, rows["extinction"], true, _extent(true), (60, 60))
    low, high = _extent(true)[:2]
    right.plot([low, high], [low, high], color=style.TRUTH, lw=1.5)
    right.set(xlabel="extinction of the map", ylabel="extinction of the star")
    return fig


def _extent(values: np.ndarray) -> tuple[float, float, float, float]:
    low, high = np.quantile(values[np.isfinite(values)], (0.001, 0.999))
    return low, high, low, high
