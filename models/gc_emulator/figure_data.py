"""A star list in bins beside the models of its posterior: only to be looked at.

The posterior itself knows no bins. What stands here has the form of
`models.gc_emulator.goodness_of_fit`'s: of each profile `<name>_r`, `_value`, `_down`, `_up` and
`_error`, and of each kind `<kind>_r` and `<kind>_band`, quantiles of the models.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from orrery.models.gc_emulator.goodness_of_fit import QUANTILES
from orrery.models.gc_emulator.posterior import Stars, cluster_of
from orrery.models.gc_emulator.selection import ARCMIN
from orrery.models.gc_emulator.sky import Sky
from orrery.physics.clusters.cluster_profiles import observed
from orrery.physics.clusters.cluster_projection import Projected
from orrery.physics.clusters.cluster_stars import axes

PER_BIN, MOST_BINS = 25, 16
GRID, RADII = 80, 2001  # radii of the bands, and of areas
_TURNED = torch.tensor([-1.0, 1.0], dtype=torch.float64)
POWERS = {"space_density": 3, "density": 2}  # of r in the size of a bin

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def in_space(posterior: Stars, u: Tensor) -> Arrays:
    """Number density, pc^-3, radial dispersion and one tangential, km/s, over radius, pc.

    ``u`` (1, draws, n_globals).
    """
    r = posterior.r2[0].sqrt()
    tangential2 = posterior.j2[0] / posterior.r2[0].clamp_min(1e-12)
    bins = _Bins(r, torch.ones_like(r))
    points = {
        "space_density": bins.counts(4 / 3 * torch.pi * bins.edges**3),
        "sigma_r": bins.dispersion(posterior.v2[0] - tangential2, 1),
        "sigma_t": bins.dispersion(0.5 * tangential2, 2),
    }
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    r2 = bins.grid.square().expand(len(mass), -1)
    density = len(r) / mass * cluster.density(r2)
    bands = dict(zip(points, (density, *cluster.dispersions(r2)), strict=True))
    return _shown(points, bands, bins)


@torch.no_grad()
def on_the_sky(posterior: Sky, u: Tensor, member: Tensor | None = None) -> Arrays:
    """Number density, 1/arcmin2, and dispersions of what is measured of velocities, over arcmin.

    Of proper motions in mas/yr, along the line of sight in km/s. ``member`` (stars,): the weight
    of each star, 1 if None. The density is that of a complete list.
    """
    stars = posterior.stars
    centre, _ = posterior._centre(u)
    middle = torch.nn.functional.normalize(centre.direction.mean((0, 1)), dim=0)
    east, north, _ = axes(torch.atan2(middle[1], middle[0]), middle[2].asin())
    place = stars.direction[0] @ torch.stack([east, north], 1) / ARCMIN
    r = place.norm(dim=1)
    bins = _Bins(r, torch.ones_like(r) if member is None else member.to(r))
    chosen = posterior.selection
    if chosen is not None:
        bins.share = lambda r: chosen.share(middle, r)
    points = {"density": bins.counts(_area(bins))}
    if stars.pm is not None and stars.pm_error is not None:
        pm = stars.pm[0] - centre.pm.mean((0, 1))
        error2 = 0.5 * stars.pm_error[0].square().sum(1)
        for kind, axis in (("radial", place), ("tangential", place[:, [1, 0]] * _TURNED)):
            points[kind] = bins.dispersion(((pm * axis).sum(1) / r).square() - error2, 1)
    if stars.rv is not None and stars.rv_error is not None:
        rv = (centre.velocity * middle).sum(-1).mean()
        v2 = (stars.rv[0] - rv).square() - stars.rv_error[0].square()
        points["los"] = bins.dispersion(v2, 1)
    cluster, _ = cluster_of(posterior.emulator, u)
    mass = 10 ** posterior.named(u)["log10_mass"].view(-1, 1)
    pc = ARCMIN * centre.distance  # of an arcmin, (draws, 1)
    seen = Projected(*cluster.projected((bins.grid * pc).square()))
    density = float(bins.weight.sum()) * seen.surface_density * pc.square() / mass
    if chosen is not None:
        density = density / chosen.log_inside(cluster, centre, mass).exp()
    moving = {kind: observed(kind, seen, 1e-3 * centre.distance) for kind in tuple(points)[1:]}
    return _shown(points, {"density": density, **moving}, bins)


def _area(bins: "_Bins") -> Tensor:
    """Of the sky inside of the edges of bins, arcmin^2, as much of it as is in the list."""
    r = torch.linspace(0, float(bins.edges[-1]), RADII, dtype=torch.float64)
    area = torch.cumulative_trapezoid(2 * torch.pi * r * bins.share(r), r)
    return torch.from_numpy(np.interp(bins.edges, r[1:], area, left=0))


class _Bins:
    """Stars in bins of as many each; a grid of radii over them."""

    def __init__(self, r: Tensor, weight: Tensor) -> None:
        self.weight = weight
        n = min(MOST_BINS, max(1, len(r) // PER_BIN))
        ordered = r.sort().values
        inner = ordered[(torch.arange(1, n) * len(r)) // n]
        self.edges = torch.cat([ordered[:1] * 0, inner, ordered[-1:]])
        self.index = torch.searchsorted(inner, r, right=True)
        self.r = self._sum(weight * r) / self._sum(weight)
        # of radii: how many of the stars there are in the list
        self.share: Callable[[Tensor], Tensor] = lambda r: torch.ones_like(r)
        self.grid = torch.from_numpy(np.geomspace(0.5 * float(self.r[0]), float(ordered[-1]), GRID))

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.edges) - 1).index_add_(0, self.index, values)

    def counts(self, size_within: Tensor) -> tuple[Tensor, Tensor]:
        """Density and its Poisson error; ``size_within``: area or volume inside of the edges."""
        n, size = self._sum(self.weight), size_within.diff()
        return n / size, n.sqrt() / size

    def dispersion(self, v2: Tensor, components: int) -> tuple[Tensor, Tensor]:
        """Root mean square of one component and its error; ``v2``: of so many the mean, or NaN."""
        weight = torch.where(v2.isfinite(), self.weight, 0.0)
        n = self._sum(weight)
        sigma = (self._sum(weight * v2.nan_to_num()) / n).clamp_min(0).sqrt()
        return sigma, sigma / (2 * components * n).sqrt()

    def typical(self, model: np.ndarray, power: int) -> np.ndarray:
        """Radii where a falling model has its mean over each bin, of volume ~ r^power."""
        low, high = self.edges[:-1, None].numpy(), self.edges[1:, None].numpy()
        r = low + (high - low) * np.linspace(0.01, 1, 50)
        size = r ** (power - 1) * self.share(torch.from_numpy(r)).numpy()
        mean = (np.interp(r, self.grid, model) * size).sum(1) / size.sum(1)
        return np.interp(-mean, -model, self.grid)


def _shown(
    points: Mapping[str, tuple[Tensor, Tensor]], bands: Mapping[str, Tensor], bins: _Bins
) -> Arrays:
    kinds = np.array(list(points))
    shown = {"profiles": kinds, "kinds": kinds}
    quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
    for kind, (value, error) in points.items():
        shown |= {f"{kind}_r": bins.r.numpy(), f"{kind}_value": value.numpy()}
        band = bands[kind].quantile(quantiles, 0).numpy()
        if kind in POWERS:
            shown[f"{kind}_r"] = bins.typical(band[2], POWERS[kind])
        shown |= {f"{kind}_{what}": error.numpy() for what in ("down", "up", "error")}
        shown[f"{kind}_grid"] = bins.grid.numpy()
        shown[f"{kind}_band"] = band
    return shown
