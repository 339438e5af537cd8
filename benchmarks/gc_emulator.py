"""Lowered isothermal models: the pretrained emulator and our solver beside LIMEPY.

    pip install -e ".[bench]"
    python -m benchmarks.gc_emulator --out benchmarks/gc_emulator.csv

70 draws from the prior (seed 0), each a cluster of 2,000 stars drawn from it; the truth is
astro-limepy at a tolerance of 1e-12, and its default stands beside us. Stars with E > 1e-3 W0
count. Its projection is no better than a part in 10^4, so that the truth of what is seen is
Gauss quadrature (`physics.cluster_projection`) where R < 0.99 r_t, at LIMEPY's own radii for it.
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

import zoo
from benchmarks.speed import best_of_five, speeds
from datamodules.gc_emulator import GCEmulatorData
from models.checkpoint import read_checkpoint, restore
from physics import cluster_stars, lowered_isothermal
from physics.cluster_projection import project

MODELS, STARS, MASS, RH, EDGE, RIM = 70, 2000, 10**5.5, 5.0, 1e-3, 0.99
TIGHT = {"ode_rtol": 1e-12, "ode_atol": 1e-12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gc_emulator.csv"))
    parser.add_argument("--checkpoint", default="gc_emulator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from limepy import limepy

    model = restore(read_checkpoint(zoo.find(options.checkpoint))).requires_grad_(False)
    prior = GCEmulatorData(n_W0=1, n_g=1, batch_size=1, n_test=MODELS).simulate("test")
    W0, g = (torch.from_numpy(prior[name]) for name in ("W0", "g"))
    mass, rh = torch.full_like(W0, MASS), torch.full_like(W0, RH)
    solved = lowered_isothermal.solve(W0, g, steps=800)
    stars = cluster_stars.draw(solved, mass, rh, STARS, torch.Generator().manual_seed(0))
    r, v = (stars[..., i : i + 3].norm(dim=-1) for i in (0, 3))
    cluster = model.emulator.cluster(W0, g, mass, rh)
    r0 = rh / solved.rh
    rim = (RIM * solved.rt[:, None]).square()
    R = torch.expm1(torch.log1p(rim) * torch.linspace(0, 1, 100)).sqrt() * r0[:, None]
    phi_ours, log_f_ours = cluster.potential(r**2), cluster.log_df(r**2, v**2)
    seen, exact = cluster.projected(R**2), project(solved, R / r0[:, None])
    unit = lowered_isothermal.G * mass / (r0 * solved.mt)
    density = seen.surface_density / exact.surface_density * (r0**2 / mass)[:, None]
    sigma = (seen.v2_los / exact.v2_los / unit[:, None]).sqrt()
    ours_seen = torch.stack([(x - 1).abs().amax(1) for x in (density, sigma)], 1).tolist()

    def of_limepy(i: int, **tolerance: float) -> tuple[np.ndarray, np.ndarray, float]:
        """phi in units of s^2, ln f / M, and s^2."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            k = limepy(
                float(W0[i]), float(g[i]), M=MASS, rh=RH, G=lowered_isothermal.G, **tolerance
            )
        at = np.asarray(r[i])
        with np.errstate(divide="ignore"):
            log_f = np.log(k.df(at, np.asarray(v[i])) / MASS)
        return k.interp_phi(at) / k.s2, log_f, k.s2

    def seen_by_limepy(i: int) -> tuple[float, float]:
        """Worst errors of surface density and dispersion at the radii of its own grid."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            k = limepy(float(W0[i]), float(g[i]), project=True)  # r_0 and s are 1
        inner = k.rt * RIM > k.R
        one = lowered_isothermal.solve(W0[i : i + 1], g[i : i + 1], steps=800)
        found = project(one, torch.from_numpy(k.R[inner])[None])
        of_density = k.Sigma[inner] / k.M / found.surface_density[0].numpy()
        of_sigma = np.sqrt(k.v2p[inner] / found.v2_los[0].numpy())
        return float(np.abs(of_density - 1).max()), float(np.abs(of_sigma - 1).max())

    errors: dict[str, list[tuple[float, ...]]] = {"zoo": [], "limepy": []}
    for i in range(MODELS):
        phi, log_f, s2 = of_limepy(i, **TIGHT)
        counts = phi - 0.5 * np.asarray(v[i]) ** 2 / s2 > EDGE * float(W0[i])
        ours = phi_ours[i].numpy(), log_f_ours[i].numpy(), ours_seen[i]
        theirs = *of_limepy(i)[:2], seen_by_limepy(i)
        for name, (found_phi, found_f, sky) in (("zoo", ours), ("limepy", theirs)):
            d = (found_f - log_f)[counts]
            errors[name].append(
                (
                    float(np.abs(np.expm1(d)).max()),
                    float(np.abs(found_phi / phi - 1)[counts].max()),
                    float(abs(d.sum())),
                    *sky,
                )
            )
    times: dict[str, Any] = speeds(model, {"row": torch.arange(1)})
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
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for name, found in errors.items():
            worst = np.max(np.array(found), axis=0)
            numbers = {**dict(zip(names, worst, strict=True)), **times[name]}
            row = {"method": name, "seed": 0, "n": MODELS}
            row |= {key: f"{value:.4g}" for key, value in numbers.items()}
            writer.writerow(row)
            print(row)


if __name__ == "__main__":
    main()
