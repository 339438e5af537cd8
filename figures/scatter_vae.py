"""Figures of `scatter_vae`: spectra and residuals, latent space, scatter, calibration."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from orrery.figures import style
from orrery.figures.statistics import chi2_density, chi2_quantile, equal_groups

# From hot to cool stars; its blue and orange are distinct also to the colour-blind.
STARS = LinearSegmentedColormap.from_list(
    "stars", [*(style.PALETTE[k] for k in (0, 4)), "#e3c43c", style.PALETTE[5], "#7a1f0a"]
)
CHI2 = r"$\chi^2$ per degree of freedom"
WAVELENGTH = "wavelength [nm]"
BP_RP, G = "BP $-$ RP [mag]", "$G$ [mag]"
INSIDE = {"within_68": (0.683, r"$\pm 1 \sigma$"), "within_95": (0.95, r"$\pm 1.96 \sigma$")}


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures, by name, in their order on the page.

    rows: of all stars, (n,): `chi2`, `dof`, `p_value`, `within_68`, `within_95`, `flags` and, if
        the instrument is known, `g_mag`, `bp_rp`. Of the first m `spectrum` (else
        `reconstruction`), (m, k), at `wavelength` (else samples).
    metrics: `scatter_ratio_median`, of the learned scatter to the true one.
    data: by figure. `spectra`: `observed`, `error`, `scatter`, (m, k). `latent`: `latent_mean`
        (N, d), `bp_rp`, `g_mag` (N,). `scatter`: by coefficient `learned`, `error`, `true` (0 where
        there is none). `generated`: `spectrum`, else `coefficients`, (stars, k).
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    complete = "spectra" in data and len(_complete(rows, data["spectra"]))
    if complete:
        drawn["spectra"] = partial(spectra, rows, data["spectra"])
    if "latent" in data and data["latent"]["latent_mean"].shape[1] > 1:
        drawn["latent"] = partial(latent, data["latent"])
    if "scatter" in data:
        drawn["scatter"] = partial(scatter, data["scatter"], metrics, _sample_axis(rows))
    drawn["chi2"] = partial(chi2, rows)
    if complete and _names(rows)[1] in data.get("generated", {}):
        drawn["generated"] = partial(generated, rows, data["spectra"], data["generated"])
    return drawn


@style.figure
def spectra(rows: style.Rows, data: style.Rows) -> Figure:
    """Stars from blue to red, one of them faint; neighbouring wavelengths share their errors."""
    chosen, (x, x_label) = _choose(rows, data), _axis(rows, data)
    columns = min(3, len(chosen))
    lines = len(chosen) // columns
    size, heights = (13.33, 0.9 + 3.7 * lines), (2, 1) * lines
    shared: dict[str, Any] = {"sharex": True, "sharey": "row", "height_ratios": heights}
    fig, axes = style.new(columns, 2 * lines, size=size, **shared)
    models = rows[_names(rows)[0]]
    arrays = models, data["observed"], data["error"], data["scatter"]
    peaks = np.abs(models[chosen]).max(1)
    lowest = min(-0.1, 1.1 * np.min(models[chosen] / peaks[:, None]))
    for k, (i, unit) in enumerate(zip(chosen, peaks, strict=True)):
        above, below = axes[2 * (k // columns) :, k % columns][:2]
        model, y, error, spread = (array[i] / unit for array in arrays)
        above.fill_between(x, y - error, y + error, color=style.BAND, lw=0)
        (thick,) = above.plot(x, model, c=STARS(k / max(1, len(chosen) - 1)), lw=4.5, alpha=0.8)
        (thin,) = above.plot(x, y, color=style.INK, lw=1)
        title = rf"$\chi^2/\nu$ = {rows['chi2'][i]:.2f}"
        if "bp_rp" in rows:
            g = f"$G$ {rows['g_mag'][i]:.1f}    " if "g_mag" in rows else ""
            title = f"BP$-$RP {rows['bp_rp'][i]:.2f}    {g}{title}"
        above.set_title(title, fontsize=14)
        chance = below.axhspan(-1, 1, color=style.BAND, lw=0)
        broad = below.fill_between(x, -spread / error, spread / error, fc=style.PALETTE[1], lw=0)
        below.plot(x, (y - model) / error, color=style.INK, lw=1)
        below.set(ylim=(-4.2, 4.2), yticks=(-3, 0, 3), xlim=(x[0], x[-1]))
    for above, below in zip(axes[::2, 0], axes[1::2, 0], strict=True):
        above.set(ylabel="flux / its peak", ylim=(lowest, 1.25))
        below.set_ylabel(r"residual / $\sigma$", fontsize=14)
    fig.supxlabel(x_label, fontsize=16)
    fig.align_ylabels()
    words = ("observed", "reconstruction", r"error, $\pm 1 \sigma$", "intrinsic scatter")
    fig.legend([thin, thick, chance, broad], words, loc="outside upper center", ncols=columns + 1)
    return fig


@style.figure
def latent(data: style.Rows) -> Figure:
    """Where stars lie in latent space; the rings hold 68 and 95% of the prior."""
    z = data["latent_mean"]
    pairs = list(combinations(sorted(np.argsort(-z.var(0))[:3]), 2))
    maps: dict[str, tuple[str, Any]] = {"bp_rp": (BP_RP, STARS), "g_mag": (G, style.DENSITY)}
    names = [name for name in maps if name in data] or [""]
    size = (4.3 * len(pairs) + 1, 0.2 + 4 * len(names))
    fig, axes = style.new(len(pairs), len(names), size=size, sharex="col")
    order = np.random.default_rng(0).permutation(len(z))  # else the last stars would hide the first
    low, high = np.quantile(z, (0.001, 0.999), axis=0)
    ends = np.transpose([np.minimum(low - 0.3, -2.7), np.maximum(high + 0.3, 2.7)])
    for row, name in zip(axes, names, strict=True):
        look: dict[str, Any] = {"color": style.PALETTE[0]}
        if name:
            values = data[name][order]
            look = {"c": values, "cmap": maps[name][1], "norm": style.inner(values)}
        look |= {"s": np.clip(2e4 / len(z), 5, 80), "lw": 0, "rasterized": True}
        for axis, (i, j) in zip(row, pairs, strict=True):
            points = axis.scatter(z[order, i], z[order, j], **look)
            for radius in (1.51, 2.45):  # sqrt(-2 ln(1 - 0.68)) and of 0.95
                axis.add_patch(Circle((0, 0), radius, fill=False, lw=1.2, ls="--"))
            axis.set(xlim=ends[i], ylim=ends[j], ylabel=f"latent $z_{{{j + 1}}}$")
            axis.set(xlabel=f"latent $z_{{{i + 1}}}$" if name == names[-1] else "")
            axis.locator_params(nbins=6)
        if name:
            fig.colorbar(points, ax=row, label=maps[name][0], extend="both", pad=0.01)
    return fig


@style.figure
def scatter(
    data: style.Rows,
    metrics: Mapping[str, float],
    samples: tuple[np.ndarray | None, str] | None = None,
) -> Figure:
    """Intrinsic scatter of each coefficient, median of the stars; diamonds: the true one.

    ``samples``: where those of sampled spectra are, (n,) or None, and the name of that axis.
    """
    learned, error = data["learned"], data["error"]
    n, truth = len(learned), data.get("true", np.zeros(len(learned)))
    halves = {"BP coefficient": slice(n // 2), "RP coefficient": slice(n // 2, n)}
    parts = {samples[1]: slice(n)} if samples else halves
    fig, axes = style.new(len(parts), sharey=True)
    for axis, (label, part) in zip(axes[0], parts.items(), strict=True):
        x, scattered = np.arange(len(learned[part])), truth[part] > 0
        look = {"marker": "o", "mew": 0, "lw": 1}
        if samples and samples[0] is not None:
            x, look = samples[0], {"lw": 2.5}
        for at in x[scattered]:
            axis.axvspan(at - 0.6, at + 0.6, color=style.TRUTH, alpha=0.15, lw=0)
        (line,) = axis.plot(x, error[part], color="#8a919c", drawstyle="steps-mid", lw=2.5)
        (dots,) = axis.plot(x, learned[part], color=style.PALETTE[0], **look)
        look = {"color": style.TRUTH, "mfc": "none", "ms": 14, "mew": 2.5}
        (rhombs,) = axis.plot(x[scattered], truth[part][scattered], "D", **look)
        axis.set(yscale="log", xlabel=label)
    low, high = min(*learned, *error), max(*learned, *error, *truth)
    axes[0, 0].set(ylabel="relative to the star's flux", ylim=(low / 2, high * 2))
    if "scatter_ratio_median" in metrics:
        text = f"learned / true scatter, median: {metrics['scatter_ratio_median']:.2f}"
        axes[0, -1].set_title(text, loc="right")
    words = ("learned scatter", "error of measurement", "true scatter")[: 2 + truth.any()]
    fig.legend((dots, line, rhombs)[: len(words)], words, loc="outside upper center", ncols=3)
    return fig


@style.figure
def chi2(rows: style.Rows) -> Figure:
    """Calibration: whitened residuals of all stars against their expected distribution."""
    values, dof, n = rows["chi2"], rows["dof"], len(rows["chi2"])
    fig, axes = style.new(2, 2 if "g_mag" in rows else 1)
    histogram, ranks = axes[0]
    low = min(np.quantile(values, 0.002), max(chi2_quantile(dof, -3), 0.01))
    high = max(np.quantile(values, 0.998), chi2_quantile(dof, 3))
    counts, edges = np.histogram(values, int(np.clip(n**0.5, 5, 40)), (low, high))
    x = np.linspace(low, high, 300)
    histogram.stairs(counts / n / np.diff(edges), edges, fill=True, color=style.PALETTE[0])
    known = rows["p_value"][np.isfinite(rows["p_value"])]
    expected = "expected" if len(known) else "if errors were exact"
    histogram.plot(x, chi2_density(x, dof), color=style.TRUTH, label=expected)
    histogram.set(xlabel=CHI2, ylabel="density", xlim=(low, high))
    title = f"n = {n:,}; median {np.median(values):.3f}; {n - counts.sum():,} off the plot"
    histogram.set_title(title, loc="left", fontsize=14)
    histogram.legend()
    if len(known):
        style.uniform(ranks, known, "95% of chance")
        ranks.set(xlabel=r"$p$ value of the star's $\chi^2$", ylabel="stars / expected")
    elif "bp_rp" in rows:  # of sampled spectra, whose errors are correlated
        _running(ranks, rows["bp_rp"], values)
        ranks.set(xlabel=BP_RP, ylabel=CHI2, ylim=(0, high), xlim=style.inner(rows["bp_rp"]))
        ranks.legend(loc="upper left", frameon=True, edgecolor="none")
    else:
        ranks.set_axis_off()
    if "g_mag" not in rows:
        return fig

    g, (left, right) = rows["g_mag"], axes[1]
    groups = equal_groups(g, most=20)
    middle, low, _, high = _running(left, g, values)
    for sigma, line in ((-1, "--"), (0, "-"), (1, "--")):
        left.axhline(chi2_quantile(dof, sigma), color=style.TRUTH, ls=line, lw=1.6)
    reach = 1.8 * max(0.2, *np.abs(low - 1), *np.abs(high - 1))
    left.set(xlabel=G, ylabel=CHI2, ylim=(max(0, 1 - reach), 1 + reach))
    left.legend(loc="upper left", frameon=True, edgecolor="none")
    right.axhline(0, color=style.TRUTH, lw=1.6)
    for (name, (level, text)), colour in zip(INSIDE.items(), style.PALETTE, strict=False):
        off = [100 * (rows[name][group] - level) for group in groups]
        mean, error = [v.mean() for v in off], [v.std() / len(v) ** 0.5 for v in off]
        right.errorbar(middle, mean, error, fmt="o-", color=colour, label=f"{text}: {level:.1%}")
    reach = max(5.0, 1.4 * np.abs(right.get_ylim()).max())
    right.set(xlabel=G, ylabel="residuals inside,\n$-$ nominal [%]", xlim=left.get_xlim())
    right.set_ylim(-reach, reach)
    right.legend(loc="upper center", ncols=2)
    return fig


def _running(axis: Axes, x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Draw median and 68% of ``values`` in equal groups of ``x``: (4, groups), from the middle."""
    groups = equal_groups(x, most=20)
    middle = [np.median(x[group]) for group in groups]
    low, median, high = np.transpose([np.quantile(values[k], (0.16, 0.5, 0.84)) for k in groups])
    axis.plot(x, values, ".", color=style.BAND, ms=3, rasterized=True)
    axis.fill_between(middle, low, high, color=style.PALETTE[4], alpha=0.45, lw=0)
    axis.plot(middle, median, "o-", color=style.PALETTE[0], label="median, 68%")
    return np.array([middle, low, median, high])


