"""From what was measured of a star to draws of its position and velocity, with weights."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.physics.milky_way.frames import galactocentric

FASTEST = 800.0  # km/s: an unknown radial velocity lies between plus and minus this
NEAREST, FARTHEST = 0.05, 200.0  # kpc, of an unknown distance
DISTANCES = 256  # of the grid on which a distance is drawn from a parallax


class Draws(NamedTuple):
    """Draws of stars that agree with the measurements, (batch, draws) or (batch, draws, 3)."""

    x: Tensor  # kpc, Galactocentric
    v: Tensor  # km/s
    distance: Tensor  # kpc, from the Sun
    log_weight: Tensor  # of each draw: likelihood times volume of phase space over its density


@functools.cache
def uniform_points(n: int) -> Tensor:
    """``n`` points of a scrambled Sobol sequence in four dimensions, (n, 4), float64."""
    engine = torch.quasirandom.SobolEngine(4, scramble=True, seed=0)
    return engine.draw(n, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)


def phase_space_draws(batch: Batch, n: int) -> Draws:
    """``n`` draws of each star: distance, proper motion and radial velocity within their errors.

    The likelihood of the data under a density of phase space f(x, v) is the mean of the weight
    times f over the draws, up to a constant of the star: d^3x d^3v = K D^4 cos(dec) per unit of
    what is observed, of which D^4 varies. An unknown velocity is drawn evenly, an unknown distance
    evenly in its logarithm.
    """
    u = uniform_points(n).to(batch["ra"].device)
    normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
    distance, log_weight = _distances(batch, u[:, 0], normal[:, 0])
    rho = batch["pmra_pmdec_corr"][:, None]
    across = rho * normal[:, 1] + (1 - rho.square()).clamp_min(0).sqrt() * normal[:, 2]
    pmra = batch["pmra"][:, None] + batch["pmra_error"][:, None] * normal[:, 1]
    pmdec = batch["pmdec"][:, None] + batch["pmdec_error"][:, None] * across
    measured = batch["radial_velocity"][:, None]
    v_los = torch.where(
        measured.isfinite(),
        measured + batch["radial_velocity_error"][:, None] * normal[:, 3],
        FASTEST * (2 * u[:, 3] - 1),
    )
    ra, dec = (batch[name][:, None].expand_as(v_los) for name in ("ra", "dec"))
    x, v = galactocentric(ra, dec, distance, pmra, pmdec, v_los)
    return Draws(x, v, distance, log_weight + 4 * distance.log())


def _distances(batch: Batch, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Distances, kpc, and ln of likelihood over the density of the draws, (batch, draws)."""
    known = batch["distance"].isfinite()
    drawn = batch["distance"][:, None] + batch["distance_error"][:, None] * normal
    log_weight = torch.where(drawn > 0, 0.0, -torch.inf).to(drawn)  # an error of 100% and more
    if bool(known.all()):
        return drawn.clamp_min(NEAREST / 10), log_weight
    grid = torch.linspace(math.log(NEAREST), math.log(FARTHEST), DISTANCES).to(drawn)
    parallax, error = (batch[name][:, None] for name in ("parallax", "parallax_error"))
    z = torch.nan_to_num((parallax - torch.exp(-grid)) / error)
    density = torch.softmax(-0.5 * z.square(), 1)  # evenly in ln distance where it is not known
    cumulative = torch.cat([torch.zeros_like(density[:, :1]), density.cumsum(1)], 1)
    cumulative = cumulative / cumulative[:, -1:]
    level = uniform.expand(len(density), -1).contiguous()
    cell = torch.searchsorted(cumulative, level, right=True).clamp(1, DISTANCES) - 1
    low, high = cumulative.gather(1, cell), cumulative.gather(1, cell + 1)
    inside = (level - low) / (high - low).clamp_min(1e-300)
    step = grid[1] - grid[0]
    from_parallax = torch.exp(grid[0] + step * (cell + inside - 0.5))
    # drawn in proportion to likelihood and evenly in ln D: the weight is the volume, D
    chosen = known[:, None]
    return (
        torch.where(chosen, drawn.clamp_min(NEAREST / 10), from_parallax),
        torch.where(chosen, log_weight, from_parallax.log()),
    )
