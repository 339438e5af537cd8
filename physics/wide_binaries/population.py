"""Simulated wide binaries as Gaia would catalogue them, with the true masses of their stars."""

import math
from typing import NamedTuple

import numpy as np
import torch

from orrery.physics.constants import KM_S_PER_AU_YR
from orrery.physics.wide_binaries import astrometry, motion, outliers, sequences
from orrery.physics.wide_binaries.sequences import Star

# Kroupa (2001, MNRAS 322, 231): slopes of dN/dm below and above the break, Msun
IMF_BREAK, IMF_SLOPES = 0.5, (-1.3, -2.3)
VELOCITY_DISPERSION = 30.0  # km/s, of systems along each axis
# of photocentres about an unresolved companion, km/s: median and dex
WOBBLE, WOBBLE_DEX = 0.2, 0.5


class Population(NamedTuple):
    """What to simulate; fractions are of stars where they are of kinds of stars, else of pairs."""

    distance: float | None = None  # pc, of all pairs; None: uniform in space to ``farthest``
    farthest: float = 400.0  # pc
    separations: tuple[float, float] = (100.0, 3162.0)  # AU, uniform in the logarithm
    white_dwarfs: float = 0.04
    giants: float = 0.02
    companions: float = 0.15  # unresolved
    chance_alignments: float = 0.03
    outliers: float = 0.0  # of the law of `outliers`
    faintest: float = 19.5  # mag, G
    alpha: tuple[float, float] = (1.0, 1.3)  # at 100 AU and from 1000 AU on
    scatter: float = 0.05  # mag, of BP - RP and M_G about the sequences
    largest_circular_mass: float | None = None  # Msun: see `models.mass_net.MassNet`


def true_alpha(log_separation: np.ndarray, alpha: tuple[float, float]) -> np.ndarray:
    """Exponent of eccentricity: linear in log10 of the separation, AU, from 100 to 1000 AU."""
    return alpha[0] + (alpha[1] - alpha[0]) * np.clip(log_separation - 2, 0, 1)


def gaia_error(g: np.ndarray) -> np.ndarray:
    """Typical error of a DR3 parallax, mas, by G; of proper motions .96 of it, mas/yr.

    Gaia's page of science performance (EDR3).
    """
    z = 10 ** (0.4 * (np.maximum(g, 13.0) - 15))
    return 1e-3 * np.sqrt(40 + 800 * z + 30 * z**2)


def simulate(n: int, population: Population, seed: int) -> dict[str, np.ndarray]:
    """``n`` pairs as columns of El-Badry, Rix & Heintz (2021), with ``mass1``, ``mass2``, Msun.

    Star 1 is the brighter. Errors are smaller than they are true, as Gaia's are.
    """
    parts: list[dict[str, np.ndarray]] = []
    while (have := sum(len(part["ra1"]) for part in parts)) < n:
        parts.append(_pairs(max(1000, n - have), population, seed + 7919 * len(parts)))
        if not len(parts[-1]["ra1"]):
            raise ValueError(f"no simulated pair is brighter than the limit: {population}")
    return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


def _pairs(n: int, population: Population, seed: int) -> dict[str, np.ndarray]:
    """Of ``n`` pairs those that would be in the catalogue."""
    random = np.random.default_rng([seed, 1])
    generator = torch.Generator().manual_seed(seed)
    star, mass, has_companion = _stars(n, population, random)
    distance = population.distance or population.farthest * random.random((n, 1)) ** (1 / 3)
    parallax = np.broadcast_to(1e3 / np.asarray(distance), (n, 1)) * np.ones((1, 2))
    low, high = np.log10(population.separations)
    log_separation = random.uniform(low, high, n)
    separation = 10**log_separation * parallax[:, 0] / 1e3  # arcsec
    total = mass.sum(1)

    alpha = torch.from_numpy(true_alpha(log_separation, population.alpha))
    u = motion.sample_motion(alpha, generator).numpy()
    is_outlier = random.random(n) < population.outliers
    u[is_outlier] = outliers.sample(int(is_outlier.sum()), random)
    w = u * np.sqrt(total)[:, None]
    to_w = np.sqrt(10**log_separation) / motion.CIRCULAR_VELOCITY  # per km/s
    wobble = WOBBLE * 10 ** (WOBBLE_DEX * random.standard_normal((n, 2))) * has_companion
    w += _isotropic(np.hypot(*wobble.T), random) * to_w[:, None]
    is_chance = random.random(n) < population.chance_alignments
    largest = math.sqrt(population.largest_circular_mass or 5.0)
    w[is_chance] = _isotropic(largest * np.sqrt(random.random(int(is_chance.sum()))), random)

    g = star.abs_g - 5 * np.log10(parallax) + 10
    velocity = w / to_w[:, None]  # km/s
    columns = _catalogue(star, g, parallax, separation, velocity, random)
    columns |= {"mass1": mass[:, 0], "mass2": mass[:, 1]}
    kept = g.max(1) < population.faintest
    if population.largest_circular_mass is not None:
        kept &= np.hypot(*w.T) < largest
    swap = kept & (g[:, 0] > g[:, 1])
    for name in list(columns):
        if name.endswith("1"):
            other = f"{name[:-1]}2"
            first, second = columns[name], columns[other]
            columns[name] = np.where(swap, second, first)
            columns[other] = np.where(swap, first, second)
    return {name: values[kept] for name, values in columns.items()}


