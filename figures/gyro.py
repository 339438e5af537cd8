"""Figures of `gyro`: gyrochrones over stars, ages of clusters left out, the Sun, honesty."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from orrery.figures import style
from orrery.figures.statistics import binomial_band

SUN_GYR = 4.57
SHOWN = (0.03, 8.0)  # density per dex
NEAR_DEX = 0.08
TOO_WIDE = 0.4  # dex, stated, of an age that is hardly one


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Figure]:
    """Every figure that the rows allow, by name; see `evaluation.figure_data` for their keys."""
    arrays = {**rows, **data["clusters"]}
    figures = {"gyrochrones": gyrochrones(arrays), "sun": sun(arrays)}
    if (arrays["cluster_stated"] < TOO_WIDE).any():
        figures["clusters"] = clusters(arrays)
    pit = rows.get("pit", np.empty(0))
    if np.isfinite(pit).sum() > 1:
        figures["honesty"] = honesty(pit[np.isfinite(pit)])
    return figures


@style.figure
def gyrochrones(rows: style.Rows) -> Figure:
    """The model's density of periods at a row of ages, and stars of about that age."""
    ages = rows["curve_ages"]
    fig, axes = style.new(3, -(-len(ages) // 3), size=(16, 9), sharex=True, sharey=True)
    low, high = SHOWN
    for axis, age, log_p in zip(axes.flat, ages, rows["curves"], strict=False):
        density = np.clip(log_p, np.log(low), np.log(high))
        axis.contourf(
            rows["curve_colour"],
            10 ** rows["curve_log_period"],
            np.exp(density),
            levels=np.geomspace(low, high, 13),
            norm="log",
            cmap="Blues",
            extend="max",
        )
        near = np.abs(rows["stars_log_age"] - np.log10(age)) < NEAR_DEX
        axis.plot(
            rows["stars_colour"][near],
            10 ** rows["stars_log_period"][near],
            ".",
            color=style.PALETTE[1],
            ms=3.5,
            alpha=0.7,
            rasterized=True,
        )
        text = f"{age:g} Myr" if age < 1000 else f"{age / 1000:g} Gyr"
        axis.set_title(f"{text}, {near.sum():,} stars")
        axis.set(yscale="log", xlim=(0.4, 3.2), ylim=(0.1, 80))
    for axis in axes[-1]:
        axis.set_xlabel(r"$(G_\mathrm{BP}-G_\mathrm{RP})_0$ [mag]")
    for axis in axes[:, 0]:
        axis.set_ylabel("rotation period [d]")
    return fig


@style.figure
def clusters(rows: style.Rows) -> Figure:
    """Ages of clusters by networks that did not see them; bars: stated, and with discrepancy."""
    known = rows["cluster_stated"] < TOO_WIDE  # infinite: not known
    keys = ("log_age", "log_age_error", "off", "stated")
    lit, e_lit, off, stated = (rows[f"cluster_{key}"][known] for key in keys)
    e_lit = np.nan_to_num(e_lit)
    judged = rows["cluster_judged"][known]
    total = np.hypot(stated, rows["cluster_discrepancy"][known])
    fig, axes = style.new(1, 2, sharex=True, height_ratios=(2.2, 1), size=(9.5, 9.5))
    main, below = axes[:, 0]
    for chosen, colour, text in (
        (judged, style.PALETTE[0], "judged"),
        (~judged, "#999999", "not judged"),
    ):
        if not chosen.any():
            continue
        x, y = 10 ** lit[chosen], 10 ** (lit + off)[chosen]
        low, high = (y * (1 - 10 ** -total[chosen]), y * (10 ** total[chosen] - 1))
        sides = [x * (1 - 10 ** -e_lit[chosen]), x * (10 ** e_lit[chosen] - 1)]
        main.errorbar(x, y, [low, high], sides, fmt="o", color=colour, label=text, lw=1.6)
        below.plot(x, off[chosen] / total[chosen], "o", color=colour)
    ends = np.array([10 ** lit.min() / 2, 10 ** lit.max() * 2])
    main.plot(ends, ends, color=style.TRUTH, label="literature")
    below.axhspan(-1, 1, color=style.BAND)
    below.axhline(0, color=style.TRUTH)
    main.set(xscale="log", yscale="log", ylabel="age, left out of training [Myr]", ylim=ends)
    below.set(xlabel="age in the literature [Myr]", ylabel="pull")
    main.legend(loc="upper left")
    return fig


@style.figure
def sun(rows: style.Rows) -> Figure:
    """The Sun's age by its rotation; it is older than the oldest cluster."""
    fig, axes = style.new()
    axis = axes[0, 0]
    age = 10 ** (rows["sun_log_age"] - 3)
    density = rows["sun_posterior"] / np.gradient(age)
    axis.fill_between(age, density, color=style.PALETTE[4], alpha=0.5, lw=0)
    axis.plot(age, density, color=style.PALETTE[0], label="posterior")
    axis.axvline(SUN_GYR, color=style.TRUTH, label=f"{SUN_GYR} Gyr")
    axis.axvline(rows["oldest"], color="#666666", ls="--", label="oldest cluster")
    axis.set(xlim=(0, 13.8), ylim=0, xlabel="age of the Sun [Gyr]", ylabel="density [1 / Gyr]")
    axis.legend()
    return fig


@style.figure
def honesty(pit: np.ndarray) -> Figure:
    """Do stars of known age fall where their posteriors say? Grey: 95% of honest samples."""
    fig, axes = style.new(size=(9.5, 8))
    axis = axes[0, 0]
    levels = np.linspace(0, 1, 41)
    low, high = np.array(binomial_band(len(pit), levels[1:-1])) / len(pit)
    axis.fill_between(levels[1:-1], low, high, color=style.BAND)
    axis.plot(levels, levels, color=style.TRUTH)
    share = [np.mean(pit <= level) for level in levels]
    axis.plot(levels, share, color=style.PALETTE[0])
    axis.set(xlabel="cumulative posterior at the true age", ylabel="share of stars below")
    axis.set(xlim=(0, 1), ylim=(0, 1), title=f"{len(pit):,} stars")
    return fig
