"""Figures of `feniks`: candidates for quiescent galaxies, their colours, redshifts and ages."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orrery.figures import sed_emulator, style

COLOURS = {
    "uvj": ("v_j", "u_v", "V − J", "U − V"),
    "ugi": ("gs_is", "us_gs", r"$(g-i)_s$", r"$(u-g)_s$"),
}
TEXT = {
    "t50": r"$t_{50}$ [Gyr]",
    "log_stellar_mass": r"$\log_{10} M_\star/M_\odot$",
    "a_v": r"$A_V$ [mag]",
}
CLASSES = ("none", "tentative", "secure")
N_ERRORS = 60  # galaxies whose errors are drawn
CHOSEN = 0.5  # probability of a candidate
NEAR = 0.01  # redshifts that differ by less are the same
PER_BIN, BINS = 10, 6  # galaxies of a bin, at least; bins, at most
P_EDGES = (0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0001)  # of bins of p_peak


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the data allow, by name.

    data: arrays by figure, see `models.feniks.figure_data`.
    """
    kinds = {
        "candidates": candidates,
        "selection": selection,
        "colours": colours,
        "formation": formation,
        "redshifts": redshifts,
        "fits": fits,
        "histories": histories,
    }
    own = {name: partial(kind, data[name]) for name, kind in kinds.items() if name in data}
    return own | sed_emulator.draw(rows, metrics, data)


