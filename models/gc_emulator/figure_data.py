"""Arrays for the figure of profiles: data points over quantiles of the posterior's models.

Stars are binned for this figure only: their posterior uses no bins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.gc_emulator.posterior import PhaseSpacePosterior, cluster_of
from orrery.models.gc_emulator.selection import ARCMIN
from orrery.models.gc_emulator.sky import SkyPosterior
from orrery.physics.clusters.cluster_profiles import model_profile
from orrery.physics.clusters.cluster_stars import axes

QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)  # of the bands
STARS_PER_BIN, MAX_BINS = 25, 16
BAND_RADII, AREA_RADII = 80, 2001
_ROTATION = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # east, north to tangential
VOLUME_POWERS = {"space_density": 3, "density": 2}  # of r in the size of a bin

Arrays = dict[str, np.ndarray]


class Points(NamedTuple):
    """Data points of one profile, each array (points,)."""

    name: str
    kind: str
    r: np.ndarray
    value: np.ndarray
    down: np.ndarray  # errors to either side
    up: np.ndarray
    error: np.ndarray  # unit of the residuals


def profile_arrays(
    points: Sequence[Points], bands: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Arrays:
    """The arrays of `figures.gc_profile.profiles`.

    ``bands``: by kind of profile its radii (radii,) and `QUANTILES` of models (quantiles, radii).
    """
    arrays: Arrays = {
        key: np.concatenate([np.broadcast_to(getattr(p, key), len(p.r)) for p in points])
        for key in Points._fields
    }
    radii, quantiles = zip(*bands.values(), strict=True)
    return arrays | {
        "band_kind": np.array(list(bands)),
        "band_r": np.stack(radii),
        "band": np.stack(quantiles),
    }


@torch.no_grad()
def space_profiles(
    posterior: PhaseSpacePosterior, u: Tensor, membership: Tensor | None = None
) -> Arrays:
    """Number density, pc^-3, radial dispersion and one tangential, km/s, over radius, pc.

    ``u`` (1, draws, n_globals). ``membership`` (stars,): the weight of each star, 1 if None.
    """
    r = posterior.r2[0].sqrt()
    tangential2 = posterior.j2[0] / posterior.r2[0].clamp_min(1e-12)
    bins = _Bins(r, torch.ones_like(r) if membership is None else membership.to(r))
    points = {
        "space_density": bins.counts(4 / 3 * torch.pi * bins.edges**3),
        "sigma_r": bins.dispersion(posterior.v2[0] - tangential2, 1),
        "sigma_t": bins.dispersion(0.5 * tangential2, 2),
    }
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    r2 = bins.grid.square().expand(len(mass), -1)
    density = bins.weight.sum() / mass * cluster.density(r2)
    bands = dict(zip(points, (density, *cluster.dispersions(r2)), strict=True))
    return _binned_arrays(points, bands, bins)


@torch.no_grad()
def sky_profiles(posterior: SkyPosterior, u: Tensor, membership: Tensor | None = None) -> Arrays:
    """Number density, 1/arcmin2, and dispersions of measured velocities, over radius, arcmin.

    ``u`` (1, draws, n_globals). Dispersions of proper motions in mas/yr, along the line of sight
    in km/s. ``membership`` (stars,): the weight of each star, 1 if None. The density is corrected
    for the completeness of the list.
    """
    stars = posterior.stars
    centre, _ = posterior.centre(u)
    middle = torch.nn.functional.normalize(centre.direction.mean((0, 1)), dim=0)
    east, north, _ = axes(torch.atan2(middle[1], middle[0]), middle[2].asin())
    place = stars.direction[0] @ torch.stack([east, north], 1) / ARCMIN
    r = place.norm(dim=1)
    bins = _Bins(r, torch.ones_like(r) if membership is None else membership.to(r))
    selection = posterior.selection
    if selection is not None:
        bins.completeness = lambda r: selection.mean_completeness(middle, r)
    points = {"density": bins.counts(_area(bins))}
    if stars.pm is not None and stars.pm_error is not None:
        pm = stars.pm[0] - centre.pm.mean((0, 1))
        error2 = 0.5 * stars.pm_error[0].square().sum(1)
        for kind, axis in (("radial", place), ("tangential", place[:, [1, 0]] * _ROTATION)):
            points[kind] = bins.dispersion(((pm * axis).sum(1) / r).square() - error2, 1)
    if stars.rv is not None and stars.rv_error is not None:
        rv = (centre.velocity * middle).sum(-1).mean()
        v2 = (stars.rv[0] - rv).square() - stars.rv_error[0].square()
        points["los"] = bins.dispersion(v2, 1)
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    pc = ARCMIN * centre.distance  # of an arcmin, (draws, 1)
    projected = cluster.projected((bins.grid * pc).square())
    density = float(bins.weight.sum()) * projected.surface_density * pc.square() / mass
    if selection is not None:
        density = density / selection.log_inside(cluster, centre, mass).exp()
    dispersions = {
        kind: model_profile(kind, projected, 1e-3 * centre.distance) for kind in tuple(points)[1:]
    }
    return _binned_arrays(points, {"density": density, **dispersions}, bins)


def _area(bins: "_Bins") -> Tensor:
    """Area of the sky inside of the edges of bins, arcmin^2, weighted by completeness."""
    r = torch.linspace(0, float(bins.edges[-1]), AREA_RADII, dtype=torch.float64)
    area = torch.cumulative_trapezoid(2 * torch.pi * r * bins.completeness(r), r)
    return torch.from_numpy(np.interp(bins.edges, r[1:], area, left=0))


class _Bins:
    """Stars in radial bins of equal numbers, and a grid of radii over them."""

    def __init__(self, r: Tensor, weight: Tensor) -> None:
        self.weight = weight
        n = min(MAX_BINS, max(1, len(r) // STARS_PER_BIN))
        ordered = r.sort().values
        inner = ordered[(torch.arange(1, n) * len(r)) // n]
        self.edges = torch.cat([ordered[:1] * 0, inner, ordered[-1:]])
        self.index = torch.searchsorted(inner, r, right=True)
        self.r = self._sum(weight * r) / self._sum(weight)
        self.completeness: Callable[[Tensor], Tensor] = torch.ones_like  # of the list, at radii
        self.grid = torch.from_numpy(
            np.geomspace(0.5 * float(self.r[0]), float(ordered[-1]), BAND_RADII)
        )

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.edges) - 1).index_add_(0, self.index, values)

    def counts(self, size_within: Tensor) -> tuple[Tensor, Tensor]:
        """Density and its Poisson error; ``size_within``: area or volume inside each edge."""
        n, size = self._sum(self.weight), size_within.diff()
        return n / size, n.sqrt() / size

    def dispersion(self, v2: Tensor, components: int) -> tuple[Tensor, Tensor]:
        """Dispersion of one velocity component, and its error.

        ``v2`` (stars,): mean square of ``components`` components of each star, NaN if unknown.
        """
        weight = torch.where(v2.isfinite(), self.weight, 0.0)
        n = self._sum(weight)
        sigma = (self._sum(weight * v2.nan_to_num()) / n).clamp_min(0).sqrt()
        return sigma, sigma / (2 * components * n).sqrt()

    def effective_radii(self, model: np.ndarray, power: int) -> np.ndarray:
        """Radii where a falling model has its mean over each bin, of volume ~ r^power."""
        low, high = self.edges[:-1, None].numpy(), self.edges[1:, None].numpy()
        r = low + (high - low) * np.linspace(0.01, 1, 50)
        size = r ** (power - 1) * self.completeness(torch.from_numpy(r)).numpy()
        mean = (np.interp(r, self.grid, model) * size).sum(1) / size.sum(1)
        return np.interp(-mean, -model, self.grid)


def _binned_arrays(
    points: Mapping[str, tuple[Tensor, Tensor]], bands: Mapping[str, Tensor], bins: _Bins
) -> Arrays:
    """Of binned stars: by kind values and errors, (bins,), and models, (draws, radii)."""
    quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
    grid = bins.grid.numpy()
    of_kind = {kind: (grid, band.quantile(quantiles, 0).numpy()) for kind, band in bands.items()}
    drawn = []
    for kind, (value, error) in points.items():
        r = bins.r.numpy()
        if kind in VOLUME_POWERS:
            r = bins.effective_radii(of_kind[kind][1][2], VOLUME_POWERS[kind])
        drawn.append(Points(kind, kind, r, value.numpy(), *3 * [error.numpy()]))
    return profile_arrays(drawn, of_kind)
