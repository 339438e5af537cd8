"""Simulated dwarf galaxies and streams: tracks of one-zone models, scatter, noise, limits.

The density of true abundances is a mixture of Gaussians about points of the tracks, so that the
likelihood of the stars under the truth is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.chemical_evolution.one_zone import Galaxy, tracks

ELEMENTS = ("Fe", "C", "Na", "Mg", "Si", "Ca", "Ti", "Ni", "Ba", "Eu")
LIMITED = frozenset(("C", "N", "O", "Na", "Si", "Zn", "Ba", "La", "Eu"))  # lines that are weak
NEUTRON_CAPTURE = frozenset(("Sr", "Y", "Zr", "Ba", "La", "Eu"))
N_GALAXIES, POINTS = 12, 40  # galaxies, a third of them streams; points of each track
LOWEST_IRON = -3.8  # [Fe/H] of the most metal-poor point
# Intrinsic scatter, dex: of the metallicity, of all neutron-capture elements, of each element
MIXING, CAPTURE, OWN = 0.08, 0.2, 0.05
CAUSES = ("dteff", "dlogg", "dvt", "dmh")
RESPONSE = 0.05  # dex, a typical change of an abundance for one standard deviation of a cause
ERRORS = (0.05, 0.2)  # dex, of measurements


class TrueDensity(NamedTuple):
    """Gaussians (K) over k elements, as `models.abundances.mixture.Mixture`; float64."""

    log_weight: Tensor  # (K,)
    mean: Tensor  # (K, k), [X/H]
    factors: Tensor  # (K, k, 2)
    variance: Tensor  # (K, k)


def galaxies(seed: int) -> Galaxy:
    """`N_GALAXIES` dwarfs, from faint ones that formed stars for .5 Gyr to one like Fornax."""
    random = np.random.default_rng([seed, 26])

    def log_uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(np.exp(random.uniform(np.log(low), np.log(high), N_GALAXIES)))

    return Galaxy(
        efficiency=log_uniform(0.1, 2.0),
        loading=log_uniform(3, 60),
        inflow_time=log_uniform(0.2, 2.0),
        duration=log_uniform(0.7, 8.0),
        r_prompt=log_uniform(0.2, 1.0),
        r_delayed=log_uniform(0.3, 4.0),
    )


def true_density(elements: Sequence[str], seed: int) -> TrueDensity:
    """Of the stars of all galaxies, each as likely."""
    track = tracks(galaxies(seed), tuple(elements), points=256)
    iron = tracks(galaxies(seed), ("Fe",), points=256).abundances[..., 0]
    points = []
    for formed, abundances, fe in zip(track.mass_formed, track.abundances, iron, strict=True):
        formed = formed * (fe > LOWEST_IRON)
        share = ((formed.cumsum(0) - formed / 2) / formed.sum()).numpy()
        at = (np.arange(POINTS) + 0.5) / POINTS
        points.append(np.stack([np.interp(at, share, x.numpy()) for x in abundances.T], 1))
    mean = torch.from_numpy(np.concatenate(points))
    capture = torch.tensor([x in NEUTRON_CAPTURE for x in elements])
    factors = torch.stack([torch.full((len(elements),), MIXING), CAPTURE * capture], 1).double()
    return TrueDensity(
        torch.full((len(mean),), -float(np.log(len(mean))), dtype=torch.float64),
        mean,
        factors.expand(len(mean), -1, -1),
        torch.full_like(mean, OWN**2),
    )


def scattered_stars(
    track: np.ndarray, elements: Sequence[str], random: np.random.Generator
) -> np.ndarray:
    """(n, k) true [X/H] of stars at points of tracks (n, k), with the intrinsic scatter."""
    capture = CAPTURE * np.array([x in NEUTRON_CAPTURE for x in elements])
    n, k = track.shape
    common = MIXING * random.standard_normal((n, 1)) + capture * random.standard_normal((n, 1))
    return np.asarray(track + common + OWN * random.standard_normal((n, k)))


def simulated_stars(
    elements: Sequence[str],
    n: int,
    missing: float,
    limited: float,
    seed: int,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Canonical columns of ``n`` stars, with ``true_{x}_h``.

    ``missing``: share of abundances, but iron's, that are not measured; ``limited``: share that are
    upper limits, of elements of `LIMITED`. A reading that is below what the spectrum can show is
    replaced by that limit, whose significance is that of the reading.
    """
    density = true_density(elements, seed)
    k = len(elements)
    component = random.integers(0, len(density.mean), n)
    true = scattered_stars(density.mean.numpy()[component], elements, random)

    error = random.uniform(*ERRORS, (n, 1)) * random.uniform(0.7, 1.3, (n, k))
    pattern = RESPONSE * np.random.default_rng([seed, 27]).standard_normal((k, len(CAUSES)))
    response = pattern * random.uniform(0.5, 1.5, (n, 1, len(CAUSES)))
    noise = np.einsum("ner,nr->ne", response, random.standard_normal((n, len(CAUSES))))
    value = true + noise + error * random.standard_normal((n, k))

    iron = np.array([x == "Fe" for x in elements])
    absent = random.random((n, k)) < missing * k / max(k - iron.sum(), 1)
    absent &= ~iron
    weak = np.array([x in LIMITED for x in elements])
    share = min(limited * k / max(1, weak.sum()) / max(1 - missing, 1e-9), 0.9)
    threshold = np.full((n, k), -np.inf)
    if weak.any() and share > 0:
        depth = np.quantile(value[:, weak], share, axis=0)
        threshold[:, weak] = depth + 0.2 * random.standard_normal((n, 1))
    limit = (value < threshold) & ~absent
    value = np.where(limit, threshold, value)
    value[absent] = np.nan

    galaxy = component // POINTS
    names = np.array([f"dwarf {i}" if i % 3 else f"stream {i}" for i in range(N_GALAXIES)])
    kinds = np.array(["dwarf" if i % 3 else "stream" for i in range(N_GALAXIES)])
    table = {"name": np.arange(n).astype(str), "structure": names[galaxy], "type": kinds[galaxy]}
    total = np.sqrt(error**2 + np.square(response).sum(2))
    for j, element in enumerate(elements):
        x = element.lower()
        table[f"{x}_h"] = value[:, j]
        table[f"{x}_h_error"] = np.where(limit[:, j] | absent[:, j], np.nan, total[:, j])
        table[f"{x}_limit"] = limit[:, j].astype(float)
        table[f"{x}_significance"] = np.where(limit[:, j], 1 / (np.log(10) * error[:, j]), np.nan)
        for i, cause in enumerate(CAUSES):
            table[f"{x}_{cause}"] = response[:, j, i]
        table[f"true_{x}_h"] = true[:, j]
    return table
