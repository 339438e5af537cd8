"""A synthetic sky of dust about the Sun, and stars behind it, to test maps on.

ln of the density is a Gaussian process of Matern covariance, here by random Fourier features
(Rahimi & Recht 2007), independent of the methods that make maps; compact clouds are added. The sky
is given at the voxels of a grid: it is constant within a shell, and between the centres of pixels
it is interpolated. Not in it: the Galactic disc, the Local Bubble, stars that extinction hides,
errors of extinction that depend on colour.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr_grid import Grid

FEATURES = 2000
PARALLAX_ERRORS = (0.05, 0.15)  # mas, of bright and faint stars, half each: Gaia DR3 at G 15 and 18
CLOUD_RADII = (25.0, 50.0)  # pc
CLOUD_DISTANCES = (120.0, 700.0)  # pc
CLOUD_PEAKS = (1.5, 2.5)  # of ln density above the surroundings: 4 to 12 times as dense
CLOUD_HEIGHT = 60.0  # pc, above or below the plane


class Stars(NamedTuple):
    """A catalogue of stars and their truth, (n,) or (n, 3), float64."""

    direction: Tensor  # unit vectors, Galactic
    parallax: Tensor  # mas, the mean of its posterior rather than a measurement
    parallax_error: Tensor
    extinction: Tensor  # with noise
    extinction_error: Tensor
    distance: Tensor  # the true one, pc
    true_extinction: Tensor


def density(
    grid: Grid,
    mean: float,
    amplitude: float,
    scale: float,
    clouds: int,
    generator: torch.Generator,
) -> Tensor:
    """Extinction per pc in the voxels of ``grid``, (pixels, shells).

    ``mean`` and ``amplitude`` of its logarithm, ``scale`` of the Matern-3/2 covariance, pc.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(clouds, generator=generator, dtype=torch.float64)

    # the spectrum of a Matern process of nu = 3/2 is Student's t of 3 degrees of freedom
    chi2 = normal(FEATURES, 3).square().sum(1, keepdim=True)
    wavenumbers = normal(FEATURES, 3) / scale * (3 / chi2).sqrt()
    phase = 2 * math.pi * torch.rand(FEATURES, generator=generator, dtype=torch.float64)
    position = grid.positions.flatten(0, 1)
    s = torch.cat([(part @ wavenumbers.T + phase).cos().sum(1) for part in position.split(20_000)])
    s = s * math.sqrt(2 / FEATURES)

    angle, height = uniform(0, 2 * math.pi), uniform(-CLOUD_HEIGHT, CLOUD_HEIGHT)
    distance, radius = uniform(*CLOUD_DISTANCES), uniform(*CLOUD_RADII)
    peak = uniform(*CLOUD_PEAKS)
    centre = torch.stack([distance * angle.cos(), distance * angle.sin(), height], 1)
    radii = torch.cdist(position, centre) / radius
    compact = (peak * torch.exp(-0.5 * radii.square())).sum(1)
    return torch.exp(mean + amplitude * s + compact).view(grid.shape)


def stars(
    grid: Grid, rho: Tensor, n: int, min_snr: float, sigma: float, generator: torch.Generator
) -> Stars:
    """``n`` stars, of parallaxes uniform in the volume of the grid, cut at ``min_snr``.

    The true inverse distance is normal about the parallax: a catalogue's parallax is the mean of a
    posterior. ``sigma``: error of the extinctions, E.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    direction = torch.nn.functional.normalize(normal(n, 3), dim=1)
    nearest, farthest = grid.boundaries[0], grid.boundaries[-1]
    parallax = 1e3 / (nearest**3 + uniform() * (farthest**3 - nearest**3)) ** (1 / 3)
    bright, faint = PARALLAX_ERRORS
    error = torch.where(uniform() < 0.5, bright, faint)
    true = parallax + error * normal(n)
    kept = (parallax > min_snr * error) & (true > 0)
    direction, parallax, error, true = (x[kept] for x in (direction, parallax, error, true))
    distance = 1e3 / true
    pixels, weights = healpix.bilinear(grid.nside, direction)
    lengths = (distance[:, None] - grid.boundaries[:-1]).clamp_min(0)
    lengths = torch.minimum(lengths, grid.widths)
    extinction = sum(
        w * (rho[p] * lengths).sum(1) for p, w in zip(pixels.T, weights.T, strict=True)
    )
    noise = sigma * normal(n)[kept]
    return Stars(direction, parallax, error, extinction + noise, torch.full_like(noise, sigma),
                 distance, extinction)  # fmt: skip
