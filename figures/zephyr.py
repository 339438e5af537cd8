"""Figures of `zephyr`: accuracy and calibration of photometric redshifts, share of each source.

A row is an object. The residual is dz = (z_phot - z_true) / (1 + z_true), z_phot the median of
p(z); an outlier has |dz| > 0.15; NMAD = 1.4826 median|dz - median(dz)| (Brammer et al. 2008).
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from orrery.figures import style
from orrery.figures.statistics import binomial_band, bootstrap_error, equal_groups, running_mean
from orrery.physics.galaxies.local_calibration import calibration_cells
from orrery.physics.galaxies.redshift_scores import OUTLIER, nmad, outlier_fraction

TRUE = "true redshift"  # a spectroscopic one, or that of a simulation
MAGNITUDE = "reference magnitude (AB)"
RESIDUAL = r"$\Delta z\,/\,(1+z)$"

PREDICTED = ("z_median", "z_q16", "z_q84", "mag_ref")  # columns, of every row
SCORED = ("z_true", "pit", "crps", "nll")  # of rows whose redshift is known


def draw(
    rows: style.Rows, metrics: Mapping[str, float], data: style.FigureData = style.NO_DATA
) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures, by name, in the order of the report.

    rows: one array per column. Of shape (n,): `z_median`, `z_q16`, `z_q84`, `mag_ref` (AB) and
        `responsibility_<source>` (sums to one over sources); where true redshifts are known also
        `z_true` (NaN for objects without one), `pit`, `crps` and `nll`. For the first m objects
        `pz`, shape (m, n_grid), on `z_grid`, shape (n_grid,).
    metrics: with `label_sigma_<source>`, `label_catastrophic_<source>` and the same keys with
        `_true` there is a figure of label noise.
    data: `examples` holds the contribution of each source to `pz`, of its shape, by source;
        `real_galaxies` those of `models.zephyr.real_galaxies`, (galaxies,) each, of a model of
        simulated ones.

    Without a finite `z_true` only the figures that need no truth are drawn, and without a finite
    `mag_ref` nothing is drawn against magnitude. Each figure's caption is `figure.get_label()`.
    """
    densities = data.get("examples", {})
    sources = list(densities)
    _check(rows, densities)
    scored = _scored_rows(rows)
    figures: dict[str, Callable[[], Figure]] = {}
    if len(scored["z_median"]):
        figures["redshifts"] = partial(redshifts, scored)
        figures["calibration"] = partial(calibration, scored)
        mag = scored["mag_ref"]
        has_cells = np.isfinite(mag).any() and np.ptp(calibration_cells(mag, scored["z_median"]))
        if "tarp" in scored and has_cells:
            figures["local_calibration"] = partial(local_calibration, scored)
    if densities:
        figures["examples"] = partial(examples, rows, densities)
    if np.isfinite(rows["mag_ref"]).any():
        figures["responsibilities"] = partial(responsibilities, rows, sources)
    if len(scored["z_median"]):
        figures["binned"] = partial(binned, scored)
    if any(f"label_sigma_{source}_true" in metrics for source in sources):
        figures["label_noise"] = partial(label_noise, metrics, sources)
    if real := data.get("real_galaxies"):
        figures["real_galaxies"] = partial(real_galaxies, real)
    return figures


