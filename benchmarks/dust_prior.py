"""The dust map's Gaussian-process prior beside that of NIFTy (nifty8.re), its reference.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.dust_prior > benchmarks/dust_prior.csv
    python -m benchmarks.dust_prior deep > benchmarks/dust_prior_deep.csv   # two and three levels

Speeds hold for Nside 16 x 68 shells (208,896 voxels) in float32 on one thread: the making of the
matrices, the field of 8 samples and the adjoint of one; process CPU time, best of five (NIFTy's
matrices: once, compiled before), beside a 1024^3 matrix product. Errors hold for Nside 8 x 36 and
float64, for a Matern-3/2 kernel of 100 pc: the covariance is A A^T, of which 512 rows drawn with
seed 0 are compared with the kernel. `covariance_error` is relative, in the Frobenius norm;
`local_error` is the mean over those voxels of the mean absolute error towards others within 100 pc,
`pair_error` the mean over all such pairs. Vecchia (`physics.gaussian_process.vecchia`) has no base.
Without nifty8, jax and healpy only our own rows are printed.
"""

import csv
import math
import os
import sys
import time
from collections.abc import Callable
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
DEEP, DEEP_ROWS = ((16, 68), (32, 132)), 96  # from a base of Nside 4


def main() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # XLA has no setting that holds it to one thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if sys.argv[1:] == ["deep"]:
        return write([deep(name, shape) for name in STENCILS for shape in DEEP])
    rows = [icr(name, stencil, base) for name, stencil in STENCILS.items() for base in (4, 2)]
    rows += [vecchia(k, n0) for k, n0 in ((20, 200), (48, 1000))]
    if all(map(find_spec, ("nifty8", "jax", "healpy"))):
        rows += [niftys(base) for base in (4, 2)]
    write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


STENCILS = {"icr wide": WIDE, "icr plain": PLAIN}


def icr(name: str, stencil: Stencil, base: int) -> dict[str, Any]:
    def levels(shape: tuple[int, int]) -> list[Grid]:
        return grids(*shape, NEAREST, FARTHEST, base)

    row = ours(lambda shape: ICR(levels(shape), matern(SCALE), stencil))
    bytes_per_voxel = memory(levels(FAST), stencil) / math.prod(levels(FAST)[-1].shape)
    return {"method": name, "base_nside": base, "bytes_per_voxel": bytes_per_voxel, **row}


def deep(name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Errors of a map that is more than one level above its exact base."""
    levels = grids(*shape, NEAREST, FARTHEST)
    gp = ICR(levels, matern(SCALE), STENCILS[name]).to(dtype=torch.float64)
    errors = covariance_errors(lambda unit: gp.apply(gp.adjoint(unit)), levels[-1], DEEP_ROWS)
    return {"method": name, "nside": shape[0], "levels": len(levels) - 1, **errors}


def vecchia(k: int, n0: int) -> dict[str, Any]:
    def prior(shape: tuple[int, int]) -> Vecchia:
        return Vecchia(grids(*shape, NEAREST, FARTHEST)[-1], matern(SCALE), k, n0)

    made = prior(FAST)
    bytes_per_voxel = made.nbytes / made.n_excitations
    row = ours(prior)
    return {"method": f"vecchia k={k} n0={n0}", "bytes_per_voxel": bytes_per_voxel, **row}


def ours(make: Callable[[tuple[int, int]], Any]) -> dict[str, float]:
    """``make`` gives the prior of Nside, shells."""
    prior = make(FAST)
    xi, g = torch.randn(SAMPLES, prior.n_excitations), torch.randn(1, *prior.shape)
    with torch.inference_mode():
        one = g.numel() / best_of_five(lambda: prior.apply(xi[:1]))
        row = speeds(
            best_of_five(lambda: make(FAST)),
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
    return {"method": "nifty8.re", "base_nside": base, **speed, **errors}


def nifty_speeds(base: int) -> dict[str, float]:
    """The field of 8 samples is a vmap, the adjoint jax's."""
    import jax
    from jax import numpy as jnp

    prior, fine = nifty_field(FAST, base, jnp.float32)
    build = jax.jit(lambda: prior.matrices())

    def matrices() -> Any:
        with jax.enable_x64(True):
            made = jax.block_until_ready(build())
        return jax.block_until_ready(jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), made))

    def excitations(*samples: int) -> list[Any]:
        shapes = [(*samples, *part.shape) for part in prior.domain]
        return [np.random.default_rng(0).normal(size=s).astype(np.float32) for s in shapes]

    held = matrices()
    started = time.process_time()
    matrices()
    seconds = time.process_time() - started
    one, eight = excitations(), excitations(SAMPLES)
    g = np.random.default_rng(0).normal(size=fine.shape).astype(np.float32)
    many = jax.jit(jax.vmap(prior, (0, None)))
    back = jax.jit(lambda g, held: jax.linear_transpose(lambda xi: prior(xi, held), one)(g))
    jax.block_until_ready((many(eight, held), back(g, held)))
    speed = speeds(
        seconds,
        lambda: jax.block_until_ready(many(eight, held)),
        lambda: jax.block_until_ready(back(g, held)),
        SAMPLES * g.size,
    )
    held_bytes = sum(np.asarray(matrix).nbytes for matrix in jax.tree.leaves(held))
    return {**speed, "bytes_per_voxel": held_bytes / g.size}


def nifty_errors(base: int) -> dict[str, float]:
    import jax
    from jax import numpy as jnp

    with jax.enable_x64(True):
        prior, fine = nifty_field(EXACT, base, jnp.float64)
        held = jax.jit(lambda: prior.matrices())()
        like = [jnp.zeros(part.shape) for part in prior.domain]

        def implied(g: Any) -> Any:
            def run(xi: Any) -> Any:
                return prior(xi, held)

            return run(*jax.linear_transpose(run, like)(g))

        run = jax.jit(jax.vmap(implied))
        return covariance_errors(lambda g: torch.tensor(np.asarray(run(g.numpy()))), fine)


def nifty_field(
    shape: tuple[int, int], base: int, dtype: Any, scale: float = SCALE, clumps: float = 0.0
) -> tuple[Any, Grid]:
    from jax import numpy as jnp
    from nifty8.re.refine.chart import HEALPixChart
    from nifty8.re.refine.healpix_field import ChartedHPField

    def smooth(distance: Any) -> Any:
        x = np.sqrt(3) / scale * distance
        return (1 + x) * jnp.exp(-x)

    def kernel(distance: Any) -> Any:
        return (1 - clumps) * smooth(distance) + clumps * smooth(2 * distance)

    coarse, *_, fine = levels = grids(*shape, NEAREST, FARTHEST, base)
    chart = HEALPixChart(
        min_shape=fine.shape,
        depth=len(levels) - 1,
        nonhp_rg2cart=lambda x: (jnp.exp(coarse.first + coarse.step * x[0]),),
        nonhp_cart2rg=lambda x: ((jnp.log(x[0]) - coarse.first) / coarse.step,),
    )
    centres = chart.nonhp_ind2cart((np.arange(fine.shells),), chart.depth)[0]
    if chart.shape != fine.shape or not np.allclose(centres, fine.centres, rtol=1e-5):
        raise RuntimeError("NIFTy's grid is not ours")
    return ChartedHPField(chart, kernel, dtype=dtype), fine


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
