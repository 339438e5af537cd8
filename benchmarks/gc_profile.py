"""A cluster's binned profiles: our posterior against the same one with LIMEPY and emcee.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.gc_profile ../shared/data/gc/NGC0104.hdf --out benchmarks/gc_profile.csv

Both posteriors share their data, parameters, priors and likelihood, which is written a second time
in tests/models/test_gc_profile.py. Ours are models of the emulator, Adam and HMC, 8 chains of 1,000
draws after a warm-up of 300; the peer's are models of astro-limepy, Nelder-Mead and emcee, 24
walkers of 400 steps, the first 150 discarded. Each begins at the best point of its own coarse grid.
Seed 0, one thread; `seconds` is process CPU time.

LIMEPY gives its profiles at about ninety radii, interpolated by cubic splines in logarithms. Its
projection integrates on those radii too: at its default tolerance surface densities are .5 to 3%
low, and the optimum moves by that. So a third row climbs on from there at a tolerance of 1e-12.
"""

import argparse
import csv
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor

from orrery import load
from orrery.datamodules.gc_emulator.profile import GCProfile
from orrery.models.gc_emulator.posterior import PARAMETERS
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.physics.clusters.cluster_profiles import projected_radius
from orrery.physics.clusters.cluster_projection import Projected
from orrery.physics.clusters.lowered_isothermal import G
from orrery.tables import sha256

WALKERS, STEPS, BURN_IN, SCATTER = 24, 400, 150, 0.01
TIGHT = {"ode_rtol": 1e-12, "ode_atol": 1e-12}
TINY = 1e-30


class LimepyProfiles(ProfilesPosterior):
    """The same posterior of models that LIMEPY solves and projects, one at a time."""

    calls = 0
    tolerance: Mapping[str, float] = {}

    def projected(self, named: Mapping[str, Tensor], r: Tensor) -> Projected:
        from limepy import limepy
        from scipy.interpolate import CubicSpline

        W0, g, log_mass, log_rh, distance = (
            float(named[name]) for name in (*PARAMETERS, "distance")
        )
        self.calls += 1
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            model = limepy(
                W0, g, M=10**log_mass, rh=10**log_rh, G=G, project=True, **self.tolerance
            )
        R = projected_radius(r, torch.tensor(distance, dtype=torch.float64)).numpy()
        knots = (model.r > 0) & (model.Sigma > 0) & (model.v2p > 0)
        inside = model.r[knots][-1] > R
        at = np.log(np.clip(R, model.r[knots][0], model.r[knots][-1]))
        log_r = np.log(model.r[knots])
        profiles = []
        for values in (model.Sigma, model.v2p):
            spline = CubicSpline(log_r, np.log(values[knots]))
            profiles.append(torch.from_numpy(np.where(inside, np.exp(spline(at)), TINY))[None])
        surface_density, v2 = profiles
        return Projected(surface_density, v2, v2, v2)

    def log_prob_of(self, u: np.ndarray) -> float:
        """ln posterior of one point; where LIMEPY finds no model there is none."""
        try:
            with torch.no_grad():
                value = float(self.log_prob(torch.from_numpy(u)[None, None]))
        except (ValueError, IndexError, ArithmeticError):
            return -np.inf
        return value if np.isfinite(value) else -np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gc_profile.csv"))
    parser.add_argument("--checkpoint", default="gc_emulator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = GCProfile(path=options.path)
    model = load(options.checkpoint).requires_grad_(False)
    peer = LimepyProfiles(model.emulator, data.profiles(), data.distance_prior())

    rows = {}
    with TemporaryDirectory() as folder:
        rows["gc_emulator"] = dict(model.infer(data, Path(folder), seed=0).metrics)
    print(rows, flush=True)
    rows["limepy + emcee"] = limepy_and_emcee(peer)
    print(rows, flush=True)
    peer.tolerance = TIGHT
    rows["limepy at 1e-12"] = optimum(peer, _whitened(peer, rows["limepy + emcee"]))
    for metrics in rows.values():  # each optimum under one and the same solver
        optimum_value = peer.log_prob_of(_whitened(peer, metrics))
        metrics["log_posterior_best_by_tight_limepy"] = optimum_value
    columns = ["method", "seed", *dict.fromkeys(k for row in rows.values() for k in row)]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "test_sha256"], restval="", lineterminator="\n")
        writer.writeheader()
        for method, metrics in rows.items():
            row = {"method": method, "seed": 0, "test_sha256": sha256(options.path)}
            writer.writerow(row | {key: f"{value:.6g}" for key, value in metrics.items()})


def limepy_and_emcee(posterior: LimepyProfiles) -> dict[str, float]:
    import emcee

    began = time.process_time()
    grid = [point[0, 0].numpy() for point in posterior.candidates()]
    first = grid[int(np.argmax([posterior.log_prob_of(u) for u in grid]))]
    metrics = optimum(posterior, first)
    metrics["seconds_best"] = time.process_time() - began
    best = _whitened(posterior, metrics)
    generator = np.random.RandomState(0)
    start = best + SCATTER * generator.standard_normal((WALKERS, len(best)))
    sampler = emcee.EnsembleSampler(WALKERS, len(best), posterior.log_prob_of)
    sampler.run_mcmc(emcee.State(start, random_state=generator.get_state()), STEPS)
    draws = torch.from_numpy(sampler.get_chain(discard=BURN_IN, flat=True))
    tau = sampler.get_autocorr_time(discard=BURN_IN, tol=0)
    metrics["seconds"], metrics["calls"] = time.process_time() - began, posterior.calls
    metrics["ess_min"] = float((len(draws) / tau).min())
    for name, values in posterior.named(draws).items():
        metrics[name], metrics[f"{name}_std"] = float(values.mean()), float(values.std())
    return metrics


def optimum(posterior: LimepyProfiles, first: np.ndarray) -> dict[str, float]:
    """The maximum of the posterior by Nelder-Mead, begun anew where it stopped."""
    from scipy.optimize import minimize

    best = first
    for size in (0.1, 0.02):
        result = minimize(
            lambda u: -posterior.log_prob_of(u),
            best,
            method="Nelder-Mead",
            options={
                "xatol": 1e-3,
                "fatol": 1e-3,
                "maxfev": 800,
                "adaptive": True,
                "initial_simplex": np.vstack([best, best + size * np.eye(len(best))]),
            },
        )
        best = result.x
    named = posterior.named(torch.from_numpy(best)[None, None])
    named = {name: value.flatten() for name, value in named.items()}
    metrics = {"log_posterior_best": -float(result.fun)}
    metrics |= {f"{name}_best": float(value) for name, value in named.items()}
    for profile, fit in zip(posterior.profiles, posterior.compare(named), strict=True):
        metrics[f"chi2_{profile.name}"] = float(fit.chi2)
        metrics["chi2"] = metrics.get("chi2", 0.0) + float(fit.chi2)
    return metrics


def _whitened(posterior: ProfilesPosterior, metrics: Mapping[str, float]) -> np.ndarray:
    """The point u of ``<parameter>_best``."""
    named = {
        name: torch.tensor(metrics[f"{name}_best"], dtype=torch.float64) for name in posterior.names
    }
    return posterior.whitened(named).numpy()


if __name__ == "__main__":
    main()