@style.figure
def redshifts(rows: style.Rows) -> Figure:
    """Photometric against true redshift; dashed: |dz| = 0.15, beyond it outliers."""
    z, z_phot = rows["z_true"], rows["z_median"]
    dz = _residual(rows)
    top = _end_of_axis(np.maximum(z, z_phot))
    hidden = int(np.sum((z > top) | (z_phot > top)))

    fig, axes = style.new(1, 2, size=(9.5, 10.5), sharex=True, height_ratios=(3, 1))
    main, below = axes[:, 0]
    counts = style.density(main, z, z_phot, (0, top, 0, top), (70, 40))
    residuals = style.density(below, z, dz, (0, top, -0.25, 0.25), (70, 13))
    if counts is not None and residuals is not None:
        residuals.set_clim(counts.get_clim())
        bar = fig.colorbar(counts, ax=axes, label="objects per cell", shrink=0.6, format="%g")
        two_decades = counts.get_clim()[1] < 200  # at most, which need ticks in between
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if two_decades else (1,)))

    line = np.array([0.0, top])
    main.plot(line, line, color=style.TRUTH)
    for sign in (-1, 1):
        main.plot(line, line + sign * OUTLIER * (1 + line), "--", color=style.TRUTH, lw=1.6)
        below.axhline(sign * OUTLIER, ls="--", color=style.TRUTH, lw=1.6)
    below.axhline(0, color=style.TRUTH)
    main.set(xlim=(0, top), ylim=(0, top), ylabel="photometric redshift (median)")
    below.set(ylim=(-0.25, 0.25), xlabel=TRUE, ylabel=RESIDUAL)

    title = [
        f"{len(z):,} objects" if len(z) != 1 else "1 object",
        rf"$\sigma_\mathrm{{NMAD}}$ = {nmad(dz):.4f}",
        f"bias = {np.median(dz):+.4f}".replace("-", "\N{MINUS SIGN}"),
        f"outliers = {outlier_fraction(dz):.2%}",
    ]
    if hidden:
        title.append(f"{hidden:,} off the plot")
    main.set_title("    ".join(title), loc="left", fontsize=14)  # above: it covers no object
    return fig


@style.figure
def real_galaxies(real: style.Rows) -> Figure:
    """Real galaxies of COSMOS2020, on which neither model was trained; dashed: |dz| = 0.15."""
    z = real["z_true"]
    panels = (
        ("this model, of simulated galaxies", real["z_median"]),
        ("checkpoint=zephyr_cosmos, of real galaxies", real["z_median_of_real"]),
    )
    fig, axes = style.new(2, sharey=True)
    line = np.array([0.0, 1.05 * max(z.max(), real["z_median"].max())])
    for axis, (name, z_phot) in zip(axes[0], panels, strict=True):
        axis.plot(z, z_phot, "o", color=style.PALETTE[0], alpha=0.5, ms=6, mew=0)
        axis.plot(line, line, color=style.TRUTH, lw=1.6)
        for sign in (-1, 1):
            axis.plot(line, line + sign * OUTLIER * (1 + line), "--", color=style.TRUTH, lw=1.6)
        dz = (z_phot - z) / (1 + z)
        numbers = (
            rf"$\sigma_\mathrm{{NMAD}}$ = {nmad(dz):.3f}    outliers = {outlier_fraction(dz):.0%}"
        )
        axis.set_title(f"{name}\n{numbers}", loc="left")
        axis.set(xlim=line, ylim=line, xlabel=f"redshift of {len(z)} real galaxies", aspect="equal")
    axes[0, 0].set(ylabel="photometric redshift (median)")
    return fig