def _stars(
    n: int, population: Population, random: np.random.Generator
) -> tuple[Star, np.ndarray, np.ndarray]:
    """Photometry, mass, Msun, and whether there is an unresolved companion, each (n, 2)."""
    first = _initial_masses(n, random)
    ratio = random.random(n)
    mass = np.stack([first, np.maximum(first * ratio, sequences.LEAST_MASS)], 1)
    star = sequences.dwarfs(mass)
    has_companion = random.random((n, 2)) < population.companions
    companion = np.maximum(mass * random.random((n, 2)), sequences.LEAST_MASS)
    together = sequences.unresolved(star, sequences.dwarfs(companion))
    star = Star(*(np.where(has_companion, a, b) for a, b in zip(together, star, strict=True)))
    mass = mass + has_companion * companion

    kind = random.random((n, 2))
    is_white = kind < population.white_dwarfs
    white_mass = np.clip(
        sequences.WHITE_DWARF_MASS + sequences.WHITE_DWARF_SPREAD * random.standard_normal((n, 2)),
        0.4,
        1.1,
    )
    colour = random.uniform(sequences.WHITE_DWARFS[0, 0], sequences.WHITE_DWARFS[-1, 0], (n, 2))
    white = sequences.white_dwarfs(white_mass, colour)
    is_giant = (kind > 1 - population.giants) & ~is_white
    is_giant[:, 1] = False
    giant_mass = np.clip(
        sequences.GIANT_MASS + sequences.GIANT_SPREAD * random.standard_normal((n, 2)), 0.8, 2.0
    )
    giant = sequences.giants(random.random((n, 2)))
    for mask, other, other_mass in ((is_white, white, white_mass), (is_giant, giant, giant_mass)):
        star = Star(*(np.where(mask, a, b) for a, b in zip(other, star, strict=True)))
        mass = np.where(mask, other_mass, mass)
        has_companion &= ~mask
    shift = population.scatter * random.standard_normal((2, n, 2))
    star = Star(star.bp_rp + shift[0], star.g_rp, star.abs_g + shift[1])
    return star, mass, has_companion


def _initial_masses(n: int, random: np.random.Generator) -> np.ndarray:
    """Kroupa's initial mass function between the ends of the dwarfs' table, (n,), Msun."""
    low, high = sequences.LEAST_MASS, sequences.LARGEST_MASS
    grid = np.geomspace(low, high, 2000)
    slope = np.where(grid < IMF_BREAK, IMF_SLOPES[0], IMF_SLOPES[1])
    cumulative = np.cumsum((grid / IMF_BREAK) ** slope * np.gradient(grid))
    cumulative = (cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0])
    return np.interp(random.random(n), cumulative, grid)


def _isotropic(speed: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Vectors of random direction, (n, 2)."""
    angle = random.uniform(0, 2 * np.pi, len(speed))
    return speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _catalogue(
    star: Star,
    g: np.ndarray,
    parallax: np.ndarray,
    separation: np.ndarray,
    velocity: np.ndarray,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Gaia's columns of both stars; ``velocity`` (n, 2), km/s, along the separation and across."""
    n = len(g)
    ra = np.repeat(random.uniform(0, 360, (n, 1)), 2, 1)
    dec = np.repeat(np.degrees(np.arcsin(random.uniform(-0.95, 0.95, (n, 1)))), 2, 1)
    angle = random.uniform(0, 2 * np.pi, n)  # of the separation, from east to north
    ra[:, 1] += separation * np.cos(angle) / 3600 / np.cos(np.radians(dec[:, 0]))
    dec[:, 1] += separation * np.sin(angle) / 3600
    system = astrometry.systemic_motion(
        VELOCITY_DISPERSION * random.standard_normal((n, 3)), ra, dec, parallax
    )
    along, across = velocity.T
    relative = np.stack(
        [
            along * np.cos(angle) - across * np.sin(angle),
            along * np.sin(angle) + across * np.cos(angle),
        ],
        1,
    )
    relative *= parallax[:, :1] / KM_S_PER_AU_YR
    motions = system
    motions[:, 1] += relative
    true_error = gaia_error(g)
    inflation = astrometry.error_inflation(g, separation)
    pm_error = 0.96 * true_error
    correlation = random.uniform(-0.4, 0.4, (n, 2))
    first, second, third = random.standard_normal((3, n, 2))
    second = correlation * first + np.sqrt(1 - correlation**2) * second
    columns = {
        "ra": ra % 360, "dec": dec, "parallax": parallax + true_error * third,
        "parallax_error": true_error / inflation,
        "pmra": motions[..., 0] + pm_error * first, "pmdec": motions[..., 1] + pm_error * second,
        "pmra_error": pm_error / inflation, "pmdec_error": pm_error / inflation,
        "pmra_pmdec_corr": correlation, "phot_g_mean_mag": g, "bp_rp": star.bp_rp,
    }  # fmt: skip
    return {f"{name}{i + 1}": values[:, i] for name, values in columns.items() for i in (0, 1)}
