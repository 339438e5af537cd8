"""Posterior of a trend of an abundance ratio with metallicity: a line, or two that meet at a knee.

The model is `physics.abundances.trends`; this adds its priors, wide for galaxies of any mass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from orrery.models.abundances.sampling import Prior, from_normal, sample
from orrery.physics.abundances.trends import (
    Knee,
    Line,
    Metallicities,
    Points,
    knee_log_likelihood,
    line_log_likelihood,
)

METALLICITIES = {"mean": Prior("normal", -1.5, 0.7), "width": Prior("lognormal", 0.4, 0.2)}
LINE = {
    "height": Prior("normal", 0.2, 0.5),  # dex, at [Fe/H] = -1.5
    "slope": Prior("normal", 0.0, 0.5),
    "scatter": Prior("lognormal", 0.08, 0.3),  # dex
}
KNEE = {
    "height": Prior("normal", 0.2, 0.5),  # dex, at the knee
    "knee": Prior("normal", -1.5, 0.6),  # [Fe/H]
    "slope_below": Prior("normal", 0.0, 0.15),
    "slope_above": Prior("normal", -0.4, 0.3),
    "scatter": Prior("lognormal", 0.08, 0.3),
}


def infer_trend(
    data: Sequence[Points],
    shape: type[Line] | type[Knee],
    seed: int = 0,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 300,
) -> dict[str, Tensor]:
    """Draws (data sets, chains, draws) by name, of `Line` or of `Knee`, and of `Metallicities`."""
    priors = {**(LINE if shape is Line else KNEE), **METALLICITIES}
    names = tuple(priors)
    together, there = _stack(data)

    def target(z: Tensor) -> Tensor:
        values = from_normal(z, names, priors)
        spread = Metallicities(values.pop("mean"), values.pop("width"))
        if shape is Line:
            fit = line_log_likelihood(together, Line(**values), spread)
        else:
            fit = knee_log_likelihood(together, Knee(**values), spread)
        return torch.where(there, fit, 0.0).sum(-1) - 0.5 * z.square().sum(-1)

    device = together.x.device
    z = sample(target, len(data), len(names), seed, chains, warmup, draws, device)
    return from_normal(z, names, priors)


def _stack(data: Sequence[Points]) -> tuple[Points, Tensor]:
    """Points (data sets, 1, n), filled up with their first, and which of them there are."""
    n = max(len(points.x) for points in data)
    for i, points in enumerate(data):
        if not len(points.x):
            raise ValueError(f"data set {i} has no star with both elements and [Fe/H] measured")
    fill = [torch.arange(n).clamp_max(len(points.x) - 1) for points in data]
    stacked = (
        torch.stack([part[rows] for part, rows in zip(parts, fill, strict=True)])[:, None]
        for parts in zip(*data, strict=True)
    )
    there = torch.stack([torch.arange(n) < len(points.x) for points in data])[:, None]
    return Points(*stacked), there.to(data[0].x.device)
