"""Relative motion of the two stars of a wide binary, projected on the sky.

The mass-scaled velocity of a pair is the vector u = v sqrt(s / G M): v the relative velocity and s
the separation, both projected, M the total mass. Its components are along the separation and
perpendicular to it. Orbits have random orientations and phases, semi-major axes with p(a) ~ 1/a,
so that the distribution of u does not depend on s, and eccentricities with p(e) = (1 + alpha)
e^alpha: alpha is 0 for a uniform, 1 for a thermal distribution. |u| < sqrt 2 for bound orbits.

Of a pair one observes w = v sqrt(s / G Msun) = u sqrt(M / Msun), so that w gives the mass.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

U_MAX = math.sqrt(2)
# sqrt(G Msun / AU), km/s: from the solar mass parameter and the AU of the IAU
CIRCULAR_VELOCITY = 29.784691829677

# exponents of eccentricity at which densities are tabulated; between them a cubic interpolates
ALPHA_NODES = (-0.4, 0.15, 1.05, 1.9)
# ln of total masses, Msun, at which likelihoods are tabulated
LOG_MASS_START, LOG_MASS_END, N_LOG_MASS = math.log(0.05), math.log(30.0), 48

CELL = 0.02  # of u, in which orbits are counted
ORBITS = 2**22
NOISES = (0.03, *(0.042 * 1.25**i for i in range(22)))  # standard deviations of u; to 4.5
SMALLEST_NOISE = NOISES[0]
N_POSITIONS = 72  # along each axis
NOISES_BEYOND = 5.0  # errors beyond sqrt 2 to which the table reaches
CHUNK = 1024  # pairs, of the working memory
QUADRATURE = 5  # nodes of Gauss & Hermite


def thermal_density(u: Tensor) -> Tensor:
    """p(|u|) of a thermal distribution of eccentricities, any shape; 0 outside 0 to sqrt 2.

    3 u [arccos z + z sqrt(1 - z^2) - 2 z arccosh(1/z)], z = u^2 / 2: its mean of u^2 is pi / 8 and
    its median .5491.
    """
    z = (0.5 * u.square()).clamp(1e-12, 1)
    p = 3 * u * (z.arccos() + z * (1 - z.square()).sqrt() - 2 * z * (1 / z).arccosh())
    return torch.where((u > 0) & (u < U_MAX), p, torch.zeros_like(u))


class Orbits(NamedTuple):
    """Where stars are on their orbits: each (n,)."""

    eccentricity: Tensor
    anomaly: Tensor  # eccentric, rad
    cos_inclination: Tensor  # of the separation to the line of sight
    azimuth: Tensor  # of the tangential velocity about the separation, rad


def projected_motion(orbits: Orbits) -> Tensor:
    """The vector u, along the separation and perpendicular to it, (n, 2).

    With r = a y and y = 1 - e cos E, the radial velocity is e sin E / y and the tangential one
    sqrt(1 - e^2) / y, in units of sqrt(G M / a); the projected separation is r sin(theta).
    """
    e = orbits.eccentricity
    y = 1 - e * orbits.anomaly.cos()
    radial = e * orbits.anomaly.sin() / y
    tangential = (1 - e.square()).sqrt() / y
    cos_theta = orbits.cos_inclination
    sin_theta = (1 - cos_theta.square()).sqrt()
    parallel = radial * sin_theta + tangential * orbits.azimuth.cos() * cos_theta
    across = tangential * orbits.azimuth.sin()
    return (y * sin_theta).sqrt()[:, None] * torch.stack([parallel, across], 1)


def sample_motion(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of the vector u, (n, 2), float64, for exponents ``alpha`` (n,) of eccentricities."""
    n = len(alpha)
    u = torch.rand(4, n, generator=generator, dtype=torch.float64)
    eccentricity = u[0] ** (1 / (1 + alpha.double()))
    mean_anomaly = 2 * math.pi * u[1]
    anomaly = eccentric_anomaly(mean_anomaly, eccentricity)
    return projected_motion(Orbits(eccentricity, anomaly, 2 * u[2] - 1, 2 * math.pi * u[3]))