@style.figure
def calibration(rows: style.Rows) -> Figure:
    """Calibration of p(z): PIT and central intervals; grey holds 95% of calibrated samples."""
    pit = rows["pit"]
    n = len(pit)
    fig, axes = style.new(2, 2, height_ratios=(2.2, 1), sharex="col")

    style.uniform(axes[0, 0], pit, "calibrated p(z), 95%")
    axes[0, 0].set(ylabel="objects / uniform expectation")

    levels = np.linspace(0, 1, 41)
    coverage = np.array([np.mean(2 * np.abs(pit - 0.5) <= level) for level in levels])
    cumulative = np.array([np.mean(pit <= level) for level in levels])
    band = np.array(binomial_band(n, levels)) / n
    curve = axes[0, 1]
    curve.fill_between(levels, *band, color=style.BAND)
    curve.plot(levels, levels, color=style.TRUTH, lw=1.6)
    curve.plot(levels, coverage, color=style.PALETTE[0])
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel="empirical coverage")
    for level in (0.68, 0.95):
        covered = np.mean(2 * np.abs(pit - 0.5) <= level)
        text = f"{level:.0%} interval holds {covered:.1%}"
        curve.text(0.97, 0.18 - 0.1 * (level > 0.8), text, ha="right", transform=curve.transAxes)

    for axis, fraction in ((axes[1, 0], cumulative), (axes[1, 1], coverage)):
        axis.fill_between(levels, *(band - levels), color=style.BAND)
        axis.axhline(0, color=style.TRUTH, lw=1.6)
        axis.plot(levels, fraction - levels, color=style.PALETTE[0])
        axis.yaxis.set_major_locator(_ticks(4))
    axes[1, 0].set(xlabel="PIT", ylabel="cumulative\n$-$ uniform")
    axes[1, 1].set(
        xlabel="nominal coverage of the central interval", ylabel="empirical\n$-$ nominal"
    )
    fig.align_ylabels()
    return fig


@style.figure
def local_calibration(rows: style.Rows) -> Figure:
    """Calibration by magnitude (across) and redshift (colours), and TARP; grey: 95% if calibrated.

    Cells hold equal numbers of objects; TARP is the coverage of intervals about random points.
    """
    pit, tarp, mag = rows["pit"], rows["tarp"], rows["mag_ref"]
    cells = calibration_cells(mag, rows["z_median"])
    groups = int(np.sqrt(cells.max() + 1))
    fig, axes = style.new(3, 1, size=(17, 6))
    inside = (np.abs(pit - 0.5) < 0.34).astype(float)
    smallest = np.bincount(cells).min()
    panels = (
        (pit, 0.5, 12**-0.5, "mean PIT"),
        (inside, 0.68, (0.68 * 0.32) ** 0.5, "in the central 68% interval"),
    )
    for axis, (values, expected, scatter, ylabel) in zip(axes[0], panels, strict=False):
        reach = 1.96 * scatter / np.sqrt(smallest)
        axis.axhspan(expected - reach, expected + reach, color=style.BAND, lw=0)
        axis.axhline(expected, color=style.TRUTH, lw=1.6)
        for j in range(groups):
            mine = [cells == groups * i + j for i in range(groups)]
            z = np.median(rows["z_median"][np.any(mine, axis=0)])
            x = [np.median(mag[cell]) for cell in mine]
            y = [np.mean(values[cell]) for cell in mine]
            colour = style.PALETTE[j % len(style.PALETTE)]
            axis.plot(x, y, "o-", color=colour, label=f"z about {z:.2f}")
        axis.set(xlabel=MAGNITUDE, ylabel=ylabel)
        axis.xaxis.set_major_locator(_ticks(4))
        axis.yaxis.set_major_locator(_ticks(5))
    levels = np.linspace(0, 1, 41)
    band = np.array(binomial_band(len(tarp), levels)) / len(tarp)
    axis = axes[0, 2]
    axis.fill_between(levels, *(band - levels), color=style.BAND)
    axis.axhline(0, color=style.TRUTH, lw=1.6)
    covered = np.array([np.mean(tarp <= level) for level in levels])
    axis.plot(levels, covered - levels, color=style.PALETTE[0])
    axis.set(xlabel="nominal coverage about random points", ylabel="empirical $-$ nominal")
    axis.yaxis.set_major_locator(_ticks(5))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=groups)
    return fig


