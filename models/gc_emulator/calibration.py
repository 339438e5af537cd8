"""Simulation-based calibration (Talts et al. 2018): whether posteriors have the right width.

The rank of the truth among independent draws of its posterior is uniform if prior, likelihood and
sampler agree, and central intervals hold the truth as often as they should.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.stats import binom, chisquare
from torch import Tensor

from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.posterior import PhaseSpacePosterior, parameter_names, physical
from orrery.models.gc_emulator.sky import RV_PRIOR, SkyPosterior, star_measurements
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters.lowered_isothermal import solve, solve_rh_ra
from orrery.physics.clusters.observations import SimulatedSets

RANK_BINS = 10
LEVELS = (50, 90)  # of the central intervals, per cent
CENTRE = (0.3, 0.5, 5.0, -3.0)  # ra and dec, rad, and proper motions, mas/yr, of all clusters


def simulated_posteriors(
    emulator: IsothermalEmulator, sets: SimulatedSets
) -> tuple[PhaseSpacePosterior | SkyPosterior, dict[str, Tensor]]:
    """Posteriors of clusters drawn from the prior, and their true parameters, each (sets,)."""
    generator = torch.Generator().manual_seed(sets.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    names, shape = parameter_names(emulator), (sets.n_sets, sets.n_stars)
    truth = dict(zip(names, physical(normal(sets.n_sets, len(names))), strict=True))
    W0, g, log_mass, log_rh, *rh_ra = truth.values()
    model = solve_rh_ra(W0, g, rh_ra[0]) if rh_ra else solve(W0, g)
    phase = cluster_stars.draw(model, 10**log_mass, 10**log_rh, sets.n_stars, generator)
    if not sets.sky:
        return PhaseSpacePosterior(emulator, phase), truth
    mean, error = sets.distance
    truth["centre_distance"] = mean + error * normal(sets.n_sets)
    truth["centre_rv"] = RV_PRIOR * normal(sets.n_sets)
    ra, dec, pm_ra, pm_dec = (torch.full_like(W0, x) for x in CENTRE)
    truth |= {"centre_ra": ra.rad2deg(), "centre_dec": dec.rad2deg()}
    truth |= {"centre_pm_ra": pm_ra, "centre_pm_dec": pm_dec}
    distance = 1e3 * truth["centre_distance"]
    centre = torch.stack([ra, dec, distance, pm_ra, pm_dec, truth["centre_rv"]], -1)
    sky = cluster_stars.to_sky(phase + cluster_stars.from_sky(centre)[:, None])
    columns = {
        "ra": sky[..., 0].rad2deg() + sets.error / 3.6e6 / dec.cos()[:, None] * normal(*shape),
        "dec": sky[..., 1].rad2deg() + sets.error / 3.6e6 * normal(*shape),
        "pm_ra": sky[..., 3] + sets.error * normal(*shape),
        "pm_dec": sky[..., 4] + sets.error * normal(*shape),
        "parallax": 1e3 / sky[..., 2] + sets.error * normal(*shape),
    }
    columns |= {f"{name}_error": torch.full(shape, sets.error).double() for name in columns}
    return SkyPosterior(emulator, star_measurements(columns), sets.distance), truth


def ranks(draws: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Fraction of draws (sets, chains, n) below the truth (sets,), ties with the ends dithered."""
    n = draws[0].numel()
    below = (draws.flatten(1) < truth[:, None]).sum(1).double()
    dither = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed)).double()
    return (below + dither) / (n + 1)


def calibration_metrics(
    named: Mapping[str, Tensor], truth: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and the ranks of each parameter, (sets,), from 0 to 1."""
    metrics: dict[str, float] = {}
    rank_of = {name: ranks(named[name], truth[name], seed) for name in truth}
    sets = len(next(iter(truth.values())))
    for name, rank in rank_of.items():
        counts = torch.histc(rank, RANK_BINS, 0, 1)
        metrics[f"rank_p_{name}"] = float(chisquare(counts.numpy()).pvalue)
        for level in LEVELS:
            inside = (rank - 0.5).abs() < 0.005 * level
            metrics[f"coverage_{level}_{name}"] = float(inside.double().mean())
    p = [value for name, value in metrics.items() if name.startswith("rank_p_")]
    metrics |= {"n": float(sets), "rank_p_min": min(p), "rank_p_needed": 0.01 / len(p)}
    low, high = map(float, binom.interval(0.99, sets, 1 / RANK_BINS))
    metrics |= {"rank_bins": float(RANK_BINS), "rank_count_low": low, "rank_count_high": high}
    for level in LEVELS:
        low, high = map(float, binom.interval(0.99, sets, level / 100))
        metrics |= {f"coverage_{level}_low": low / sets, f"coverage_{level}_high": high / sets}
    return metrics, {name: rank.numpy() for name, rank in rank_of.items()}