@style.figure
def candidates(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Purity against completeness of the candidates, beside boxes in colours."""
    fig, axes = style.new(size=(9, 7))
    axis = axes[0, 0]
    order = np.argsort(-arrays["score"], kind="stable")
    found = np.cumsum(arrays["wanted"][order])
    completeness, purity = found / found[-1], found / np.arange(1, len(found) + 1)
    axis.plot(completeness, purity, color=style.PALETTE[0], label="feniks, by p_candidate")
    for i, name in enumerate(arrays["boxes"]):
        title = str(name).replace("(ugi)_s", "$(ugi)_s$")
        axis.plot(
            arrays["completeness"][i], arrays["purity"][i], "s", ms=10,
            color=style.PALETTE[i + 1], label=f"{title}, by fitted z and mass",
        )  # fmt: skip
    axis.axvline(0.9, color=style.INK, lw=1.2, ls=":", label="90% complete")
    axis.set(
        xlabel="completeness", ylabel="purity", xlim=(0, 1.02), ylim=(0, 1.05),
        title=f"mocks: {int(arrays['wanted'].sum())} of {len(found)} are candidates",
    )  # fmt: skip
    axis.legend(loc="lower left")
    return fig


@style.figure
def selection(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Completeness against true mass and redshift, and contamination against fitted ones."""
    fig, axes = style.new(2, 1, size=(14, 6.5), sharey=True)
    chosen, wanted = arrays["p_candidate"] > CHOSEN, arrays["wanted"]
    for axis, name, label in (
        (axes[0, 0], "log_stellar_mass", TEXT["log_stellar_mass"]),
        (axes[0, 1], "zred", "redshift"),
    ):
        true, fitted = arrays[f"{name}_true"], arrays[name]
        parts = (
            (true, wanted, chosen, "completeness, by true values"),
            (fitted, chosen, ~wanted, "contamination, by fitted values"),
        )
        for i, (values, among, counted, title) in enumerate(parts):
            if among.sum() >= 2 * PER_BIN:
                _shares(axis, values[among], counted[among], style.PALETTE[i], title)
        axis.set(xlabel=label, ylim=(-0.02, 1.02))
    axes[0, 0].set_ylabel(f"share of galaxies, p_candidate > {CHOSEN:g}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    return fig


def _shares(axis: Axes, values: np.ndarray, counted: np.ndarray, color: str, title: str) -> None:
    """The share that is ``counted``, in bins of as many galaxies each."""
    n_bins = min(BINS, len(values) // PER_BIN)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)))
    place = np.digitize(values, edges[1:-1])
    bins = [place == k for k in np.unique(place)]
    middle = [np.median(values[inside]) for inside in bins]
    share = [counted[inside].mean() for inside in bins]
    error = [_error_of_share(counted[inside]) for inside in bins]
    axis.errorbar(middle, share, error, fmt="o-", ms=6, color=color, label=title)


def _error_of_share(counted: np.ndarray) -> float:
    """Standard error of the share of True; not 0 where all or none are."""
    p = (counted.sum() + 0.5) / (len(counted) + 1)
    return float(np.sqrt(p * (1 - p) / len(counted)))


@style.figure
def colours(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Colours at rest, posterior medians and some errors, with the boxes of quiescent galaxies."""
    fig, axes = style.new(2, 1, size=(15, 6.8))
    points: Any = None
    for axis, (title, (x, y, x_label, y_label)) in zip(axes[0], COLOURS.items(), strict=True):
        few = slice(0, N_ERRORS)
        x_ends, y_ends = ((arrays[f"{c}_q16"][few], arrays[f"{c}_q84"][few]) for c in (x, y))
        axis.hlines(arrays[y][few], *x_ends, color=style.BAND, lw=0.8)
        axis.vlines(arrays[x][few], *y_ends, color=style.BAND, lw=0.8)
        last = slice(None, None, -1)  # the likeliest candidates on top
        points = axis.scatter(
            arrays[x][last], arrays[y][last], c=arrays["p_quiescent"][last], s=14,
            cmap="coolwarm", vmin=0, vmax=1, rasterized=True, zorder=3,
        )  # fmt: skip
        _box(axis, arrays[f"{title}_box"])
        axis.set(xlabel=f"{x_label} [mag]", ylabel=f"{y_label} [mag]")
        axis.set_title(f"box of {arrays[f'{title}_name']}", fontsize=12, loc="right")
    fig.colorbar(points, ax=axes[0, :].tolist(), label="P(quiescent)", pad=0.02)
    return fig


def _box(axis: Axes, box: np.ndarray) -> None:
    """The edge of a box, to the ends of the axes: y above ``y_low`` and a line, x below."""
    slope, level, y_low, x_high = box
    corner, top = (y_low - level) / slope, slope * x_high + level
    x_ends, y_ends = axis.get_xlim(), axis.get_ylim()
    x_low, x_end = min(x_ends[0], corner - 0.3), max(x_ends[1], x_high + 0.1)
    y_start, y_high = min(y_ends[0], y_low - 0.3), max(y_ends[1], top + 0.3)
    x = [x_low, corner, x_high, x_high]
    axis.plot(x, [y_low, y_low, top, y_high], color=style.INK, lw=1.5, zorder=4)
    axis.set(xlim=(x_low, x_end), ylim=(y_start, y_high))


@style.figure
def formation(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Time of formation, mass and dust of quiescent mocks, fitted against true."""
    fig, axes = style.new(3, 1, size=(15, 5.5))
    for axis, (name, label) in zip(axes[0], TEXT.items(), strict=True):
        true, middle = arrays[f"{name}_true"], arrays[name]
        low, high = arrays[f"{name}_q16"], arrays[f"{name}_q84"]
        few = slice(0, 3 * N_ERRORS)
        axis.vlines(true[few], low[few], high[few], color=style.PALETTE[0], alpha=0.25, lw=0.8)
        axis.plot(true, middle, ".", ms=4, color=style.PALETTE[0], rasterized=True)
        ends = np.nanpercentile(np.concatenate([true, middle]), [0.5, 99.5])
        axis.plot(ends, ends, color=style.TRUTH, ls="--", lw=1.2)
        axis.set(xlabel=f"true {label}", xlim=ends, ylim=ends, box_aspect=1)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_ylabel("fitted")
    return fig


@style.figure
def redshifts(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Redshifts by spectra against true ones, by their class, and how often p_peak is right."""
    fig, axes = style.new(2, 1, size=(14, 6.5))
    has = np.isfinite(arrays["z_peak"]) & np.isfinite(arrays["zred_true"])
    true, found, p_peak, z_class = (
        arrays[name][has] for name in ("zred_true", "z_peak", "p_peak", "z_class")
    )
    axis = axes[0, 0]
    for i, name in enumerate(CLASSES):
        mask = z_class == i
        title = f"{name}, {mask.sum()}"
        axis.plot(true[mask], found[mask], ".", ms=9, color=style.PALETTE[i], label=title)
    every = np.concatenate([true, found])
    ends = np.array([every.min() - 0.1, every.max() + 0.1])
    axis.plot(ends, ends, color=style.TRUTH, ls="--", lw=1, zorder=1)
    axis.set(xlabel="true redshift", ylabel="likeliest redshift", xlim=ends, ylim=ends)
    axis.legend(title="redshift is", loc="upper left")
    axis = axes[0, 1]
    right = np.abs(found - true) < NEAR
    place = np.digitize(p_peak, P_EDGES[1:-1])
    for k in np.unique(place):
        inside = place == k
        axis.errorbar(
            p_peak[inside].mean(), right[inside].mean(), _error_of_share(right[inside]), fmt="o",
            ms=7, color=style.PALETTE[0],
        )  # fmt: skip
    axis.plot([0, 1], [0, 1], color=style.TRUTH, ls="--", lw=1)
    axis.set(
        xlabel="p_peak", ylabel=f"share within {NEAR:g} of the truth", xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )  # fmt: skip
    return fig


@style.figure
def fits(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Spectra with the posterior of the model, photometry, and p(z)."""
    n = len(arrays["z_peak"])
    fig, axes = style.new(3, n, size=(17, 4.6 * n))
    for i in range(n):
        _spectrum(axes[i, 0], arrays, i)
        _photometry(axes[i, 1], arrays, i)
        axis = axes[i, 2]
        z = arrays["z_grid"][i]
        axis.semilogy(z, arrays["pz_photometry"][i], color=style.PALETTE[1], label="photometry")
        axis.semilogy(z, arrays["pz"][i], color=style.PALETTE[0], label="and spectrum")
        axis.set(xlabel="redshift", ylabel="p(z)", ylim=(1e-5, 3 * np.nanmax(arrays["pz"][i])))
        axis.set_title(
            f"z = {arrays['z_peak'][i]:.4f}, {CLASSES[int(arrays['z_class'][i])]}", fontsize=13
        )
        axis.legend(loc="upper left", fontsize=11)
    return fig


def _spectrum(axis: Axes, arrays: Mapping[str, np.ndarray], i: int) -> None:
    micron = arrays["wavelength"][i] * 1e-4
    flux, error = arrays["flux"][i], arrays["error"][i]
    axis.fill_between(micron, flux - error, flux + error, color=style.BAND, lw=0, step="mid")
    axis.step(micron, flux, where="mid", color=style.INK, lw=0.8, label="observed")
    low, middle, high = arrays["model"][i]
    axis.fill_between(micron, low, high, color=style.PALETTE[0], alpha=0.35, lw=0)
    axis.plot(micron, middle, color=style.PALETTE[0], lw=1.4, label="posterior")
    span = np.nanpercentile(flux, [2, 98])
    margin = 0.4 * (span[1] - span[0])
    axis.set(
        xlabel="wavelength [µm]", ylabel="flux [µJy]", ylim=(span[0] - margin, span[1] + margin)
    )
    axis.legend(loc="upper left", fontsize=11)


def _photometry(axis: Axes, arrays: Mapping[str, np.ndarray], i: int) -> None:
    order = np.argsort(arrays["band_wavelength"])
    micron = arrays["band_wavelength"][order] * 1e-4
    model, width, flux, error = (
        arrays[name][i][order]
        for name in ("flux_model", "flux_model_error", "flux_observed", "flux_error")
    )
    axis.errorbar(micron, flux, error, fmt="o", ms=4, color=style.INK, label="observed")
    axis.errorbar(micron, model, width, fmt="_", ms=9, color=style.PALETTE[0], label="posterior")
    # bands that are not observed may have any error: they do not set the range
    seen = np.concatenate([flux - error, flux + error, model, [0.0]])
    low, high = np.nanmin(seen), np.nanmax(seen)
    axis.set(xscale="log", xlabel="wavelength [µm]", ylabel="flux [µJy]")
    axis.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    axis.set_xticks([0.4, 0.6, 1, 2, 4, 8], labels=["0.4", "0.6", "1", "2", "4", "8"])
    axis.minorticks_off()


@style.figure
def histories(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Star formation against the age of the universe: median and 68% of the posterior."""
    n = len(arrays["z_peak"])
    columns = min(3, n)
    fig, axes = style.new(columns, -(-n // columns), size=(5.2 * columns, 5.2 * -(-n // columns)))
    for i, axis in enumerate(axes.ravel()[:n]):
        low, middle, high = arrays["sfr"][i]
        axis.fill_between(arrays["time"][i], low, high, color=style.PALETTE[0], alpha=0.3, lw=0)
        axis.plot(arrays["time"][i], middle, color=style.PALETTE[0])
        axis.axvline(arrays["age"][i], color=style.BAND, lw=1.2)
        axis.set(
            xlabel="age of the universe [Gyr]", ylabel=r"SFR [$M_\odot$/yr]", yscale="log",
            ylim=(max(1e-3 * float(high.max()), 1e-2), 3 * float(high.max())),
        )  # fmt: skip
        axis.set_title(f"z = {arrays['z_peak'][i]:.3f}", fontsize=13)
    for axis in axes.ravel()[n:]:
        axis.set_visible(False)
    return fig
