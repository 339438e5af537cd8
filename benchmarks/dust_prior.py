"""The dust map's Gaussian-process prior, those of NIFTy 9 (nifty.re), its reference, and GraphGP.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.dust_prior > benchmarks/dust_prior.csv             # ours
    python -m benchmarks.dust_prior deep > benchmarks/dust_prior_deep.csv   # two and three levels
    python -m benchmarks.dust_prior peers > benchmarks/dust_prior_peers.csv

Speeds hold for Nside 16 x 68 shells (208,896 voxels), beside the peers for 8 x 36 (27,648), in
float32 on one thread: the making of the matrices, the field of one and of 8 samples and the adjoint
of one; process CPU time, best of five (peers' matrices: once), beside a 1024^3 matrix product.
Errors hold for Nside 8 x 36 and float64,
for a Matern-3/2 kernel of 100 pc: the covariance is A A^T, of which 512 rows drawn with seed 0 are
compared with the kernel. `covariance_error` is relative, in the Frobenius norm; `local_error` is
the mean over those voxels of the mean absolute error towards others within 100 pc, `pair_error` the
mean over all such pairs. Vecchia (`physics.gaussian_process.vecchia`) and GraphGP have no base.

NIFTy looks its matrices up among those that differ (`compress`); the search is part of
`matrices_s`, most of which is the square root of the base by its eigenvectors. GraphGP without its
CUDA extension holds no matrices: it makes those of all voxels anew in each field and adjoint, so
that these compare with `matrices_s` and field of our Vecchia together; its `matrices_s` is the
graph. The rows of `peers` are those of what is installed.
"""

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import numpy as np
import torch
from torch import Tensor

from orrery.evaluation.timing import best_of_five
from orrery.physics.gaussian_process.icr import (
    ICR,
    PLAIN,
    WIDE,
    Grid,
    Stencil,
    grids,
    matern,
    memory,
)
from orrery.physics.gaussian_process.vecchia import Vecchia

NEAREST, FARTHEST, SCALE = 69.0, 1250.0, 100.0  # pc
FAST, EXACT = (16, 68), (8, 36)  # Nside, shells
ROWS, SAMPLES = 512, 8
JITTER = 1e-5  # of GraphGP: of the variance of each voxel, else float32 fails
DEEP, DEEP_ROWS = ((16, 68), (32, 132)), 96  # from a base of Nside 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="?", choices=("ours", "deep", "peers"), default="ours")
    chosen = parser.parse_args().rows
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # XLA has no setting that holds it to one thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if chosen == "deep":
        return write([deep(name, shape) for name in STENCILS for shape in DEEP])
    if chosen == "peers":
        return write(peers())
    rows = [icr(name, stencil, base) for name, stencil in STENCILS.items() for base in (4, 2)]
    rows += [vecchia(k, n0) for k, n0 in ((20, 200), (48, 1000))]
    write(rows)


def peers() -> list[dict[str, Any]]:
    """Ours, NIFTy's and GraphGP's on the smaller grid."""
    rows = [icr(name, stencil, 4, EXACT) for name, stencil in STENCILS.items()]
    rows.append(vecchia(20, 200, EXACT))
    if find_spec("jax") and find_spec("nifty"):
        rows.append(niftys(4))
    if find_spec("jax") and find_spec("graphgp"):
        rows.append(graphgp(20, 200))
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


STENCILS = {"icr wide": WIDE, "icr plain": PLAIN}


def icr(name: str, stencil: Stencil, base: int, size: tuple[int, int] = FAST) -> dict[str, Any]:
    def levels(shape: tuple[int, int]) -> list[Grid]:
        return grids(*shape, NEAREST, FARTHEST, base)

    row = ours(lambda shape: ICR(levels(shape), matern(SCALE), stencil), size)
    bytes_per_voxel = memory(levels(size), stencil) / math.prod(levels(size)[-1].shape)
    return {"method": name, "base_nside": base, "bytes_per_voxel": bytes_per_voxel, **row}


