"""Arrays for the figure of profiles: data points over quantiles of the posterior's models.

Stars are binned for this figure only: their posterior uses no bins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.gc_emulator.members import KMS
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


class Speeds(NamedTuple):
    """Squared velocities of stars, from which a dispersion is binned."""

    v2: Tensor  # (stars,) mean square of the components, less that of their errors; NaN: unknown
    error2: Tensor  # (stars,) mean square of the errors
    components: int


class StarProfiles(NamedTuple):
    """Stars in radial bins, and the models of posterior draws."""

    bins: "Bins"
    density: tuple[str, Tensor]  # kind; models on `bins.grid`, (draws, radii)
    speeds: dict[str, tuple[Speeds, Tensor]]  # by kind, with models of the dispersion

    def arrays(self) -> Arrays:
        """The arrays of `figures.gc_profile.profiles`."""
        kind, models = self.density
        power, bins = VOLUME_POWERS[kind], self.bins
        size = _area(bins) if power == 2 else 4 / 3 * torch.pi * bins.edges**3
        points, bands = {kind: bins.counts(size)}, {kind: models}
        for name, (speeds, dispersions) in self.speeds.items():
            points[name] = bins.dispersion(speeds.v2, speeds.components)
            bands[name] = dispersions
        return _binned_arrays(points, bands, bins)


@torch.no_grad()
def space_profiles(
    posterior: PhaseSpacePosterior, u: Tensor, membership: Tensor | None = None
) -> StarProfiles:
    """Number density, pc^-3, radial dispersion and one tangential, km/s, over radius, pc.

    ``u`` (1, draws, n_globals). ``membership`` (stars,): the weight of each star, 1 if None.
    """
    r = posterior.r2[0].sqrt()
    tangential2 = posterior.j2[0] / posterior.r2[0].clamp_min(1e-12)
    bins = Bins(r, torch.ones_like(r) if membership is None else membership.to(r))
    none = torch.zeros_like(r)
    radial = Speeds(posterior.v2[0] - tangential2, none, 1)
    tangential = Speeds(0.5 * tangential2, none, 2)
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    r2 = bins.grid.square().expand(len(mass), -1)
    density = bins.weight.sum() / mass * cluster.density(r2)
    sigma_r, sigma_t = cluster.dispersions(r2)
    speeds = {"sigma_r": (radial, sigma_r), "sigma_t": (tangential, sigma_t)}
    return StarProfiles(bins, ("space_density", density), speeds)


@torch.no_grad()
def sky_profiles(
    posterior: SkyPosterior, u: Tensor, membership: Tensor | None = None
) -> StarProfiles:
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
    bins = Bins(r, torch.ones_like(r) if membership is None else membership.to(r))
    selection = posterior.selection
    if selection is not None:
        bins.completeness = lambda r: selection.mean_completeness(middle, r)
    # the velocity of the centre in the frame of each star: it differs from star to star
    bulk = stars.frame[0] @ centre.velocity.mean((0, 1))  # (stars, 3): east, north, outwards
    speeds: dict[str, Speeds] = {}
    if stars.pm is not None and stars.pm_error is not None:
        pm = stars.pm[0] - bulk[:, :2] / (KMS * centre.distance.mean())
        error2 = 0.5 * stars.pm_error[0].square().sum(1)
        for kind, axis in (("radial", place), ("tangential", place[:, [1, 0]] * _ROTATION)):
            speeds[kind] = Speeds(((pm * axis).sum(1) / r).square() - error2, error2, 1)
    if stars.rv is not None and stars.rv_error is not None:
        error2 = stars.rv_error[0].square()
        speeds["los"] = Speeds((stars.rv[0] - bulk[:, 2]).square() - error2, error2, 1)
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    pc = ARCMIN * centre.distance  # of an arcmin, (draws, 1)
    projected = cluster.projected((bins.grid * pc).square())
    density = float(bins.weight.sum()) * projected.surface_density * pc.square() / mass
    if selection is not None:
        density = density / selection.log_inside(cluster, centre, mass).exp()
    with_models = {
        kind: (of_stars, model_profile(kind, projected, 1e-3 * centre.distance))
        for kind, of_stars in speeds.items()
    }
    return StarProfiles(bins, ("density", density), with_models)


def _area(bins: "Bins") -> Tensor:
    """Area of the sky inside of the edges of bins, arcmin^2, weighted by completeness."""
    r = torch.linspace(0, float(bins.edges[-1]), AREA_RADII, dtype=torch.float64)
    area = torch.cumulative_trapezoid(2 * torch.pi * r * bins.completeness(r), r)
    return torch.from_numpy(np.interp(bins.edges, r[1:], area, left=0))


class Bins:
    """Stars in radial bins of equal numbers, and a grid of radii over them."""

    def __init__(self, r: Tensor, weight: Tensor) -> None:
        self.weight, self.r_of_stars = weight, r
        n = min(MAX_BINS, max(1, len(r) // STARS_PER_BIN))
        ordered = r.sort().values
        inner = ordered[(torch.arange(1, n) * len(r)) // n]
        self.edges = torch.cat([ordered[:1] * 0, inner, ordered[-1:]])
        self.index = torch.searchsorted(inner, r, right=True)
        self.r = self.sum(weight * r) / self.sum(weight)
        self.completeness: Callable[[Tensor], Tensor] = torch.ones_like  # of the list, at radii
        self.grid = torch.from_numpy(
            np.geomspace(0.5 * float(self.r[0]), float(ordered[-1]), BAND_RADII)
        )

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the stars of each bin, (..., bins), of values (..., stars)."""
        total = values.new_zeros(*values.shape[:-1], len(self.edges) - 1)
        return total.index_add_(-1, self.index, values)

    def interpolated(self, models: Tensor, r: Tensor) -> Tensor:
        """Models on `grid`, (draws, radii), at ``r`` (n,); constant inside of the innermost."""
        r = r.clamp(self.grid[0], self.grid[-1])
        right = torch.searchsorted(self.grid, r).clamp(1, len(self.grid) - 1)
        x = (r / self.grid[right - 1]).log() / (self.grid[right] / self.grid[right - 1]).log()
        return (1 - x) * models[:, right - 1] + x * models[:, right]

    def at_stars(self, models: Tensor) -> Tensor:
        """The same at the radius of each star, (draws, stars)."""
        return self.interpolated(models, self.r_of_stars)

    def counts(self, size_within: Tensor) -> tuple[Tensor, Tensor]:
        """Density and its Poisson error; ``size_within``: area or volume inside each edge."""
        n, size = self.sum(self.weight), size_within.diff()
        return n / size, n.sqrt() / size

    def dispersion(self, v2: Tensor, components: int) -> tuple[Tensor, Tensor]:
        """Dispersion of one velocity component, and its error.

        ``v2`` (stars,): mean square of ``components`` components of each star, NaN if unknown.
        """
        weight = torch.where(v2.isfinite(), self.weight, 0.0)
        n = self.sum(weight)
        sigma = (self.sum(weight * v2.nan_to_num()) / n).clamp_min(0).sqrt()
        return sigma, sigma / (2 * components * n).sqrt()

    def effective_radii(self, model: np.ndarray, power: int) -> np.ndarray:
        """Radii where a falling model has its mean over each bin, of volume ~ r^power."""
        low, high = self.edges[:-1, None].numpy(), self.edges[1:, None].numpy()
        r = low + (high - low) * np.linspace(0.01, 1, 50)
        size = r ** (power - 1) * self.completeness(torch.from_numpy(r)).numpy()
        mean = (np.interp(r, self.grid, model) * size).sum(1) / size.sum(1)
        return np.interp(-mean, -model, self.grid)


def _binned_arrays(
    points: Mapping[str, tuple[Tensor, Tensor]], bands: Mapping[str, Tensor], bins: Bins
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