def eccentric_anomaly(mean_anomaly: Tensor, eccentricity: Tensor) -> Tensor:
    """E of E - e sin E = M, by Newton's method from M + e sin M / (1 - sin(M + e) + sin M)."""
    sin = mean_anomaly.sin()
    anomaly = mean_anomaly + eccentricity * sin / (1 - (mean_anomaly + eccentricity).sin() + sin)
    for _ in range(20):
        error = anomaly - eccentricity * anomaly.sin() - mean_anomaly
        anomaly = anomaly - error / (1 - eccentricity * anomaly.cos()).clamp_min(1e-6)
    return anomaly


def alpha_weights(alpha: Tensor) -> Tensor:
    """Weights of the densities at `ALPHA_NODES` for ``alpha`` (...): (..., 4), of sum 1.

    Lagrange's cubic through the nodes; a density is (1 + alpha) e^alpha, which it follows within
    2% for eccentricities above .1.
    """
    nodes, weights = ALPHA_NODES, []
    for i, node in enumerate(nodes):
        factors = [(alpha - other) / (node - other) for j, other in enumerate(nodes) if j != i]
        weights.append(math.prod(factors[1:], start=factors[0]))
    return torch.stack(weights, -1)


@functools.lru_cache(maxsize=1)
def _cell_masses() -> Tensor:
    """Probability of each cell of (|u_parallel|, |u_across|) at `ALPHA_NODES`, (cells, cells, 4).

    From a quasi-random sequence of orbits.
    """
    sobol = torch.quasirandom.SobolEngine(4, scramble=True, seed=0)
    side = math.ceil(U_MAX / CELL)
    masses = torch.zeros(side * side, len(ALPHA_NODES), dtype=torch.float64)
    chunk = 2**16  # of a small process: its temporaries take 50 MB
    for _ in range(ORBITS // chunk):
        x = sobol.draw(chunk, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        e, anomaly = x[:, 0], math.pi * x[:, 1]
        u = projected_motion(Orbits(e, anomaly, 2 * x[:, 2] - 1, math.pi * x[:, 3]))
        time = 1 - e * anomaly.cos()  # spent at this anomaly
        cell = (u.abs() / CELL).long().clamp_max(side - 1)
        weights = torch.stack([(1 + a) * e**a * time for a in ALPHA_NODES], 1)
        masses.index_add_(0, cell[:, 0] * side + cell[:, 1], weights)
    return (masses / masses.sum(0)).view(side, side, -1)


@functools.lru_cache(maxsize=1)
def bound_table() -> tuple[Tensor, Tensor]:
    """P(|u| < x) at `ALPHA_NODES`: x (n,), and probabilities (n, 4)."""
    masses = _cell_masses()
    centre = (torch.arange(len(masses), dtype=torch.float64) + 0.5) * CELL
    radius = torch.hypot(centre[:, None], centre).flatten()
    order = radius.argsort()
    cumulative = masses.flatten(0, 1)[order].cumsum(0)
    x = torch.linspace(0, 1.5, 76, dtype=torch.float64)
    index = torch.searchsorted(radius[order], x)
    padded = torch.cat([torch.zeros(1, cumulative.shape[1], dtype=torch.float64), cumulative])
    return x, padded[index]


@functools.lru_cache(maxsize=1)
def _density_table() -> Tensor:
    """Density of u plus isotropic noise, (noises + 1, positions, positions, 4), float32.

    First for no noise, then for each of `NOISES`. Positions are those of `_reach`, from 0 to 1, and
    the density is per unit of them.
    """
    masses = _cell_masses()
    centre = (torch.arange(len(masses), dtype=torch.float64) + 0.5) * CELL
    place = torch.linspace(0, 1, N_POSITIONS, dtype=torch.float64)

    def smoothed(noise: float, x: Tensor) -> Tensor:
        # cells are as wide as they are; linear interpolation between positions will add a little
        step = float(x[1] - x[0])
        width = math.sqrt(noise**2 + CELL**2 / 12 - step**2 / 6)
        # a quarter of the plane holds all orbits: each coordinate with both signs
        kernel = sum(
            torch.exp(-0.5 * ((x[:, None] - sign * centre) / width) ** 2) for sign in (-1, 1)
        ) / (2 * width * math.sqrt(2 * math.pi))
        return torch.einsum("ai,ijk,bj->abk", kernel, masses, kernel)

    # without noise: what smoothing by two widths extrapolates to
    x = place * _reach(torch.zeros(()))
    none = 2 * smoothed(SMALLEST_NOISE, x) - smoothed(SMALLEST_NOISE * math.sqrt(2), x)
    tables = [none.clamp_min(0) * float(_reach(torch.zeros(()))) ** 2]
    for noise in NOISES:
        reach = float(_reach(torch.tensor(noise)))
        tables.append(smoothed(noise, place * reach) * reach**2)
    return torch.stack(tables).float()


def _reach(noise: Tensor) -> Tensor:
    """The |u| to which the density is tabulated."""
    return U_MAX + NOISES_BEYOND * noise


def noisy_density(u: Tensor, noise: Tensor) -> Tensor:
    """Density of u plus isotropic Gaussian noise, at `ALPHA_NODES`: (..., 4), float32.

    ``u`` (..., 2), of any signs, and ``noise`` (...), the standard deviation of each component.
    """
    table = _density_table()
    nodes = torch.tensor((0.0, *NOISES))
    largest = nodes[-1]
    # of more noise the orbit does not matter: a Gaussian of the same width
    excess = (noise / largest).clamp_min(1)
    noise, u = noise / excess, u / excess[..., None]
    high = torch.searchsorted(nodes, noise.contiguous()).clamp(1, len(nodes) - 1)
    below, above = nodes[high - 1], nodes[high]
    share = (noise.square() - below.square()) / (above.square() - below.square())
    n, rows, weights = N_POSITIONS, [], []
    for index, node, weight in ((high - 1, below, 1 - share), (high, above, share)):
        reach = _reach(node)
        position = u.abs() / reach[..., None] * (n - 1)
        inside = (position < n - 1).all(-1)
        cell = position.long().clamp_max(n - 2)
        part = position - cell
        corner = (index * n + cell[..., 0]) * n + cell[..., 1]
        scale = weight * inside / reach.square()
        for dx in (0, 1):
            wx = scale * (part[..., 0] if dx else 1 - part[..., 0])
            for dy in (0, 1):
                rows.append(corner + dx * n + dy)
                weights.append(wx * (part[..., 1] if dy else 1 - part[..., 1]))
    result = embedding_bag(
        torch.stack(rows, -1).view(-1, len(rows)),
        table.view(-1, table.shape[-1]),
        per_sample_weights=torch.stack(weights, -1).view(-1, len(weights)),
        mode="sum",
    ).view(*noise.shape, -1)
    return result / excess.square()[..., None]


def log_masses() -> Tensor:
    """ln of the total masses, Msun, of `likelihood`, (n_mass,)."""
    return torch.linspace(LOG_MASS_START, LOG_MASS_END, N_LOG_MASS)


def likelihood(motion: Tensor, covariance: Tensor, directed: bool = True) -> Tensor:
    """p(w | M, alpha) of bound pairs: (n, n_mass, 4), at `log_masses` and `ALPHA_NODES`.

    ``motion`` w (n, 2), along the separation and perpendicular to it, with its ``covariance``
    (n, 2, 2). Not ``directed``: the direction of the separation is unknown, and averaged over.
    """
    if not directed:
        angles = torch.arange(8) * (math.pi / 8)
        parts = [likelihood(*_rotated(motion, covariance, float(angle))) for angle in angles]
        return torch.stack(parts).mean(0)
    chunks = zip(motion.split(CHUNK), covariance.split(CHUNK), strict=True)
    return torch.cat([_likelihood(*chunk) for chunk in chunks])


def _likelihood(motion: Tensor, covariance: Tensor) -> Tensor:
    variances, axes = torch.linalg.eigh(covariance.double())
    noise = variances[:, 0].clamp_min(0).sqrt().float()
    # what the noise has more along its major axis, by quadrature
    extra = (variances[:, 1] - variances[:, 0]).clamp_min(0).sqrt()
    direction = (axes[:, :, 1] * extra[:, None]).float()
    root_mass = (0.5 * log_masses()).exp()
    result = torch.zeros(len(motion), len(root_mass), len(ALPHA_NODES))
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE)
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
        shifted = (motion.float() + node * direction)[:, None] / root_mass[:, None]
        result += weight * noisy_density(shifted, noise[:, None] / root_mass)
    return result / root_mass.square()[:, None]


def _rotated(motion: Tensor, covariance: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, -s], [s, c]], dtype=motion.dtype)
    return motion @ rotation.T, rotation @ covariance @ rotation.T
