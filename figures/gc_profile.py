"""Profiles of a cluster, and of the models of its posterior."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orrery.figures import style

# kinds of profiles that share a panel, and the label of its axis
PANELS = {
    ("density",): r"number density $\Sigma$ [arcmin$^{-2}$]",
    ("los",): r"$\sigma_\mathrm{los}$ [km s$^{-1}$]",
    ("radial", "tangential", "total"): r"$\sigma_\mathrm{pm}$ [mas yr$^{-1}$]",
    ("space_density",): r"number density $n$ [pc$^{-3}$]",
    ("sigma_r", "sigma_t"): r"$\sigma_r$, $\sigma_t$ [km s$^{-1}$]",
}
COUNTS = (("density",), ("space_density",))
LABELS = {
    "density": "stars",
    "space_density": "stars",
    "sigma_r": r"$\sigma_r$",
    "sigma_t": r"$\sigma_t$",
}
MARKERS = {"tangential": "^", "sigma_t": "^", "total": "s"}
WIDE, NARROW = style.PALETTE[4], style.PALETTE[0]


@style.figure
def profiles(data: style.Rows, metrics: Mapping[str, float]) -> Figure:
    """Profiles over the posterior: median model, where 68 and 95% of models lie, residuals.

    data: of all points, each (points,): the `name` of the profile and its `kind`; `r`, arcmin or
        pc; `value`; its errors `down` and `up`; `error`, the unit of the residuals, which has the
        extra error in it. Of each kind `band_kind` (kinds,): radii `band_r` (kinds, radii) and
        `band` (kinds, 5, radii), quantiles of the models. If there is one: `extra_error` (1,).
    metrics: `chi2_<name>` of the best model, if data are binned.
    """
    kinds = dict(zip(data["name"].tolist(), data["kind"].tolist(), strict=True))
    panels = {k: label for k, label in PANELS.items() if set(k) & set(kinds.values())}
    fig, axes = style.new(len(panels), 2, size=(16, 8.2), sharex="col", height_ratios=(3, 1))
    for (upper, lower), (wanted, label) in zip(axes.T, panels.items(), strict=True):
        names = [name for name, kind in kinds.items() if kind in wanted]
        _band(upper, data, next(kind for kind in wanted if kind in kinds.values()))
        for name, colour in _colours(names, kinds).items():
            _points(upper, lower, data, name, kinds[name], colour)
        lower.axhspan(-1, 1, color=style.BAND, alpha=0.6, lw=0)
        lower.axhline(0, color=NARROW, lw=1.5)
        values = data["value"][np.isin(data["name"], names)]
        if wanted == ("density",) and "extra_error" in data:
            extra = data["extra_error"][0]
            if extra > values[values > 0].min():
                upper.axhline(extra, ls="--", lw=1.4, color=style.TRUTH, label="extra error $s$")
        if all(f"chi2_{name}" in metrics for name in names):
            chi2 = sum(metrics[f"chi2_{name}"] for name in names)
            upper.set_title(rf"best $\chi^2$ = {chi2:.0f} for {len(values)} points", fontsize=14)
        upper.set(ylabel=label, xscale="log", yscale="log")
        in_space = wanted[0] in ("space_density", "sigma_r")
        xlabel = "radius $r$ [pc]" if in_space else "projected radius $R$ [arcmin]"
        lower.set(xlabel=xlabel, ylim=_residual_limits(lower))
        _limits(upper, values, wanted in COUNTS)
        upper.legend(loc="lower left", fontsize=12)
    axes[1, 0].set_ylabel("residual [errors]")
    fig.align_ylabels(axes[:, 0])
    handles = [
        Line2D([], [], color=NARROW, label="median model"),
        Patch(color=NARROW, alpha=0.5, label="68%"),
        Patch(color=WIDE, alpha=0.35, label="95% of the posterior's models"),
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=3)
    return fig


def _band_of(data: style.Rows, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Radii (radii,) and quantiles (5, radii) of the models of a kind."""
    (i,) = np.flatnonzero(data["band_kind"] == kind)
    return data["band_r"][i], data["band"][i]


def _band(axis: Axes, data: style.Rows, kind: str) -> None:
    r, (lowest, low, median, high, highest) = _band_of(data, kind)
    axis.fill_between(r, lowest, highest, color=WIDE, alpha=0.35, lw=0)
    axis.fill_between(r, low, high, color=NARROW, alpha=0.5, lw=0)
    axis.plot(r, median, color=NARROW, zorder=3)


def _colours(names: list[str], kinds: Mapping[str, str]) -> dict[str, str]:
    """A colour for each publication: the components of one proper motion share it."""
    dark = (style.INK, style.PALETTE[5], style.PALETTE[2], style.PALETTE[3], style.PALETTE[1])
    sources = list(dict.fromkeys(_source(name, kinds[name]) for name in names))
    return {name: dark[sources.index(_source(name, kinds[name])) % len(dark)] for name in names}


def _source(name: str, kind: str) -> str:
    """The publication of a data set: ``GEDR3`` of ``proper_motion_GEDR3_R``."""
    for start in ("number_density", "velocity_dispersion", "proper_motion"):
        name = name.removeprefix(start)
    if kind in ("radial", "tangential", "total"):
        name = name.rpartition("_")[0]
    return style.label(name) or "data"


def _points(upper: Axes, lower: Axes, data: style.Rows, name: str, kind: str, colour: str) -> None:
    points = data["name"] == name
    r, value, down, up, error = (
        data[column][points] for column in ("r", "value", "down", "up", "error")
    )
    component = f", {kind}" if kind in ("radial", "tangential", "total") else ""
    marks: Any = {
        "fmt": MARKERS.get(kind, "o"),
        "color": colour,
        "ms": 5,
        "elinewidth": 1,
        "mew": 0,
    }
    positive = value > 0
    label = LABELS.get(name) or _source(name, kind) + component
    if (hidden := int((~positive).sum())) > 0:
        label += f" ({hidden} below 0 not shown)"
    upper.errorbar(
        r[positive],
        value[positive],
        (np.minimum(down, 0.99 * np.abs(value))[positive], up[positive]),
        label=label,
        **marks,
    )
    grid, band = _band_of(data, kind)
    model = np.interp(np.log(r.clip(1e-9)), np.log(grid), band[2])
    lower.plot(r, (value - model) / error, MARKERS.get(kind, "o"), color=colour, ms=5, mew=0)


def _residual_limits(axis: Axes) -> tuple[float, float]:
    """Symmetric, and wide enough for all points."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.get_lines()])
    top = 1.15 * max(3.0, float(np.abs(values).max()))
    return -top, top


def _limits(axis: Axes, values: np.ndarray, counts: bool) -> None:
    """Of the data: models fall to zero at their edge."""
    low, high = values[values > 0].min(), values.max()
    axis.set_ylim(low / (2 if counts else 1.25), high * (2 if counts else 1.15))
    if not counts:  # less than a decade: plain numbers
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:.1g}")
