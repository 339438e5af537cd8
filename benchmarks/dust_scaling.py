"""What a dust map costs by its size: bytes, operations and seconds per voxel.

    python -m benchmarks.dust_scaling > benchmarks/dust_scaling.csv     # 10 min of CPU, 8 GB

Maps from 69 to 1250 pc from a base of Nside 4, each in a process of its own on one thread. Stars
are drawn in proportion to the published map's, 54 million in 607 million voxels, at most 300,000:
beyond, their paths of all shells would not fit. Their extinctions are those of a draw of the prior.
`forward_ns` and `adjoint_ns` are of one sample, best of five; `iteration_s` is the second outer
iteration of metric Gaussian inference with one pair of samples, and `products` how often the
metric is applied in it; `peak_gb` is the most that the process holds. What follows from it for
the published map stands in dust_scaling.md.
"""

import csv
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch

from benchmarks.speed import best_of_five
from models.blocks import mgvi
from models.dust import MOST, NEWTON, Dust
from models.dust.field import Extinction
from models.dust.prior import HYPER
from physics.icr import ICR, grids, matern, memory

NEAREST, FARTHEST, SCALE = 69.0, 1250.0, 150.0  # pc
MAPS = ((8, 36), (16, 68), (32, 132), (64, 260))  # Nside, shells
STARS, MOST_STARS = 54 / 607, 300_000  # per voxel


def main() -> None:
    if sys.argv[1:]:
        print_row(measured(int(sys.argv[1]), int(sys.argv[2])), header=sys.argv[1] == "8")
        return
    for nside, shells in MAPS:
        words = [sys.executable, "-m", "benchmarks.dust_scaling", str(nside), str(shells)]
        subprocess.run(words, check=True)


def print_row(row: dict[str, Any], header: bool) -> None:
    writer = csv.DictWriter(sys.stdout, row, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


@torch.no_grad()
def measured(nside: int, shells: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    voxels = shells * 12 * nside**2
    row: dict[str, Any] = {"nside": nside, "shells": shells, "voxels": voxels}
    row |= of_the_prior(nside, shells, voxels, generator)
    row |= an_iteration(nside, shells, min(round(STARS * voxels), MOST_STARS), generator)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    square = torch.ones(1024, 1024)
    return row | {"peak_gb": peak, "matmul_1024_ms": 1e3 * best_of_five(lambda: square @ square)}


def of_the_prior(
    nside: int, shells: int, voxels: int, generator: torch.Generator
) -> dict[str, float]:
    levels = grids(nside, shells, NEAREST, FARTHEST)
    began = time.process_time()
    gp = ICR(levels, matern(SCALE))
    seconds = time.process_time() - began
    xi = torch.randn(1, gp.n_excitations, generator=generator)
    g = torch.randn(1, *gp.shape, generator=generator)
    products = gp.base.numel()  # four blocks, each once
    for level in gp.levels:
        for turn in level.turns:
            products += (turn.mean.numel() + turn.noise.numel()) * turn.inputs.shape[2]
    return {
        "matrices_bytes_per_voxel": memory(levels) / voxels,
        "matrices_us_per_voxel": 1e6 * seconds / voxels,
        "flops_per_voxel": 2 * products / voxels,
        "forward_ns_per_voxel": 1e9 * best_of_five(lambda: gp.apply(xi)) / voxels,
        "adjoint_ns_per_voxel": 1e9 * best_of_five(lambda: gp.adjoint(g)) / voxels,
    }


def an_iteration(nside: int, shells: int, n: int, generator: torch.Generator) -> dict[str, Any]:
    dust = Dust(nside, shells, NEAREST, FARTHEST, scale=SCALE, pairs=1, draws=1)
    direction = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    volume = torch.rand(n, generator=generator, dtype=torch.float64)
    parallax = 1e3 / (NEAREST**3 + volume * (FARTHEST**3 - NEAREST**3)) ** (1 / 3)
    stars = dust.stars(
        {"direction": direction, "parallax": parallax, "parallax_error": 0.05 + 0 * parallax}
    )
    prior, products = dust.prior, 0

    def model(u: torch.Tensor) -> Extinction:
        return Extinction(prior, stars, u)

    truth = model(torch.randn(1, prior.n_latents, generator=generator)).value[0]
    data = mgvi.Data(truth + 0.03 * torch.randn(n, generator=generator), torch.full((n,), 0.03**2))

    def counted(product: Any) -> Any:
        def run(v: torch.Tensor) -> torch.Tensor:
            nonlocal products
            products += 1
            return product(v)

        return run

    mean = torch.zeros(1, prior.n_latents)
    for _ in range(2):
        products, began = 0, time.process_time()
        std = mgvi.deviations(model, data, mean, torch.randn(64, n, generator=generator))
        inner = mgvi.Solver(std.sqrt(), dust.tolerance, MOST)

        def solve(product: Any, b: torch.Tensor, inner: Any = inner) -> torch.Tensor:
            return inner(counted(product), b)

        e1, e2 = (torch.randn(1, k, generator=generator) for k in (n, prior.n_latents))
        mine = mgvi.residuals(model, data, mean, e1, e2, solve)  # type: ignore[arg-type]
        both = torch.cat([mine, -mine])
        mean, _ = mgvi.newton(model, data, mean, both, NEWTON, solve)  # type: ignore[arg-type]
        seconds = time.process_time() - began
    held = 4 * (2 * shells + len(both) * (shells + HYPER))  # paths, and slopes of the samples
    return {"stars": n, "bytes_per_star": held, "products": products, "iteration_s": seconds}


if __name__ == "__main__":
    main()
