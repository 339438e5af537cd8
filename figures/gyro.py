"""Figures of `gyro`: gyrochrones and stars, ages of held-out clusters, the Sun, calibration."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from orrery.figures import style
from orrery.figures.statistics import binomial_band

SUN_GYR = 4.57
DENSITY_RANGE = (0.03, 8.0)  # per dex, of the colours
SIMILAR_AGE_DEX = 0.08  # of the stars that are drawn with a gyrochrone
MAX_HALF_WIDTH = 0.4  # dex, of a 68% interval: of wider posteriors no age is drawn


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the rows allow, by name.

    rows: of stars of known age ``pit`` (n,), NaN where unknown.
    data: arrays of ``gyrochrones``, ``sun`` and ``clusters``, see `models.gyro.figure_data`.
    """
    kinds = {"gyrochrones": gyrochrones, "sun": sun, "clusters": clusters}
    figures: dict[str, Callable[[], Figure]] = {
        name: partial(kind, data[name]) for name, kind in kinds.items() if name in data
    }
    if "clusters" in data and not _is_drawn(data["clusters"]).any():
        del figures["clusters"]
    pit = rows.get("pit", np.empty(0))
    if np.isfinite(pit).sum() > 1:
        figures["calibration"] = partial(calibration, pit[np.isfinite(pit)])
    return figures


@style.figure
def gyrochrones(arrays: Mapping[str, np.ndarray]) -> Figure:
    """The model's density of periods at several ages, and stars of similar age."""
    ages = arrays["age"]
    fig, axes = style.new(3, -(-len(ages) // 3), size=(16, 9), sharex=True, sharey=True)
    low, high = DENSITY_RANGE
    for axis, age, log_density in zip(axes.flat, ages, arrays["log_density"], strict=False):
        density = np.clip(log_density, np.log(low), np.log(high))
        axis.contourf(
            arrays["colour_grid"],
            10 ** arrays["log_period_grid"],
            np.exp(density),
            levels=np.geomspace(low, high, 13),
            norm="log",
            cmap="Blues",
            extend="max",
        )
        similar = np.abs(arrays["log_age"] - np.log10(age)) < SIMILAR_AGE_DEX
        axis.plot(
            arrays["colour"][similar],
            10 ** arrays["log_period"][similar],
            ".",
            color=style.PALETTE[1],
            ms=3.5,
            alpha=0.7,
            rasterized=True,
        )
        text = f"{age:g} Myr" if age < 1000 else f"{age / 1000:g} Gyr"
        axis.set_title(f"{text}, {similar.sum():,} stars")
        axis.set(yscale="log", xlim=(0.4, 3.2), ylim=(0.1, 80))
    for axis in axes[-1]:
        axis.set_xlabel(r"$(G_\mathrm{BP}-G_\mathrm{RP})_0$ [mag]")
    for axis in axes[:, 0]:
        axis.set_ylabel("rotation period [d]")
    return fig


def _is_drawn(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask of the clusters that are scored and have an age."""
    scored = np.isfinite(arrays["low"])
    return scored & (np.where(scored, arrays["high"], 9) - arrays["low"] < 2 * MAX_HALF_WIDTH)


@style.figure
def clusters(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Ages of clusters by networks that hold them out; bars: 68%, with the discrepancy."""
    drawn = _is_drawn(arrays)
    columns = {name: values[drawn] for name, values in arrays.items()}
    log_age = columns["log_age"]
    log_age_error = np.nan_to_num(columns["log_age_error"])
    offset = 0.5 * (columns["low"] + columns["high"])
    error = 0.5 * (columns["high"] - columns["low"])
    is_benchmark = columns["is_benchmark"]
    fig, axes = style.new(1, 2, sharex=True, height_ratios=(2.2, 1), size=(9.5, 9.5))
    main, below = axes[:, 0]
    for mask, colour, text in (
        (is_benchmark, style.PALETTE[0], "benchmark"),
        (~is_benchmark, "#999999", "other clusters"),
    ):
        if not mask.any():
            continue
        x, y = 10 ** log_age[mask], 10 ** (log_age + offset)[mask]
        y_errors = [y * (1 - 10 ** -error[mask]), y * (10 ** error[mask] - 1)]
        x_errors = [x * (1 - 10 ** -log_age_error[mask]), x * (10 ** log_age_error[mask] - 1)]
        main.errorbar(x, y, y_errors, x_errors, fmt="o", color=colour, label=text, lw=1.6)
        below.plot(x, offset[mask] / error[mask], "o", color=colour)
    ends = np.array([10 ** log_age.min() / 2, 10 ** log_age.max() * 2])
    main.plot(ends, ends, color=style.TRUTH, label="literature")
    below.axhspan(-1, 1, color=style.BAND)
    below.axhline(0, color=style.TRUTH)
    main.set(xscale="log", yscale="log", ylabel="age, left out of training [Myr]", ylim=ends)
    below.set(xlabel="age in the literature [Myr]", ylabel="pull")
    main.legend(loc="upper left")
    return fig


@style.figure
def sun(arrays: Mapping[str, np.ndarray]) -> Figure:
    """The Sun's age from its rotation; it is older than the oldest cluster."""
    fig, axes = style.new()
    axis = axes[0, 0]
    age = 10 ** (arrays["log_age"] - 3)
    density = arrays["probability"] / np.gradient(age)
    axis.fill_between(age, density, color=style.PALETTE[4], alpha=0.5, lw=0)
    axis.plot(age, density, color=style.PALETTE[0], label="posterior")
    axis.axvline(SUN_GYR, color=style.TRUTH, label=f"{SUN_GYR} Gyr")
    axis.axvline(arrays["oldest_cluster"], color="#666666", ls="--", label="oldest cluster")
    axis.set(xlim=(0, 13.8), ylim=0, xlabel="age of the Sun [Gyr]", ylabel="density [1 / Gyr]")
    axis.legend()
    return fig


@style.figure
def calibration(pit: np.ndarray) -> Figure:
    """Calibration of the posteriors of stars of known age; grey: 95% of calibrated samples."""
    fig, axes = style.new(size=(9.5, 8))
    axis = axes[0, 0]
    levels = np.linspace(0, 1, 41)
    low, high = np.array(binomial_band(len(pit), levels[1:-1])) / len(pit)
    axis.fill_between(levels[1:-1], low, high, color=style.BAND)
    axis.plot(levels, levels, color=style.TRUTH)
    fraction = [np.mean(pit <= level) for level in levels]
    axis.plot(levels, fraction, color=style.PALETTE[0])
    axis.set(xlabel="cumulative posterior at the true age", ylabel="fraction of stars below")
    axis.set(xlim=(0, 1), ylim=(0, 1), title=f"{len(pit):,} stars")
    return fig