def deep(name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Errors of a map that is more than one level above its exact base."""
    levels = grids(*shape, NEAREST, FARTHEST)
    gp = ICR(levels, matern(SCALE), STENCILS[name]).to(dtype=torch.float64)
    errors = covariance_errors(lambda unit: gp.apply(gp.adjoint(unit)), levels[-1], DEEP_ROWS)
    return {"method": name, "nside": shape[0], "levels": len(levels) - 1, **errors}


def vecchia(k: int, n0: int, size: tuple[int, int] = FAST) -> dict[str, Any]:
    def prior(shape: tuple[int, int]) -> Vecchia:
        return Vecchia(grids(*shape, NEAREST, FARTHEST)[-1], matern(SCALE), k, n0)

    made = prior(size)
    bytes_per_voxel = made.nbytes / made.n_excitations
    row = ours(prior, size)
    return {"method": f"vecchia k={k} n0={n0}", "bytes_per_voxel": bytes_per_voxel, **row}


def ours(make: Callable[[tuple[int, int]], Any], size: tuple[int, int]) -> dict[str, float]:
    """``make`` gives the prior of Nside, shells; speeds are of ``size``."""
    prior = make(size)
    xi, g = torch.randn(SAMPLES, prior.n_excitations), torch.randn(1, *prior.shape)
    with torch.inference_mode():
        one = g.numel() / best_of_five(lambda: prior.apply(xi[:1]))
        row = speeds(
            best_of_five(lambda: make(size)),
            lambda: prior.apply(xi),
            lambda: prior.adjoint(g),
            SAMPLES * g.numel(),
        )
        exact = make(EXACT).to(dtype=torch.float64)
        grid = grids(*EXACT, NEAREST, FARTHEST)[-1]
        errors = covariance_errors(lambda unit: exact.apply(exact.adjoint(unit)), grid)
    return {"forward_one_voxels_per_second": one, **row, **errors}


def niftys(base: int) -> dict[str, Any]:
    speed, errors = nifty_speeds(base), nifty_errors(base)
    return {"method": "nifty.re", "base_nside": base, **speed, **errors}


def nifty_speeds(base: int) -> dict[str, float]:
    """The field of 8 samples is a vmap, the adjoint jax's."""
    import jax
    from jax import numpy as jnp

    started = time.process_time()
    prior, fine = nifty_field(EXACT, base)
    held = jax.block_until_ready(prior.matrices(jnp.float32))
    seconds = time.process_time() - started
    random = np.random.default_rng(0)
    one, eight = (
        [random.normal(size=(*samples, *shape)).astype(np.float32) for shape in prior.shapes]
        for samples in ((), (SAMPLES,))
    )
    g = random.normal(size=fine.shape).astype(np.float32)
    field, many = jax.jit(prior), jax.jit(jax.vmap(prior, (0, None)))
    back = jax.jit(lambda g, held: jax.linear_transpose(lambda xi: prior(xi, held), one)(g))
    jax.block_until_ready((field(one, held), many(eight, held), back(g, held)))
    single = g.size / best_of_five(lambda: jax.block_until_ready(field(one, held)))
    speed = speeds(
        seconds,
        lambda: jax.block_until_ready(many(eight, held)),
        lambda: jax.block_until_ready(back(g, held)),
        SAMPLES * g.size,
    )
    held_bytes = sum(np.asarray(part).nbytes for part in jax.tree.leaves(held))
    return {
        "forward_one_voxels_per_second": single,
        **speed,
        "bytes_per_voxel": held_bytes / g.size,
    }


def nifty_errors(base: int) -> dict[str, float]:
    import jax
    from jax import numpy as jnp

    prior, fine = nifty_field(EXACT, base)
    held = prior.matrices(jnp.float64)
    like = [jnp.zeros(shape) for shape in prior.shapes]

    def implied(g: Any) -> Any:
        def run(xi: Any) -> Any:
            return prior(xi, held)

        return run(*jax.linear_transpose(run, like)(g))

    run = jax.jit(jax.vmap(implied))
    return covariance_errors(lambda g: torch.tensor(np.asarray(run(g.numpy()))), fine)


@dataclass(frozen=True, eq=False)
class NiftyField:
    """NIFTy's prior on one of our grids: ``field(xi, field.matrices(dtype))``."""

    kernel: Any  # without matrices; it knows which of them are equal
    covariance: Callable[[Any, Any], Any]  # of two places, (3,), pc
    shapes: list[tuple[int, ...]]  # of the excitations of each level

    def matrices(self, dtype: Any) -> Any:
        """Made in float64, then of ``dtype``."""
        import jax

        made = self.kernel.replace(covariance=self.covariance).compress_matrices()
        return jax.tree.map(lambda m: m.astype(dtype) if m.dtype.kind == "f" else m, made)

    def __call__(self, xi: Any, held: Any) -> Any:
        from nifty.re.multi_grid.kernel import apply_kernel

        return apply_kernel(xi, kernel=held)[-1]


def nifty_field(
    shape: tuple[int, int], base: int, scale: float = SCALE, clumps: float = 0.0
) -> tuple[NiftyField, Grid]:
    """For Nside and shells; NIFTy's pixels need 64 bits, which jax has from here on."""
    import jax
    from jax import numpy as jnp
    from nifty.re import HPLogRGrid
    from nifty.re.multi_grid.kernel import ICRKernel

    jax.config.update("jax_enable_x64", True)

    def smooth(distance: Any) -> Any:
        x = np.sqrt(3) / scale * distance
        return (1 + x) * jnp.exp(-x)

    def covariance(one: Any, other: Any) -> Any:
        distance = jnp.linalg.norm(one - other, axis=0)
        return (1 - clumps) * smooth(distance) + clumps * smooth(2 * distance)

    coarse, *_, fine = levels = grids(*shape, NEAREST, FARTHEST, base)
    depth = len(levels) - 1
    shells = 2**depth * (coarse.shells - 5)  # it adds five to the base for its windows
    grid = HPLogRGrid(
        nside=fine.nside, r_min_shape=shells, r_min=NEAREST, r_max=FARTHEST, nside0=base
    )
    shapes = [tuple(map(int, grid.at(i).shape)) for i in range(depth + 1)]
    voxels = np.stack(np.meshgrid(*map(np.arange, fine.shape), indexing="ij"))
    places = np.moveaxis(np.asarray(grid.at(depth).index2coord(voxels)), 0, -1)
    if shapes != [level.shape for level in levels] or not np.allclose(places, fine.positions):
        raise RuntimeError(f"NIFTy's grid, of levels {shapes}, is not ours")
    # 594 matrices differ at 8 x 36; its default, a search among 10,000, takes ten times as long
    kernel = ICRKernel(grid, None).compress_indices(buffer_size=1000)
    return NiftyField(kernel, covariance, shapes), fine


def graphgp(k: int, n0: int) -> dict[str, Any]:
    """GraphGP with k neighbours and a dense base of n0 voxels."""
    import graphgp as gp
    import jax
    from jax import numpy as jnp

    def prior(shape: tuple[int, int], dtype: Any) -> tuple[Any, Any, Grid]:
        fine = grids(*shape, NEAREST, FARTHEST)[-1]
        bins = np.concatenate([[0.0], np.geomspace(1e-2, 3 * FARTHEST, 10_000)])
        values = matern(SCALE)(torch.tensor(bins)).numpy()
        values[0] += JITTER
        covariance = (jnp.asarray(bins, dtype), jnp.asarray(values, dtype))
        points = jnp.asarray(fine.positions.flatten(0, 1).numpy(), dtype)
        return gp.build_graph(points, n0=n0, k=k), covariance, fine

    def adjoint(graph: Any, covariance: Any, g: Any) -> Any:
        return jax.vjp(lambda xi: gp.generate(graph, covariance, xi), jnp.zeros_like(g))[1](g)[0]

    with jax.enable_x64(False):
        speed = speeds_of_graph(lambda: prior(EXACT, jnp.float32), adjoint)
    with jax.enable_x64(True):
        graph, covariance, fine = prior(EXACT, jnp.float64)

        def implied(graph: Any, covariance: Any, g: Any) -> Any:
            return gp.generate(graph, covariance, adjoint(graph, covariance, g))

        run = jax.jit(jax.vmap(implied, (None, None, 0)))

        def rows(units: Tensor) -> Tensor:
            found = run(graph, covariance, units.flatten(1).numpy())
            return torch.tensor(np.asarray(found)).view(units.shape)

        errors = covariance_errors(rows, fine)
    return {"method": f"graphgp k={k} n0={n0}", **speed, **errors}


def speeds_of_graph(
    build: Callable[[], tuple[Any, Any, Grid]], adjoint: Callable[[Any, Any, Any], Any]
) -> dict[str, float]:
    import graphgp as gp
    import jax

    started = time.process_time()
    graph, covariance, fine = build()
    jax.block_until_ready(graph.points)
    seconds = time.process_time() - started
    xi = np.random.default_rng(0).normal(size=(SAMPLES, math.prod(fine.shape))).astype(np.float32)
    field, back = jax.jit(gp.generate), jax.jit(adjoint)
    many = jax.jit(jax.vmap(gp.generate, (None, None, 0)))
    if not np.isfinite(field(graph, covariance, xi[0])).all():
        raise RuntimeError("GraphGP's field in float32 is not finite: it needs more JITTER")
    jax.block_until_ready((many(graph, covariance, xi), back(graph, covariance, xi[0])))
    single = xi[0].size / best_of_five(
        lambda: jax.block_until_ready(field(graph, covariance, xi[0]))
    )
    speed = speeds(
        seconds,
        lambda: jax.block_until_ready(many(graph, covariance, xi)),
        lambda: jax.block_until_ready(back(graph, covariance, xi[0])),
        xi.size,
    )
    return {"forward_one_voxels_per_second": single, **speed}


def speeds(
    seconds: float, apply: Callable[[], object], adjoint: Callable[[], object], count: int
) -> dict[str, float]:
    square = torch.ones(1024, 1024)
    return {
        "matrices_s": seconds,
        "forward_voxel_samples_per_second": count / best_of_five(apply),
        "adjoint_ms": 1e3 * best_of_five(adjoint),
        "matmul_1024_ms": 1e3 * best_of_five(lambda: square @ square),
    }


def covariance_errors(
    implied: Callable[[Tensor], Tensor], grid: Grid, rows: int = ROWS
) -> dict[str, float]:
    """Of rows of A A^T, which ``implied`` gives for unit vectors (rows, pixels, shells)."""
    kernel, position = matern(SCALE), grid.positions.flatten(0, 1)
    chosen = torch.randperm(len(position), generator=torch.Generator().manual_seed(0))[:rows]
    off = total = wrong = pairs = 0.0
    local, variances = [], []
    for some in chosen.split(16):
        unit = torch.zeros(len(some), len(position), dtype=torch.float64)
        unit[torch.arange(len(some)), some] = 1
        distance = torch.cdist(position[some], position)
        found, exact = implied(unit.view(-1, *grid.shape)).flatten(1), kernel(distance)
        error, near = (found - exact).abs(), (distance < 100) & (distance > 0)
        off, total = off + float(error.square().sum()), total + float(exact.square().sum())
        wrong, pairs = wrong + float(error[near].sum()), pairs + float(near.sum())
        local.append(((error * near).sum(1) / near.sum(1))[near.any(1)])
        variances.append(found[torch.arange(len(some)), some])
    variance = torch.cat(variances)
    return {
        "covariance_error": (off / total) ** 0.5,
        "local_error": float(torch.cat(local).mean()),
        "pair_error": wrong / pairs,
        "variance_min": float(variance.min()),
        "variance_mean": float(variance.mean()),
        "variance_max": float(variance.max()),
    }


if __name__ == "__main__":
    main()