@style.figure
def generated(rows: style.Rows, data: style.Rows, stars: style.Rows) -> Figure:
    """Spectra drawn from the model, without noise, and observed ones, the less noisy half."""
    (x, x_label), s_n = _axis(rows, data), _signal_to_noise(data)
    complete = _complete(rows, data)
    alike = complete[
        np.argsort(_colour(data["observed"][complete]))
    ]  # the half is not to favour blue
    best = [k[np.argmax(s_n[k])] for k in np.array_split(alike, -(-len(alike) // 2))]
    sets = {"generated": stars[_names(rows)[1]], "observed": data["observed"][best]}
    norm = style.inner(np.concatenate([_colour(flux) for flux in sets.values()]))
    fig, axes = style.new(2, sharex=True, sharey=True)
    for axis, (name, flux) in zip(axes[0], sets.items(), strict=True):
        y = flux / np.abs(flux).mean(1, keepdims=True)
        lines = list(np.stack([np.broadcast_to(x, y.shape), y], 2))
        look: Any = {"array": _colour(flux), "cmap": STARS, "norm": norm, "lw": 0.9}
        drawn = axis.add_collection(LineCollection(lines, **look))
        axis.set(title=f"{len(y)} {name}", xlabel=x_label, xlim=(x[0], x[-1]))
        if name == "generated":
            axis.set(ylabel="flux / its mean", ylim=(-0.1, 1.08 * np.quantile(y.max(1), 0.99)))
    fig.colorbar(drawn, ax=axes, label=r"2.5 log$_{10}$ (red / blue flux) [mag]", extend="both")
    return fig


def _names(rows: style.Rows) -> tuple[str, str]:
    """Arrays of the model's spectra and of generated ones, comparable to observed ones."""
    if "spectrum" in rows:
        return "spectrum", "spectrum"
    return "reconstruction", "coefficients"


def _sample_axis(rows: style.Rows) -> tuple[np.ndarray | None, str] | None:
    """Where samples are, if known, and their axis; None for coefficients."""
    if "spectrum" in rows:
        return None
    return (rows["wavelength"], WAVELENGTH) if "wavelength" in rows else (None, "sample")


def _axis(rows: style.Rows, data: style.Rows) -> tuple[np.ndarray, str]:
    if "wavelength" in rows:
        return rows["wavelength"], WAVELENGTH
    return np.arange(data["observed"].shape[1]), "sample"


def _complete(rows: style.Rows, data: style.Rows) -> np.ndarray:
    """Which of the first m stars have all bands: bit 1 of flags is not set."""
    return np.flatnonzero(rows["flags"][: len(data["observed"])] & 1 == 0)


def _signal_to_noise(data: style.Rows) -> np.ndarray:
    return np.median(np.abs(data["observed"]) / data["error"], axis=1)


def _colour(flux: np.ndarray) -> np.ndarray:
    """2.5 log10 of the flux in the red half of the samples over that in the blue half."""
    blue, red = (half.sum(1) for half in np.array_split(flux, 2, axis=1))
    least = 1e-3 * np.abs(flux).sum(1)  # noise may exceed the signal
    return 2.5 * np.log10(np.maximum(red, least) / np.maximum(blue, least))


def _choose(rows: style.Rows, data: style.Rows) -> list[int]:
    """Six stars, of fewer up to three, evenly spread in colour, of high S/N but for one."""
    complete, s_n = _complete(rows, data), _signal_to_noise(data)
    colour = rows["bp_rp"] if "bp_rp" in rows else _colour(rows[_names(rows)[0]])
    n = 6 if len(complete) >= 6 else min(3, len(complete))
    chosen: list[int] = []
    low, high = np.quantile(colour[complete], (0.01, 0.99))
    for k, wish in enumerate(np.linspace(low, high, n)):
        left = np.setdiff1d(complete, chosen)
        near = left[np.argsort(np.abs(colour[left] - wish))][: max(1, len(complete) // (8 * n))]
        chosen.append(int(near[(np.argmin if k == n // 2 else np.argmax)(s_n[near])]))
    return sorted(chosen, key=lambda i: float(colour[i]))
