"""What a dust map costs by its size: bytes, operations and seconds per voxel.

    python -m benchmarks.dust_scaling > benchmarks/dust_scaling.csv     # 2 min of CPU, 3 GB
    python -m benchmarks.dust_scaling 32 132                            # one row of it

Maps from 69 to 1250 pc from a base of Nside 4, each in a process of its own on one thread, process
CPU time. The last row is the published map, of which only numbers that follow from the shapes are
there. Stars are in proportion to its 54 million in 607 million voxels, at most 300,000. Their
extinctions are those of a draw of the prior.

- `matrices_bytes_per_voxel`: `physics.gaussian_process.icr.memory`; `mean_` and `places_bytes` are
  R and the places of its inputs; `unshared_bytes` is the total if no rotation shared matrices, as
  on one base pixel.
- `flops_per_voxel`: of the field of one sample, counted from the shapes of the matrices.
- `forward_ns`, `adjoint_ns`: of one sample, best of five, per voxel.
- `halo_values`: of the last level, values of other base pixels that a product needs, all together.
- `bytes_per_star`: of `models.dust.groups`, counted from shapes; `dense_bytes_per_star`: of paths
  through all shells. `possible_shells`: in how many shells P(d > r) is neither 0 nor 1;
  `open_shells`: to .001; `star_shells`: in how many of the map it is not 0, to .001. Paths of
  `groups` of stars go through the same shells.
- `directions_s` (of the preconditioner), `residuals_s`, `bend_s`, `newton_s`: of the second outer
  iteration with one pair, up to Nside `FITTED`; `*_products` how often the metric is applied, in
  nonlinear updates (`bend_`) and in Newton's steps to two samples.

What follows from it for the published map stands in dust_scaling.md.
"""

import csv
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import Tensor

from orrery.evaluation.timing import best_of_five
from orrery.models.dust import MAX_NEWTON_STEPS, Dust
from orrery.models.dust.field import Extinction
from orrery.models.dust.groups import alike, group_stars
from orrery.models.dust.groups import memory as groups_memory
from orrery.models.dust.query import edges
from orrery.models.dust.variational import MAX_CG_STEPS, NONLINEAR_STEPS, preconditioner
from orrery.models.inference import mgvi
from orrery.models.inference.matrix_free import LinearOperator
from orrery.physics.dust.dust_sky import PARALLAX_ERRORS
from orrery.physics.dust.extinction import open_shells, paths
from orrery.physics.gaussian_process.icr import ICR, WIDE, Grid, grids, matern, memory
from orrery.physics.gaussian_process.icr_build import MEMBERS

NEAREST, FARTHEST, SCALE, SIGMA = 69.0, 1250.0, 150.0, 0.03  # pc, pc, pc, E
MAPS = ((8, 36), (16, 68), (32, 132), (64, 260), (256, 772))  # Nside, shells
FITTED, PUBLISHED = 16, 256  # the largest Nside that is fitted; of which only shapes are known
STARS, MOST_STARS, MIN_SNR = 54 / 607, 300_000, 3.0  # per voxel
COUNTED_STARS = 200_000  # whose shells are counted
COLUMNS = [
    "nside", "shells", "voxels", "matrices_bytes_per_voxel", "mean_bytes_per_voxel",
    "places_bytes_per_voxel", "unshared_bytes_per_voxel", "flops_per_voxel", "matrices_s",
    "matrices_peak_gb", "forward_ns_per_voxel", "adjoint_ns_per_voxel", "halo_values", "stars",
    "bytes_per_star", "dense_bytes_per_star", "groups", "possible_shells", "star_shells",
    "open_shells", "directions_s", "residuals_products",
    "residuals_s", "bend_products", "bend_s", "newton_products", "newton_s", "iteration_s",
    "peak_gb", "matmul_1024_ms",
]  # fmt: skip


def main() -> None:
    if sys.argv[1:]:
        print_row(measure(int(sys.argv[1]), int(sys.argv[2])), header=sys.argv[1] == "8")
        return
    for nside, shells in MAPS:
        words = [sys.executable, "-m", "benchmarks.dust_scaling", str(nside), str(shells)]
        subprocess.run(words, check=True)


def print_row(row: dict[str, Any], header: bool) -> None:
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


