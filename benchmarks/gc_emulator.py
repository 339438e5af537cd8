"""Lowered isothermal models: the pretrained emulator and our solver against LIMEPY.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.gc_emulator
    python -m benchmarks.gc_emulator --checkpoint gc_emulator_anisotropic

70 draws from the prior (seed 0), each a cluster of 2,000 stars drawn from it; the truth is
astro-limepy at a tolerance of 1e-12, and LIMEPY at its default is the peer. Stars with E > 1e-3 W0
are compared. LIMEPY's projection is no better than a part in 10^4, so that the truth of projected
profiles is Gauss quadrature (`physics.clusters.cluster_projection`) where R < 0.99 r_t, at LIMEPY's
own radii for it.
Times are CPU milliseconds on one thread, best of five; `matmul_ms` is that of a 1024^3 float32
matrix product.
"""

import argparse
import csv
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch

from orrery import load
from orrery.datamodules.gc_emulator import GCEmulatorData
from orrery.evaluation.timing import best_of_five, timings
from orrery.physics.clusters import cluster_stars, lowered_isothermal
from orrery.physics.clusters.cluster_projection import project

N_MODELS, N_STARS, MASS, RH = 70, 2000, 10**5.5, 5.0  # Msun, pc
MIN_ENERGY, OUTERMOST_RADIUS = 1e-3, 0.99  # W0, r_t
TIGHT = {"ode_rtol": 1e-12, "ode_atol": 1e-12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="by default benchmarks/<checkpoint>.csv")
    parser.add_argument("--checkpoint", default="gc_emulator")
    options = parser.parse_args()
    out = options.out or Path(f"benchmarks/{options.checkpoint}.csv")
    torch.set_num_threads(1)
    from limepy import limepy

    model = load(options.checkpoint).requires_grad_(False)
    n_ra = model.emulator.shape[0]
    data = GCEmulatorData(n_W0=1, n_g=1, n_ra=n_ra, batch_size=1, n_test=N_MODELS)
    prior = {name: torch.from_numpy(x) for name, x in data.simulate("test").items()}
    W0, g = prior["W0"], prior["g"]
    mass, rh = torch.full_like(W0, MASS), torch.full_like(W0, RH)
    ra = None
    if n_ra > 1:
        solved = lowered_isothermal.solve_rh_ra(W0, g, prior["rh_ra"], steps=800)
        ra = rh / prior["rh_ra"]
    else:
        solved = lowered_isothermal.solve(W0, g, steps=800)
    stars = cluster_stars.draw(solved, mass, rh, N_STARS, torch.Generator().manual_seed(0))
    r, v = (stars[..., i : i + 3].norm(dim=-1) for i in (0, 3))
    j = torch.linalg.cross(stars[..., :3], stars[..., 3:]).norm(dim=-1)
    cluster = model.emulator.cluster(W0, g, mass, rh, ra)
    r0 = rh / solved.rh
    R2_max = (OUTERMOST_RADIUS * solved.rt[:, None]).square()
    R = torch.expm1(torch.log1p(R2_max) * torch.linspace(0, 1, 100)).sqrt() * r0[:, None]
    phi_ours, log_f_ours = cluster.potential(r**2), cluster.log_df(r**2, v**2, j**2)
    emulated, exact = cluster.projected(R**2), project(solved, R / r0[:, None])
    unit = lowered_isothermal.G * mass / (r0 * solved.mt)
    density = emulated.surface_density / exact.surface_density * (r0**2 / mass)[:, None]
    sigma = (torch.cat(emulated[1:], 1) / torch.cat(exact[1:], 1) / unit[:, None]).sqrt()
    our_sky_errors = torch.stack([(x - 1).abs().amax(1) for x in (density, sigma)], 1).tolist()

    def solve_limepy(i: int, **settings: Any) -> Any:
        if solved.ra is not None:
            settings["ra"] = float(solved.ra[i])  # r_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return limepy(float(W0[i]), float(g[i]), **settings)

    def limepy_at_stars(i: int, **tolerance: float) -> tuple[np.ndarray, np.ndarray, float]:
        """phi in units of s^2, ln f / M, and s^2."""
        k = solve_limepy(i, M=MASS, rh=RH, G=lowered_isothermal.G, **tolerance)
        at, speed = np.asarray(r[i]), np.asarray(v[i])
        angle = np.arcsin(np.clip(np.asarray(j[i]) / at / speed, 0, 1))
        with np.errstate(divide="ignore"):
            log_f = np.log(k.df(at, speed, angle, 0) / MASS)
        return k.interp_phi(at) / k.s2, log_f, k.s2

    def limepy_sky_errors(i: int) -> tuple[float, float]:
        """Worst errors of surface density and dispersion at the radii of its own grid."""
        k = solve_limepy(i, project=True)  # in units of r_0 and s
        inner = k.rt * OUTERMOST_RADIUS > k.R
        ra_i = None if solved.ra is None else solved.ra[i : i + 1]
        solution = lowered_isothermal.solve(W0[i : i + 1], g[i : i + 1], ra_i, steps=400)
        exact = project(solution, torch.from_numpy(k.R[inner])[None])
        density = k.Sigma[inner] / k.M / exact.surface_density[0].numpy()
        sigma = np.sqrt(np.stack([k.v2p, k.v2R, k.v2T])[:, inner] / torch.cat(exact[1:]).numpy())
        return float(np.abs(density - 1).max()), float(np.abs(sigma - 1).max())

    errors: dict[str, list[tuple[float, ...]]] = {"zoo": [], "limepy": []}
    for i in range(N_MODELS):
        phi, log_f, s2 = limepy_at_stars(i, **TIGHT)
        compared = phi - 0.5 * np.asarray(v[i]) ** 2 / s2 > MIN_ENERGY * float(W0[i])
        ours = phi_ours[i].numpy(), log_f_ours[i].numpy(), our_sky_errors[i]
        theirs = *limepy_at_stars(i)[:2], limepy_sky_errors(i)
        for name, (its_phi, its_log_f, sky) in (("zoo", ours), ("limepy", theirs)):
            d = (its_log_f - log_f)[compared]
            errors[name].append(
                (
                    float(np.abs(np.expm1(d)).max()),
                    float(np.abs(its_phi / phi - 1)[compared].max()),
                    float(abs(d.sum())),
                    *sky,
                )
            )
    times: dict[str, Any] = timings(model, model.timing_cases())
    solve = best_of_five(lambda: limepy(7.0, 1.3, M=MASS, rh=RH))
    times = {
        "zoo": {k.replace("matmul_1024_ms", "matmul_ms"): t for k, t in times.items()},
        "limepy": {"solve_ms_per_model": 1e3 * solve, "matmul_ms": times["matmul_1024_ms"]},
    }
    names = (
        *("f_max_rel_error", "phi_max_rel_error", "dlogl_2000_max"),
        *("surface_density_max_rel_error", "sigma_sky_max_rel_error"),
    )
    columns = ["method", "seed", "n", *names, *times["zoo"], "test_sha256"]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for name, model_errors in errors.items():
            worst = np.max(np.array(model_errors), axis=0)
            numbers = {**dict(zip(names, worst, strict=True)), **times[name]}
            row = {"method": name, "seed": 0, "n": N_MODELS}
            row |= {key: f"{value:.4g}" for key, value in numbers.items()}
            writer.writerow(row)
            print(row)


if __name__ == "__main__":
    main()
