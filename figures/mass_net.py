"""Figures of `mass_net`: the Hertzsprung-Russell diagram by mass, and what the orbits say."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from orrery.figures import style

MASS_LEVELS = (0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)  # Msun
BP_RP, ABS_G = r"$G_\mathrm{BP}-G_\mathrm{RP}$ [mag]", r"$M_G$ [mag]"


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the data allow, by name.

    data: arrays by figure, see `models.mass_net.figure_data`.
    """
    kinds = {
        "diagram": diagram,
        "mass_relation": mass_relation,
        "motion": motion,
        "separation": separation,
    }
    return {name: partial(kind, data[name]) for name, kind in kinds.items() if name in data}


@style.figure
def diagram(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Dynamical mass over the Hertzsprung-Russell diagram, where there are training stars."""
    fig, axes = style.new(2, size=(14, 9), sharex=True, sharey=True)
    main, right = axes[0]
    norm = {"vmin": np.log10(MASS_LEVELS[0]), "vmax": np.log10(MASS_LEVELS[-1])}
    log_mass = np.log10(arrays["mass_map"])
    image = main.pcolormesh(
        arrays["x"], arrays["y"], log_mass, cmap="viridis", rasterized=True, **norm
    )
    contours = main.contour(
        arrays["x"], arrays["y"], log_mass, levels=np.log10(MASS_LEVELS), colors="white",
        linewidths=0.9,
    )  # fmt: skip
    main.clabel(contours, fmt=lambda level: f"{10**level:.2g}", fontsize=11)
    bar = fig.colorbar(image, ax=main, location="top", aspect=30, pad=0.02)
    ticks = MASS_LEVELS[::2]
    bar.set_ticks(np.log10(ticks).tolist(), labels=[f"{tick:g}" for tick in ticks])
    bar.set_label(r"mass [$M_\odot$]")
    std = right.pcolormesh(
        arrays["x"], arrays["y"], arrays["std_map"], cmap="magma_r", vmin=0, vmax=0.3,
        rasterized=True,
    )  # fmt: skip
    fig.colorbar(std, ax=right, location="top", aspect=30, pad=0.02, label="error of ln mass")
    if "bp_rp" in arrays:
        for axis in (main, right):
            axis.plot(
                arrays["bp_rp"], arrays["abs_g"], ".", ms=1, color=style.INK, alpha=0.25,
                rasterized=True,
            )  # fmt: skip
    main.set(
        xlabel=BP_RP,
        ylabel=ABS_G,
        xlim=(arrays["x"][0], arrays["x"][-1]),
        ylim=(arrays["y"][-1], arrays["y"][0]),
    )
    right.set_xlabel(BP_RP)
    return fig


@style.figure
def mass_relation(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Mass along the sequence of dwarfs, beside the table of Pecaut & Mamajek (2013)."""
    fig, axes = style.new(1, 2, sharex=True, height_ratios=(2, 1), size=(11, 9))
    main, below = axes[:, 0]
    x, known = arrays["abs_g"], arrays["known"]
    band = {"color": style.PALETTE[0], "alpha": 0.25, "lw": 0}
    main.fill_between(x[known], arrays["low"][known], arrays["high"][known], **band)
    main.plot(x[known], arrays["mass"][known], color=style.PALETTE[0], label="from orbits")
    main.plot(x, arrays["table_mass"], color=style.TRUTH, ls="--", label="Pecaut & Mamajek")
    main.set(yscale="log", ylabel=r"mass [$M_\odot$]", ylim=(0.07, 4))
    main.set_yticks([0.1, 0.2, 0.5, 1, 2], labels=["0.1", "0.2", "0.5", "1", "2"])
    main.legend()
    ratio = {name: np.log(arrays[name] / arrays["table_mass"]) for name in ("mass", "low", "high")}
    below.fill_between(x[known], ratio["low"][known], ratio["high"][known], **band)
    below.plot(x[known], ratio["mass"][known], color=style.PALETTE[0])
    below.axhline(0, color=style.TRUTH, ls="--")
    below.set(xlabel=ABS_G, ylabel=r"$\Delta \ln m$", ylim=(-0.3, 0.3), xlim=(x[0], x[-1]))
    return fig


@style.figure
def motion(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Relative velocities of precise pairs, scaled by mass and separation, and their model."""
    fig, axes = style.new()
    axis = axes[0, 0]
    width = np.diff(arrays["edges"])
    density = arrays["counts"] / max(int(arrays["n"]), 1) / width
    label = f"{int(arrays['n']):,} pairs"
    axis.stairs(density, arrays["edges"], fill=True, color=style.BAND, label=label)
    u, bound, outlier = arrays["u"], arrays["bound"], arrays["outlier"]
    axis.plot(u, bound + outlier, color=style.PALETTE[0], label="model")
    axis.plot(u, outlier, color=style.PALETTE[1], label="outliers")
    axis.plot(u, arrays["thermal"], color=style.TRUTH, ls="--", lw=1.6,
              label="thermal eccentricities, no outliers")  # fmt: skip
    axis.axvline(np.sqrt(2), color=style.INK, lw=1, ls=":")
    axis.annotate("bound orbits", (np.sqrt(2), axis.get_ylim()[1]), (-6, -4), ha="right", va="top",
                  textcoords="offset points")  # fmt: skip
    axis.set(xlabel=r"$u = v\,\sqrt{s\,/\,G M}$", ylabel="density", xlim=(0, 3))
    axis.legend()
    return fig


@style.figure
def separation(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Exponent of the eccentricities and fraction of outliers against separation."""
    fig, axes = style.new(2, size=(13.33, 6))
    s = 10 ** arrays["log_separation"]
    for axis, name, text in (
        (axes[0, 0], "alpha", r"$\alpha$, $p(e) \sim e^\alpha$"),
        (axes[0, 1], "outlier_fraction", "fraction of outliers"),
    ):
        value, std = arrays[name], arrays[f"{name}_std"]
        axis.fill_between(s, value - std, value + std, color=style.PALETTE[0], alpha=0.25, lw=0)
        axis.plot(s, value, color=style.PALETTE[0], label="learned")
        axis.set(xscale="log", xlabel="separation [AU]", ylabel=text)
    axes[0, 0].plot(s, arrays["published_alpha"], color=style.INK, ls=":",
                    label="Gaia's, Hwang et al. (2022)")  # fmt: skip
    if "true_alpha" in arrays:
        axes[0, 0].plot(s, arrays["true_alpha"], color=style.TRUTH, ls="--", label="simulated")
    axes[0, 0].legend()
    axes[0, 1].set_ylim(bottom=0)
    return fig
