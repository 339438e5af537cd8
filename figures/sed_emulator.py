"""Figures of `sed_emulator`: how well it emulates, and how well galaxies are fitted with it."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orrery.figures import style

TEXT = {
    "zred": "redshift",
    "log_stellar_mass": r"$\log_{10} M_\star/M_\odot$",
    "log_sfr": r"$\log_{10}$ SFR [$M_\odot$/yr]",
    "mass_weighted_age": "mass-weighted age [Gyr]",
    "logzsol": r"$\log_{10} Z/Z_\odot$",
    "dust2": r"$\hat\tau_2$ of diffuse dust",
}
DEMONSTRATOR = "analytic populations: a demonstrator"


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures which the data allow, by name.

    data: arrays by figure, see `models.sed_emulator.figure_data`.
    """
    kinds = {
        "errors": errors,
        "correlation": correlation,
        "recovered": recovered,
        "seds": seds,
    }
    return {name: partial(kind, data[name]) for name, kind in kinds.items() if name in data}


def _say_population(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """Name the demonstrator wherever it was used."""
    if str(arrays["population"]) == "analytic":
        axis.set_title(DEMONSTRATOR, fontsize=12, loc="right", color=style.INK)


@style.figure
def errors(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Size of the emulator's error in each band, at three levels."""
    fig, axes = style.new(size=(12, 6))
    axis = axes[0, 0]
    place = np.arange(len(arrays["bands"]))
    for i, level in reversed(list(enumerate(arrays["levels"]))):
        axis.bar(place, arrays["error"][i], color=style.PALETTE[i], label=f"{100 * level:g}%")
    axis.set(yscale="log", xlabel="band", ylabel="|emulated − exact| [mag]")
    axis.set_xticks(place, labels=arrays["bands"].tolist(), rotation=60, ha="right")
    axis.legend(title="of galaxies within", ncols=3)
    axis.set_ylim(top=3 * float(arrays["error"].max()))
    _say_population(axis, arrays)
    return fig


@style.figure
def correlation(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Correlation of the emulator's errors between bands."""
    fig, axes = style.new(size=(9.5, 8))
    axis = axes[0, 0]
    image = axis.imshow(arrays["correlation"], cmap="RdBu_r", vmin=-1, vmax=1)
    place = np.arange(len(arrays["bands"]))
    axis.set_xticks(place, labels=arrays["bands"].tolist(), rotation=60, ha="right", fontsize=11)
    axis.set_yticks(place, labels=arrays["bands"].tolist(), fontsize=11)
    axis.set(xlabel="band", ylabel="band")
    axis.grid(False)
    _say_population(axis, arrays)
    fig.colorbar(image, ax=axis, label="correlation of errors")
    return fig


@style.figure
def recovered(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Parameters of mock galaxies, fitted against true, with 68% intervals."""
    names = [name for name in TEXT if name in arrays]
    columns = min(3, len(names))
    fig, axes = style.new(columns, -(-len(names) // columns), size=(14, 9))
    for axis, name in zip(axes.ravel(), names, strict=False):
        true, middle = arrays[f"{name}_true"], arrays[name]
        low, high = arrays[f"{name}_q16"], arrays[f"{name}_q84"]
        ends = np.percentile(true[np.isfinite(true)], [0.5, 99.5])
        margin = 0.05 * (ends[1] - ends[0])
        ends = ends[0] - margin, ends[1] + margin
        few = slice(0, 300)
        axis.vlines(true[few], low[few], high[few], color=style.PALETTE[0], alpha=0.2, lw=0.8)
        axis.plot(true, middle, ".", ms=2, color=style.PALETTE[0], alpha=0.6, rasterized=True)
        axis.plot(ends, ends, color=style.TRUTH, ls="--", lw=1.2)
        axis.set(xlabel=f"true {TEXT[name]}", ylabel="fitted", xlim=ends, ylim=ends)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    _say_population(axes[0, columns - 1], arrays)
    return fig


@style.figure
def seds(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Photometry of galaxies and the fluxes of their posteriors."""
    n = len(arrays["zred"])
    columns = min(2, n)
    fig, axes = style.new(columns, -(-n // columns), size=(14, 9))
    order = np.argsort(arrays["wavelength"])
    micron = arrays["wavelength"][order] * 1e-4
    for i, axis in enumerate(axes.ravel()[:n]):
        model, width, flux, error = (
            arrays[name][i][order]
            for name in ("flux_model", "flux_model_error", "flux_observed", "flux_error")
        )
        axis.fill_between(
            micron, model - width, model + width, color=style.PALETTE[0], alpha=0.3, lw=0
        )
        axis.plot(micron, model, color=style.PALETTE[0], lw=1.2, label="posterior")
        axis.errorbar(micron, flux, error, fmt="o", ms=4, color=style.TRUTH, label="observed")
        axis.set(xscale="log", xlabel="wavelength [µm]", ylabel="flux [µJy]")
        axis.set_xticks([0.4, 0.6, 1, 2, 4], labels=["0.4", "0.6", "1", "2", "4"])
        axis.minorticks_off()
        axis.annotate(
            f"z = {arrays['zred'][i]:.2f}", (0.97, 0.06), xycoords="axes fraction", ha="right"
        )
    axes[0, 0].legend(loc="upper left")
    for axis in axes.ravel()[n:]:
        axis.set_visible(False)
    _say_population(axes[0, columns - 1], arrays)
    return fig