@torch.no_grad()
def measure(nside: int, shells: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    levels = grids(nside, shells, NEAREST, FARTHEST)
    voxels = math.prod(levels[-1].shape)
    n = round(STARS * voxels)
    row: dict[str, Any] = {"nside": nside, "shells": shells, "voxels": voxels}
    row |= shape_costs(levels) | star_costs(levels[-1], voxels, generator)
    if nside == PUBLISHED:
        return row | {"stars": n}
    row |= {"stars": min(n, MOST_STARS), **prior_costs(levels, generator)}
    if nside <= FITTED:
        row |= iteration_costs(nside, shells, min(n, MOST_STARS), generator)
    square = torch.ones(1024, 1024)
    return row | {
        "peak_gb": peak_gb(),
        "matmul_1024_ms": 1e3 * best_of_five(lambda: square @ square),
    }


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# --- numbers that follow from shapes ----------------------------------------------------------


def refinements(levels: list[Grid]) -> Iterator[tuple[int, int]]:
    """Blocks, and values of R / 8, as `physics.gaussian_process.icr.memory` has them."""
    for coarse, fine in pairwise(levels):
        size = WIDE if fine is levels[-1] else WIDE.wider(coarse.nside)
        blocks = math.prod(fine.shape) // (8 * MEMBERS)
        first = coarse.shape[0] // MEMBERS // 2 * ((coarse.shells - 1) // 2)
        yield blocks, blocks * 3 * size.pixels + (blocks - first) * size.refined


def shape_costs(levels: list[Grid]) -> dict[str, float]:
    voxels, base = math.prod(levels[-1].shape), math.prod(levels[0].shape) ** 2 // 4
    blocks, inputs = map(sum, zip(*refinements(levels), strict=True))
    products = base + MEMBERS * (8 * inputs + 64 * blocks)
    unshared = 4 * MEMBERS * (8 * inputs + 64 * blocks + inputs) + 8 * voxels
    return {
        "matrices_bytes_per_voxel": memory(levels) / voxels,
        "mean_bytes_per_voxel": 32 * inputs / voxels,
        "places_bytes_per_voxel": 4 * MEMBERS * inputs / voxels,
        "unshared_bytes_per_voxel": unshared / voxels,
        "flops_per_voxel": 2 * products / voxels,
    }


def star_costs(grid: Grid, voxels: int, generator: torch.Generator) -> dict[str, float]:
    """From as many of the stars as `COUNTED_STARS`, and as many of the pixels as they are in."""
    n = min(round(STARS * voxels), COUNTED_STARS)
    pixels = math.ceil(grid.shape[0] * n / (STARS * voxels))
    _, parallax, error = catalogue(n, generator)
    few = slice(2000)
    share = paths(grid.boundaries, parallax[few], error[few]).lengths / grid.widths
    reached = (share > 1e-3).sum(1).double().mean()
    closed = (share > 1 - 1e-3).sum(1).double().mean()
    first, last = open_shells(edges(grid), parallax, error)
    groups = alike(first, last, pixels)
    return {
        "bytes_per_star": groups_memory(groups, first, last, pixels) / n,
        # lengths and squares; four pixels and weights, both ways, of 8 bytes
        "dense_bytes_per_star": 4 * 2 * (grid.shells + 1) + 2 * 4 * 16,
        "groups": len(groups),
        "possible_shells": float((last - first).double().mean()),
        "star_shells": float(reached),
        "open_shells": float(reached - closed),
    }


def catalogue(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, parallaxes and errors, mas: uniform in the volume, as in `dust_sky`."""
    direction = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    parallax, error = torch.zeros(2, n, dtype=torch.float64)
    while bool((low := parallax <= MIN_SNR * error).any()):
        volume, faint = torch.rand(2, n, generator=generator, dtype=torch.float64)
        drawn = 1e3 / (NEAREST**3 + volume * (FARTHEST**3 - NEAREST**3)) ** (1 / 3)
        parallax = torch.where(low, drawn, parallax)
        error = torch.where(low, torch.where(faint < 0.5, *PARALLAX_ERRORS), error)
    return direction, parallax, error


# --- measured times ---------------------------------------------------------------------------


def prior_costs(levels: list[Grid], generator: torch.Generator) -> dict[str, float]:
    voxels, began = math.prod(levels[-1].shape), time.process_time()
    gp = ICR(levels, matern(SCALE))
    seconds = time.process_time() - began
    xi = torch.randn(1, gp.n_excitations, generator=generator)
    g = torch.randn(1, *gp.shape, generator=generator)
    return {
        "matrices_s": seconds,
        "matrices_peak_gb": peak_gb(),
        "forward_ns_per_voxel": 1e9 * best_of_five(lambda: gp.apply(xi)) / voxels,
        "adjoint_ns_per_voxel": 1e9 * best_of_five(lambda: gp.adjoint(g)) / voxels,
        "halo_values": halo_values(gp, ICR(levels[:-1], matern(SCALE))),
    }


def halo_values(gp: ICR, coarse: ICR) -> int:
    """Of the last level: of its inputs those whose base pixel is another than the reader's."""
    level, n_coarse = gp.levels[-1], coarse.places.numel()
    face = torch.empty(n_coarse + level.n_fine, dtype=torch.int8)
    for one, start in ((coarse, 0), (gp, n_coarse)):
        shells, size = one.grid.shells, one.grid.nside**2 * one.grid.shells
        face[start + one.places.long()] = (torch.arange(one.grid.shape[0] * shells) // size).char()
    n_values = 0
    needs = torch.zeros(12, len(face), dtype=torch.bool)
    for turn in level.turns:
        reader = face[turn.start : turn.stop].view(len(turn.mean), 8, MEMBERS)[:, :1]
        reader = reader.expand(turn.inputs.shape)
        for faces, inputs in zip(reader.split(4096), turn.inputs.split(4096), strict=True):
            needs[faces.flatten().long(), inputs.flatten().long()] = True
    for k in range(12):
        n_values += int((needs[k] & (face != k)).sum())
    return n_values


def iteration_costs(nside: int, shells: int, n: int, generator: torch.Generator) -> dict[str, Any]:
    """The second, of one pair."""
    dust = Dust(nside, shells, NEAREST, FARTHEST, scale=SCALE, pairs=1, draws=1)
    direction, parallax, error = catalogue(n, generator)
    stars = group_stars(dust.grid, direction, parallax, error, torch.float32)
    prior = dust.prior

    def model(u: Tensor) -> Extinction:
        return Extinction(prior, stars, u)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    truth = model(normal(1, prior.n_latents)).value[0]
    data = mgvi.Data(truth + SIGMA * normal(n), torch.full((n,), SIGMA**2))
    mean = torch.zeros(1, prior.n_latents)
    row: dict[str, Any] = {}
    for _ in range(2):
        row, clock = {}, Clock()
        approximate_inverse = preconditioner(model, data, mean)  # type: ignore[arg-type]
        row |= {"directions_s": clock.lap()}
        solve, count = counted(mgvi.Solver(dust.tolerance, MAX_CG_STEPS, approximate_inverse))
        problem: tuple[Any, mgvi.Data, Tensor] = model, data, mean
        e1, e2 = normal(1, n), normal(1, prior.n_latents)
        linear = mgvi.residuals(*problem, e1, e2, solve)  # type: ignore[arg-type]
        row |= {"residuals_s": clock.lap(), "residuals_products": count.pop()}
        e1, e2, both = (torch.cat([x, -x]) for x in (e1, e2, linear))
        free = torch.ones_like(mean)
        residuals = mgvi.nonlinear_update(*problem, e1, e2, both, free, NONLINEAR_STEPS, solve)  # type: ignore[arg-type]
        row |= {"bend_s": clock.lap(), "bend_products": count.pop()}
        mean, _ = mgvi.newton(*problem, residuals, MAX_NEWTON_STEPS, solve)  # type: ignore[arg-type]
        row |= {"newton_s": clock.lap(), "newton_products": count.pop()}
        row |= {"iteration_s": sum(v for k, v in row.items() if k.endswith("_s"))}
    if not bool(mean.isfinite().all()):
        raise RuntimeError(f"Nside {nside}: the mean is not finite")
    return row


class Clock:
    """Process time, lap by lap."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        before, self.last = self.last, time.process_time()
        return self.last - before


class Count:
    """Products of a solver since the last `pop`."""

    n = 0

    def pop(self) -> int:
        n, self.n = self.n, 0
        return n


def counted(inner: mgvi.Solver) -> tuple[Callable[..., Tensor], Count]:
    """The solver, and the number of its products."""
    count = Count()

    def solve(product: LinearOperator, b: Tensor, start: Tensor | None = None) -> Tensor:
        def run(v: Tensor) -> Tensor:
            count.n += 1
            return product(v)

        return inner(run, b, start)

    return solve, count


if __name__ == "__main__":
    main()