@style.figure
def examples(rows: style.Rows, densities: Mapping[str, np.ndarray]) -> Figure:
    """Examples of p(z) from bright to faint, stacked by the contribution of each source."""
    colour = style.colours(densities)
    chosen = _choose_examples(rows)
    fig, axes = style.new(min(4, len(chosen)), -(-len(chosen) // 4))
    grid = rows["z_grid"]
    for axis in axes.flat[len(chosen) :]:
        axis.remove()
    for axis, (i, remark) in zip(axes.flat, chosen.items(), strict=False):
        peak = rows["pz"][i].max()
        scaled = [density[i] / peak for density in densities.values()]
        axis.stackplot(grid, scaled, colors=colour.values(), lw=0)
        axis.plot(grid, rows["pz"][i] / peak, color=style.INK, lw=1.2)
        inside = grid[rows["pz"][i] > 0.004 * peak]
        ends = [inside[0], inside[-1]]
        if _has_truth(rows, i):
            z = rows["z_true"][i]
            axis.axvline(z, color=style.INK, ls=(0, (4, 2)), lw=1.8)
            ends.append(z)
        pad = 0.06 * (max(ends) - min(ends)) + 0.01
        axis.set(xlim=(max(0, min(ends) - pad), max(ends) + pad), ylim=(0, 1.08), yticks=[])
        axis.grid(False)
        axis.xaxis.set_major_locator(_ticks(4))
        mag = rows["mag_ref"][i]
        title = [f"{mag:.1f} mag"] if np.isfinite(mag) else []
        axis.set_title(", ".join(title + remark), fontsize=14)
    fig.supxlabel("redshift", fontsize=16)
    fig.supylabel("p(z), scaled to its peak", fontsize=16)
    handles: list[Patch | Line2D] = [
        Patch(color=colour[source], label=style.label(source)) for source in densities
    ]
    if any(_has_truth(rows, i) for i in chosen):
        handles.append(Line2D([], [], color=style.INK, ls=(0, (4, 2)), lw=1.8, label=TRUE))
    fig.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
    return fig


@style.figure
def responsibilities(rows: style.Rows, sources: list[str]) -> Figure:
    """Share of each source of redshifts in p(z) against magnitude: running mean, stacked."""
    observed = np.isfinite(rows["mag_ref"])
    order = np.argsort(rows["mag_ref"][observed])
    mag = rows["mag_ref"][observed][order]
    shares = np.array([rows[f"responsibility_{source}"][observed][order] for source in sources])

    fig, axes = style.new(1, 2, sharex=True, height_ratios=(1, 4))
    above, main = axes[:, 0]
    middle, mean = running_mean(mag, shares)
    low, high = middle[0] - 0.01, middle[-1] + 0.01  # with one object, still a range
    above.hist(mag, np.linspace(low, high, 41), color=style.BAND)
    above.set(ylabel="objects")
    above.yaxis.set_major_locator(_ticks(2))

    middle = np.r_[low, middle, high]
    mean = np.c_[mean[:, :1], mean, mean[:, -1:]]
    colour = style.colours(sources)
    names = [style.label(source) for source in sources]
    main.stackplot(middle, mean, labels=names, colors=colour.values(), edgecolor="white", lw=0.8)
    main.set(xlim=(low, high), ylim=(0, 1), xlabel=MAGNITUDE, ylabel="mean responsibility")
    main.grid(False)
    fig.legend(loc="outside upper center", ncols=min(6, len(sources)))
    fig.align_ylabels()
    return fig


@style.figure
def binned(rows: style.Rows) -> Figure:
    """Bias, scatter, outliers and CRPS in equal-number bins, bootstrap errors; dashed: overall."""
    dz = _residual(rows)
    measures: list[tuple[str, np.ndarray, Callable[[np.ndarray], float]]] = [
        (f"bias: median {RESIDUAL}", dz, lambda values: float(np.median(values))),
        (r"scatter $\sigma_\mathrm{NMAD}$", dz, nmad),
        ("outlier fraction", dz, outlier_fraction),
        ("mean CRPS (redshift)", rows["crps"], lambda values: float(np.mean(values))),
    ]
    against = [(TRUE, rows["z_true"]), (MAGNITUDE, rows["mag_ref"])]
    against = [(xlabel, x) for xlabel, x in against if np.isfinite(x).any()]
    fig, axes = style.new(len(measures), len(against), size=(16, 4.5 * len(against)))
    for row, (xlabel, x) in zip(axes, against, strict=True):
        groups = equal_groups(x)
        middle = np.array([np.median(x[group]) for group in groups])
        reach = np.array([(x[group].min(), x[group].max()) for group in groups]).T
        bars = np.abs(reach - middle)
        for axis, (ylabel, values, measure) in zip(row, measures, strict=True):
            binned = np.array([measure(values[group]) for group in groups])
            errors = [bootstrap_error(measure, values[group]) for group in groups]
            points = axis.errorbar(
                middle, binned, errors, bars, fmt="o", color=style.PALETTE[0], lw=1.6
            )
            overall = axis.axhline(measure(values), color=style.TRUTH, ls="--", lw=1.6)
            axis.set(xlabel=xlabel, ylabel=ylabel)
            axis.xaxis.set_major_locator(_ticks(4))
            axis.yaxis.set_major_locator(_ticks(5))
    for axis in axes[:, 2]:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    names = ["in bins of equal number (bootstrap errors)", "all objects"]
    fig.legend([points, overall], names, loc="outside upper center", ncols=2)
    return fig


@style.figure
def label_noise(metrics: Mapping[str, float], sources: list[str]) -> Figure:
    """Label noise, recovered and true; a scatter far below the width of p(z) cannot be measured."""
    panels = (
        ("label_sigma", r"scatter of the labels, $\sigma_z\,/\,(1+z)$"),
        ("label_catastrophic", "fraction of catastrophic labels"),
    )
    # the clean source has none to recover
    sources = [source for source in sources if f"label_sigma_{source}" in metrics]
    size = (style.SLIDE[0], min(2.5 + 0.9 * len(sources), style.SLIDE[1]))
    fig, axes = style.new(len(panels), 1, size=size, sharey=True)
    colour = style.colours(sources)
    for axis, (name, xlabel) in zip(axes[0], panels, strict=True):
        values = []
        for y, source in enumerate(sources):
            if not {f"{name}_{source}", f"{name}_{source}_true"} <= metrics.keys():
                continue
            recovered, true = metrics[f"{name}_{source}"], metrics[f"{name}_{source}_true"]
            axis.plot(true, y, "|", ms=26, mew=3, color=style.INK)
            axis.plot(recovered, y, "o", ms=13, color=colour[source])
            text = f"{recovered:.3f} (true {true:.3f})"
            axis.text(1.02, y, text, va="center", transform=axis.get_yaxis_transform())
            values += [recovered, true]
        axis.margins(x=0.12)
        if name == "label_sigma" and min(values, default=0) > 0:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
        else:
            axis.set_xlim(left=0)
        axis.set(xlabel=xlabel, ylim=(len(sources) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(sources)), [style.label(source) for source in sources])
    axes[0, 0].set(ylabel="source of redshifts")
    handles = [
        Line2D([], [], ls="", marker="o", ms=13, color=style.INK, label="recovered"),
        Line2D([], [], ls="", marker="|", ms=22, mew=3, color=style.INK, label="true"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return fig


def _check(rows: style.Rows, densities: Mapping[str, np.ndarray]) -> None:
    if not densities:
        raise ValueError("data['examples'] has no source: add the contribution of each to pz")
    scalars = [*PREDICTED, *(f"responsibility_{source}" for source in densities)]
    scalars += SCORED if "z_true" in rows else ()
    if missing := [name for name in (*scalars, "pz", "z_grid") if name not in rows]:
        raise ValueError(f"rows lack {', '.join(missing)}; the columns given are {', '.join(rows)}")
    n = len(rows["z_median"])
    if wrong := {name: len(rows[name]) for name in scalars if len(rows[name]) != n}:
        raise ValueError(f"columns must be as long as z_median ({n}); these are not: {wrong}")
    shape = (len(rows["pz"]), len(rows["z_grid"]))
    for name, density in {"pz": rows["pz"], **densities}.items():
        if np.shape(density) != shape:
            raise ValueError(f"{name} has shape {np.shape(density)}, expected {shape}")
    if not len(rows["pz"]):
        raise ValueError("nothing to draw: rows need at least one pz")
    if (bad := np.flatnonzero(~(rows["pz"].max(axis=1) > 0))).size:
        raise ValueError(
            f"pz must be finite and positive somewhere on z_grid; not so in rows {bad}"
        )


def _scored_rows(rows: style.Rows) -> dict[str, np.ndarray]:
    """The scalar columns of the objects whose redshift is known."""
    names = (*PREDICTED, *SCORED, *(("tarp",) if "tarp" in rows else ()))
    if "z_true" not in rows:
        return {name: np.empty(0) for name in names}
    known = np.isfinite(rows["z_true"])
    return {name: np.asarray(rows[name])[known] for name in names}


def _ticks(most: int) -> MaxNLocator:
    """About `most` ticks at round steps; a small number, because slides are read from afar."""
    return MaxNLocator(most, steps=(1, 2, 5, 10), min_n_ticks=2)


def _has_truth(rows: style.Rows, i: int) -> bool:
    return "z_true" in rows and bool(np.isfinite(rows["z_true"][i]))


def _residual(rows: style.Rows) -> np.ndarray:
    return (rows["z_median"] - rows["z_true"]) / (1 + rows["z_true"])


def _end_of_axis(x: np.ndarray) -> float:
    """Upper end of an axis from 0: beyond all of ``x``, or of 99.5% if the rest are far out."""
    bulk, last = np.quantile(x, 0.995, method="higher"), np.max(x)
    return float(1.05 * max(last if last < 1.3 * bulk else bulk, 0.05))


def _choose_examples(rows: style.Rows, wanted: int = 12) -> dict[int, list[str]]:
    """Row -> remarks of up to `wanted` examples, bright to faint: narrow and wide ones.

    Two have a remark: the most evenly double-peaked p(z), and the one of the least p(z_true).
    """
    pz = rows["pz"]
    if len(pz) <= wanted:
        chosen: dict[int, list[str]] = {i: [] for i in range(len(pz))}
    else:
        width = (rows["z_q84"] - rows["z_q16"])[: len(pz)]
        mag = rows["mag_ref"][: len(pz)]
        double = np.array([_second_peak(row) for row in pz])
        chosen = {int(np.argmax(double)): ["double-peaked"]} if double.max() > 0.1 else {}
        if "z_true" in rows:
            nll = np.where(np.isfinite(rows["z_true"]), rows["nll"], -np.inf)[: len(pz)]
            if np.isfinite(nll).any():
                chosen.setdefault(int(np.argmax(nll)), []).append("poorest of these")
        others = np.setdiff1d(np.argsort(mag), list(chosen), assume_unique=True)
        each, more = divmod(wanted - len(chosen), 5)
        for k, group in enumerate(np.array_split(others, 5)):
            by_width = group[np.argsort(width[group])]
            places = np.linspace(0.1, 0.9, each + (k < more)) * (len(group) - 1)
            chosen |= {i: [] for i in by_width[places.astype(int)].tolist()}
    faint_last = np.nan_to_num(rows["mag_ref"], nan=np.inf)
    return dict(sorted(chosen.items(), key=lambda item: faint_last[item[0]]))


def _second_peak(pz: np.ndarray) -> float:
    """Height of the second peak above the valley between it and the first, over the first."""
    peaks = 1 + np.flatnonzero((pz[1:-1] > pz[:-2]) & (pz[1:-1] >= pz[2:]))
    if len(peaks) < 2:
        return 0.0
    second, first = peaks[np.argsort(pz[peaks])[-2:]]
    valley = pz[min(first, second) : max(first, second)].min()
    return float((pz[second] - valley) / pz[first])
