"""Figures of `gc_emulator`: errors of the emulator, and the posterior of a cluster."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orrery.figures import style
from orrery.figures.gc_profile import profiles

PARAMETERS = {
    "W0": r"$W_0$",
    "g": "$g$",
    "log10_mass": r"$\log_{10} M\,/\,M_\odot$",
    "log10_rh": r"$\log_{10} r_\mathrm{h}\,/\,\mathrm{pc}$",
    "rh_ra": r"$r_\mathrm{h}\,/\,r_\mathrm{a}$",
    "distance": "distance / kpc",
    "log10_extra": r"$\log_{10} s\,/\,\mathrm{arcmin}^{-2}$",
}
CENTRE_PARAMETERS = {
    "centre_ra": "right ascension",
    "centre_dec": "declination",
    "centre_distance": "distance",
    "centre_pm_ra": r"$\mu_{\alpha*}$",
    "centre_pm_dec": r"$\mu_\delta$",
    "centre_rv": "radial velocity",
}
ERRORS = {
    "f_max_rel_error": "worst relative error of $f$",
    "phi_max_rel_error": r"worst relative error of $\phi$",
}


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the rows allow, by name.

    rows: of tested models the columns `W0`, `g`, `flags` and the errors, each (n,); or draws of the
        `PARAMETERS`, each (chains, draws).
    metrics: `<parameter>_true`, where the truth is known.
    data: `mock`, draws of a mock's posterior; `profiles` as `figures.gc_profile` takes them;
        `calibration`, ranks of true parameters by name, each (sets,), from 0 to 1.
    """
    if "f_max_rel_error" in rows:
        mock = data.get("mock")
        return {"accuracy": partial(accuracy, rows)} | (_posterior(mock, metrics) if mock else {})
    if "calibration" in data:
        return {"calibration": partial(calibration, data["calibration"], metrics)}
    figures = {}
    if "profiles" in data:
        figures["profiles"] = partial(profiles, data["profiles"], metrics)
    return figures | _posterior(rows, metrics)


def _posterior(draws: style.Rows, metrics: Mapping[str, float]) -> dict[str, Callable[[], Figure]]:
    return {"corner": partial(corner, draws, metrics), "chains": partial(chains, draws, metrics)}


@style.figure
def accuracy(rows: style.Rows) -> Figure:
    """The emulator against a solution of each model; every point is a draw from the prior."""
    inside = rows["flags"] < 2
    fig, axes = style.new(len(ERRORS), 1, sharex=True, sharey=True)
    for axis, (name, label) in zip(axes[0], ERRORS.items(), strict=True):
        error = np.log10(np.maximum(rows[name][inside], 1e-16))
        points = axis.scatter(
            rows["W0"][inside],
            rows["g"][inside],
            c=error,
            s=110,
            cmap=style.DENSITY,
            edgecolor="none",
        )
        fig.colorbar(points, ax=axis, label=rf"$\log_{{10}}$ {label}", location="top")
        axis.set(xlabel="central potential $W_0$")
    axes[0, 0].set(ylabel="truncation index $g$")
    return fig


@style.figure
def corner(draws: style.Rows, metrics: Mapping[str, float]) -> Figure:
    """The posterior: 39 and 86% of the draws inside the contours; orange: the truth, if known."""
    names = [name for name in PARAMETERS if name in draws]
    n = len(names)
    side = max(11.0, 2.6 * n)  # inches
    fig, axes = style.new(n, n, size=(side, side), sharex="col")
    for i, row in enumerate(names):
        y = draws[row].ravel()
        for j, column in enumerate(names):
            axis, x = axes[i, j], draws[column].ravel()
            truth = metrics.get(f"{column}_true")
            if j > i:
                axis.remove()
                continue
            if truth is not None:
                axis.axvline(truth, color=style.TRUTH, lw=1.6)
            axis.grid(False)
            if i == j:
                axis.hist(x, 40, density=True, color=style.PALETTE[0], alpha=0.85)
                axis.set(yticks=[])
                digits = max(0, 1 - math.floor(math.log10(np.std(x))))  # two of the error
                axis.set_title(f"{np.mean(x):.{digits}f} ± {np.std(x):.{digits}f}", fontsize=14)
            else:
                _contours(axis, x, y)
                if (other := metrics.get(f"{row}_true")) is not None:
                    axis.axhline(other, color=style.TRUTH, lw=1.6)
            axis.locator_params(nbins=2 if n > 4 else 3)
            if i == n - 1:
                axis.set(xlabel=PARAMETERS[column])
            if j == 0 and i:
                axis.set(ylabel=PARAMETERS[row])
            elif j:
                axis.set(yticklabels=[])
    fig.align_labels()
    return fig


