"""Simulation-based calibration (Talts et al. 2018): are the posteriors of clusters from the prior
where the clusters are?

The rank of the truth among independent draws of its posterior is uniform if prior, likelihood and
sampler agree, and a central interval holds the truth as often as it says.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, chisquare
from torch import Tensor

from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.posterior import Stars, parameters, physical
from orrery.models.gc_emulator.sky import RV_PRIOR, Sky, sky_stars
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters.lowered_isothermal import solve, solve_share

BINS = 10  # of the ranks
LEVELS = (50, 90)  # of the central intervals, per cent
CENTRE = (0.3, 0.5, 5.0, -3.0)  # ra and dec, rad, and proper motions, mas/yr: any will do


def simulated(
    emulator: IsothermalEmulator, data: Any, seed: int
) -> tuple[Stars | Sky, dict[str, Tensor]]:
    """Data sets of clusters drawn from the prior, and what they were drawn with, (sets,)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sets, n = data.n_sets, data.n_stars
    names = parameters(emulator)
    truth = dict(zip(names, physical(normal(sets, len(names))), strict=True))
    W0, g, log_mass, log_rh, *anisotropy = truth.values()
    model = solve_share(W0, g, anisotropy[0]) if anisotropy else solve(W0, g)
    phase = cluster_stars.draw(model, 10**log_mass, 10**log_rh, n, generator)
    if not data.sky:
        return Stars(emulator, phase), truth
    truth["centre_distance"] = data.distance + data.distance_error * normal(sets)
    truth["centre_rv"] = RV_PRIOR * normal(sets)
    ra, dec, pm_ra, pm_dec = (torch.full_like(W0, x) for x in CENTRE)
    truth |= {"centre_ra": ra.rad2deg(), "centre_dec": dec.rad2deg()}
    truth |= {"centre_pm_ra": pm_ra, "centre_pm_dec": pm_dec}
    distance = 1e3 * truth["centre_distance"]
    centre = torch.stack([ra, dec, distance, pm_ra, pm_dec, truth["centre_rv"]], -1)
    sky = cluster_stars.to_sky(phase + cluster_stars.from_sky(centre)[:, None])
    columns = {
        "ra": sky[..., 0].rad2deg() + data.error / 3.6e6 / dec.cos()[:, None] * normal(sets, n),
        "dec": sky[..., 1].rad2deg() + data.error / 3.6e6 * normal(sets, n),
        "pm_ra": sky[..., 3] + data.error * normal(sets, n),
        "pm_dec": sky[..., 4] + data.error * normal(sets, n),
        "parallax": 1e3 / sky[..., 2] + data.error * normal(sets, n),
    }
    columns |= {f"{name}_error": torch.full((sets, n), data.error).double() for name in columns}
    stars = sky_stars(columns)
    return Sky(emulator, stars, (data.distance, data.distance_error)), truth


def ranks(draws: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Share of the draws (sets, chains, n) below the truth (sets,); ties with the ends dithered."""
    n = draws[0].numel()
    below = (draws.flatten(1) < truth[:, None]).sum(1).double()
    dither = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed)).double()
    return (below + dither) / (n + 1)


def calibration_metrics(
    named: Mapping[str, Tensor], truth: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and the ranks of each parameter (sets,), in units of the number of draws."""
    facts: dict[str, float] = {}
    found = {f"rank_{name}": ranks(named[name], truth[name], seed) for name in truth}
    sets = len(next(iter(found.values())))
    for key, rank in found.items():
        name = key.removeprefix("rank_")
        counts = torch.histc(rank, BINS, 0, 1)
        facts[f"rank_p_{name}"] = float(chisquare(counts.numpy()).pvalue)
        for level in LEVELS:
            inside = (rank - 0.5).abs() < 0.005 * level
            facts[f"coverage_{level}_{name}"] = float(inside.double().mean())
    p = [value for name, value in facts.items() if name.startswith("rank_p_")]
    facts |= {"n": float(sets), "rank_p_min": min(p), "rank_p_needed": 0.01 / len(p)}
    low, high = map(float, binom.interval(0.99, sets, 1 / BINS))
    facts |= {"rank_bins": float(BINS), "rank_count_low": low, "rank_count_high": high}
    for level in LEVELS:
        low, high = map(float, binom.interval(0.99, sets, level / 100))
        facts |= {f"coverage_{level}_low": low / sets, f"coverage_{level}_high": high / sets}
    return facts, {key: rank.numpy() for key, rank in found.items()}