@style.figure
def chains(draws: style.Rows, metrics: Mapping[str, float]) -> Figure:
    """Every chain against its draws: alike and without trend if they have converged."""
    names = [name for name in PARAMETERS if name in draws]
    fig, axes = style.new(1, len(names), size=(13.33, max(9.0, 2.2 * len(names))), sharex=True)
    for axis, name in zip(axes[:, 0], names, strict=True):
        for k, chain in enumerate(draws[name]):
            axis.plot(chain, lw=0.7, alpha=0.8, color=style.PALETTE[k % len(style.PALETTE)])
        if (truth := metrics.get(f"{name}_true")) is not None:
            axis.axhline(truth, color=style.INK, lw=2)
        axis.set(ylabel=PARAMETERS[name])
    axes[-1, 0].set(xlabel="draw", xlim=(0, draws[names[0]].shape[1] - 1))
    if "rhat_max" in metrics:
        text = rf"$\hat R \leq$ {metrics['rhat_max']:.3f}, effective draws $\geq$ "
        text += f"{metrics['ess_min']:,.0f}, divergences {metrics['divergences']:.0f}"
        axes[0, 0].set_title(text, loc="left")
    handles = [Line2D([], [], color=style.PALETTE[0], lw=1, label="a chain")]
    if any(f"{name}_true" in metrics for name in names):
        handles.append(Line2D([], [], color=style.INK, label="truth"))
    fig.legend(handles=handles, loc="outside upper right", ncols=2)
    fig.align_ylabels()
    return fig


@style.figure
def calibration(ranks: style.Rows, metrics: Mapping[str, float]) -> Figure:
    """Ranks of the truth among draws of its posterior: uniform, but for chance, if it is right."""
    names = [name for name in (*PARAMETERS, *CENTRE_PARAMETERS) if name in ranks]
    n_columns = min(len(names), 4)
    n_rows = -(-len(names) // n_columns)
    fig, axes = style.new(n_columns, n_rows, size=(13.33, 1 + 3.6 * n_rows), sharey=True)
    low, high = (metrics[f"rank_count_{end}"] for end in ("low", "high"))
    for axis, name in zip(axes.flat, names, strict=False):
        axis.axhspan(low, high, color=style.BAND, alpha=0.6, lw=0)
        axis.hist(ranks[name], int(metrics["rank_bins"]), range=(0, 1), color=style.PALETTE[0])
        axis.set_title(
            f"p = {metrics[f'rank_p_{name}']:.2g}; in 50% {metrics[f'coverage_50_{name}']:.0%}, "
            f"in 90% {metrics[f'coverage_90_{name}']:.0%}",
            fontsize=12,
        )
        axis.set(xlabel=f"rank of {PARAMETERS.get(name) or CENTRE_PARAMETERS[name]}", xlim=(0, 1))
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set(ylabel="data sets")
    handles = [Patch(color=style.BAND, label="99% interval of chance")]
    fig.legend(handles=handles, loc="outside upper right")
    return fig


def _contours(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Smoothed density of the draws, at the levels that hold 39.3 and 86.5% of them."""
    counts, x_edges, y_edges = np.histogram2d(x, y, 30)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(counts, 4)
    for along in (0, 1):
        padded = np.apply_along_axis(np.convolve, along, padded, kernel, mode="same")
    centres = [
        np.concatenate([e[0] - step * (np.arange(4, 0, -1) - 0.5), 0.5 * (e[1:] + e[:-1]),
                        e[-1] + step * (np.arange(4) + 0.5)])
        for e, step in ((x_edges, x_edges[1] - x_edges[0]), (y_edges, y_edges[1] - y_edges[0]))
    ]  # fmt: skip
    rising = np.sort(padded.ravel())[::-1]
    held = np.cumsum(rising) / rising.sum()
    levels = [rising[np.searchsorted(held, share)] for share in (0.865, 0.393)]
    colours = [style.PALETTE[4], style.PALETTE[0]]
    axis.contourf(*centres, padded.T, [*levels, padded.max() * 1.01], colors=colours, alpha=0.85)
