"""The inference of the dust map and that of NIFTy 9 (nifty.re), its reference.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.dust                                               # 24 min of CPU

The synthetic sky of configs/experiment/dust_reference.yaml with the component's own settings, in
float32 on one thread. Both methods have the same stars, voxels, likelihood and priors, as many
outer iterations, pairs and draws, variances that are computed in every iteration by the same
function, at most `MAX_NEWTON_STEPS` steps of Newton's method, of which the last gains less than
`MIN_GAIN`, and at most `MAX_CG_STEPS` steps of conjugate gradients, to a relative residual of
`TOLERANCE`. What differs:

- the prior: NIFTy's ICR refines 3 x 3 pixels x 3 shells, ours more
  (`physics.gaussian_process.icr`); the row of "NIFTy's stencil" is our inference with the prior of
  NIFTy to a thousandth;
- conjugate gradients: ours are preconditioned by the directions that data constrain most, and the
  residual is measured so; samples of both start from a draw of the prior, and are too
  wide where they have not converged; the row "orrery" has the component's own, smaller tolerance;
- the first iterations: ours have an inflated noise variance;
- samples: those of the row "orrery" follow the data (`mgvi.nonlinear_update`), and all of later
  iterations are kept; of "mgvi", as NIFTy's, they are linear pairs about the last mean;
- the mean: that of mgvi is averaged over the later iterations, NIFTy's is that of the last;
- the metric of many samples: ours is a matrix per pixel, NIFTy linearises the model for each.

NIFTy's whole iteration is one jit, with a map over samples that is one at a time (smap; vmap takes
longer here). `seconds` are CPU, the stars being there: `matrices_seconds`, the iterations of
`iteration_seconds` each (`fit_seconds` up to there) and final draws. NIFTy's are those of a
compiled program; `compile_seconds` is by how much a first, short run takes longer than a second.
Its matrices (`dust_prior.nifty_field`) are made once for all seeds, and counted in each. Numbers
are means over ``--seeds`` of the samples, of which `_min` and `_max` are the range; coverage is
that of the truth in voxels that stars are behind, `coverage_68_expected` that of a perfect
posterior of as many draws, and `gap_closed` the share of the way from the best constant density to
the truth.
"""

import argparse
import csv
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from orrery import command_line
from orrery.benchmarks.dust_hmc import score_of
from orrery.benchmarks.dust_prior import nifty_field
from orrery.checkpoint import build
from orrery.command_line import silence_lightning
from orrery.evaluation.timing import best_of_five
from orrery.models.dust import MAX_NEWTON_STEPS
from orrery.models.dust.prior import N_HYPER
from orrery.models.dust.variational import MAX_CG_STEPS
from orrery.physics.dust.extinction import mean_and_variance
from orrery.physics.gaussian_process.icr import ICR, PLAIN

TOLERANCE = 0.1  # of conjugate gradients
MIN_GAIN = 1e-2  # nats that a Newton step gains, or it is the last: ours and theirs


class Result(NamedTuple):
    """A posterior, and its cost."""

    log_rho: Tensor  # (samples, pixels, shells from the Sun)
    amplitude: Tensor  # (samples,)
    costs: dict[str, float]


Infer = Callable[[int], Result]  # of the seed of the samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dust.csv"))
    parser.add_argument("--seeds", type=int, default=3, help="runs that are averaged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # XLA has no setting that holds it to one thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    silence_lightning()
    settings, data = problem()
    model, _ = orrery(settings, data)
    score = score_of(model, data)
    mgvi = {**settings, "inference": "mgvi", "tolerance": TOLERANCE}
    methods: dict[str, Infer] = {
        "orrery": lambda seed: orrery({**settings, "seed": seed}, data)[1],
        "orrery, mgvi": lambda seed: orrery({**mgvi, "seed": seed}, data)[1],
        "orrery, mgvi, NIFTy's stencil": lambda seed: orrery({**mgvi, "seed": seed}, data, True)[1],
        "nifty.re": nifty(model, data, clumps=settings["clumps"]),
    }
    square = torch.ones(1024, 1024)
    rows: list[dict[str, Any]] = []
    for name, infer in methods.items():
        results = [infer(seed) for seed in range(options.seeds)]
        mirrored = name != "orrery"
        runs = [one.costs | score(one.log_rho, one.amplitude, mirrored) for one in results]
        row = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        for key in ("heldout_lpd", "coverage_68"):
            row[f"{key}_min"], row[f"{key}_max"] = (f(run[key] for run in runs) for f in (min, max))
        speed = 1e3 * best_of_five(lambda: square @ square)
        rows.append({"method": name, "runs": len(runs), **row, "matmul_1024_ms": speed})
        print(rows[-1], flush=True)
        write(options.out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else f"{v:.4g}" for k, v in row.items()})


def problem() -> tuple[dict[str, Any], Any]:
    """Settings of the component, and its stars."""
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        config = compose("train", ["model=dust", "experiment=dust_reference"])
    settings, data_settings = (
        OmegaConf.to_container(config[name], resolve=True) for name in ("model", "data")
    )
    data = build(data_settings)  # type: ignore[arg-type]
    data.setup("fit")
    return settings, data  # type: ignore[return-value]


def orrery(settings: dict[str, Any], data: Any, plain: bool = False) -> tuple[Any, Result]:
    """The component's own training, as `train.py` does it; ``plain``: with NIFTy's stencil."""
    data.setup("fit")
    began = time.process_time()
    model = build(settings)
    if plain:
        icr = ICR(model.processes.levels, model.kernel(model.scale), PLAIN)
        model.processes.scale, model.processes.current = model.scale, (icr, None)
    model.prepare(data)
    prepared = time.process_time()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=model.fit.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    fitted = time.process_time()
    model.eval().calibrate(data)
    log_rho = model.rho_from_sun().log()
    ended = time.process_time()
    (median, error), latents = model.amplitude, model.samples().detach()
    amplitude = (math.log(median) + error * latents[:, 1 - N_HYPER]).exp()
    costs = {"iterations": model.fit.epochs, "pairs": model.pairs, "draws": len(latents),
             "seconds": ended - began, "fit_seconds": fitted - began,
             "matrices_seconds": prepared - began,
             "iteration_seconds": (fitted - prepared) / model.fit.epochs,
             "compile_seconds": 0.0}  # fmt: skip
    return model.requires_grad_(False), Result(log_rho, amplitude, costs)


def nifty(model: Any, data: Any, **settings: Any) -> Infer:
    """NIFTy's inference of the same posterior; it is compiled in a first, short run."""
    run = nifty_run(model, data, **settings)
    cold, warm = (run(0, 1).costs["seconds"] for _ in range(2))

    def infer(seed: int) -> Result:
        result = run(seed, model.fit.epochs)
        result.costs["compile_seconds"] = cold - warm
        return result

    return infer


def nifty_run(
    model: Any,
    data: Any,
    cg: dict[str, Any] | None = None,
    newton: dict[str, Any] | None = None,
    clumps: float = 0.0,
) -> Callable[[int, int], Result]:
    """Of a seed and so many outer iterations."""
    import jax
    import nifty.re as jft
    from jax import numpy as jnp
    from jax.tree_util import Partial

    cg = cg or {"tol": TOLERANCE, "maxiter": MAX_CG_STEPS}
    # in place of those that Newton's method would set
    newton_cg = {"absdelta": None, "resnorm": None, "norm_ord": 2, **cg}
    newton = newton or {"maxiter": MAX_NEWTON_STEPS, "absdelta": MIN_GAIN, "xtol": 0.0}
    data.setup("fit")
    batch = data.training_batch()
    dtype = jnp.float32
    (mean, mean_error), (amplitude, error) = model.prior.mean, model.prior.amplitude
    shape, base = (model.grid.nside, model.grid.shells), model.processes.levels[0].nside
    began = time.process_time()
    field, _ = nifty_field(shape, base, model.scale, clumps)
    matrices = jax.block_until_ready(field.matrices(dtype))
    matrices_seconds = time.process_time() - began
    like = jax.ShapeDtypeStruct((), dtype)
    excitations = [jax.ShapeDtypeStruct(size, dtype) for size in field.shapes]
    domain = jft.Vector({"xi": excitations, "mean": like, "amplitude": like})

    def log_rho(x: Any, held: Any) -> Any:
        a = jnp.exp(math.log(amplitude) + error * x["amplitude"])
        return mean + mean_error * x["mean"] + a * field(x["xi"], held)

    def inference(held: Any, stars: Any, variance: Any) -> Any:
        pixels, weights, lengths, extinction = stars

        def forward(x: Any) -> Any:
            around = jnp.exp(log_rho(x, held))[pixels]  # (stars, 4, shells)
            return ((around * weights[..., None]).sum(1) * lengths).sum(1)

        likelihood = jft.Gaussian(
            extinction,
            Partial(jnp.multiply, 1 / variance),
            Partial(jnp.multiply, jax.lax.rsqrt(variance)),
        ).amend(forward, domain=domain)
        return jft.OptimizeVI(
            likelihood, 1, jit=False, linear_minimizer_jit=False, residual_map="smap"
        )

    @jax.jit
    def iterate(position: Any, key: Any, *given: Any) -> Any:
        """Samples about the position, then the position among its samples."""
        vi = inference(*given)
        state = vi.init_state(
            key,
            n_samples=model.pairs,
            sample_mode="linear_resample",
            draw_linear_kwargs={"cg": jft.static_cg, "cg_kwargs": cg},
            kl_kwargs={
                "minimize": jft.optimize._static_newton_cg,  # the public one has no state
                "minimize_kwargs": {**newton, "cg_kwargs": newton_cg},
            },
        )
        samples, _ = vi.update(jft.Samples(pos=position, samples=None, keys=None), state)
        return samples.pos, samples.samples

    @jax.jit
    def draw(position: Any, keys: Any, *given: Any) -> Any:
        drawn, _ = inference(*given).draw_linear_samples(
            position, keys, cg=jft.static_cg, cg_kwargs=cg
        )
        return drawn.samples

    every_log_rho = jax.jit(jax.vmap(log_rho, (0, None)))

    def density(x: Any, held: Any) -> Tensor:
        of_map = torch.tensor(np.asarray(every_log_rho(x, held)))
        return torch.nn.functional.pad(of_map, (1, 0), value=-math.inf)  # nearer is no dust

    def run(seed: int, iterations: int) -> Result:
        began, held = time.process_time(), matrices
        placed = model.stars(batch)
        lengths = placed.paths.lengths[:, 1:]
        stars = (
            jnp.asarray(placed.between.pixels.numpy(), jnp.int32),
            *(jnp.asarray(x.numpy(), dtype) for x in (placed.between.weights, lengths)),
            jnp.asarray(batch["extinction"].numpy(), dtype),
        )

        def variance(x: Any) -> Any:
            rho = placed.along(density(x, held).exp())
            along = mean_and_variance(rho, placed.paths, model.widths)[1].mean(0)
            return jnp.asarray((batch["extinction_error"].square() + along).numpy(), dtype)

        *keys, last = jax.random.split(jax.random.key(seed), iterations + 1)
        position = jft.zeros_like(domain)
        noise = variance(jax.tree.map(lambda x: x[None], position))
        for key in keys:
            position, samples = iterate(position, key, held, stars, noise)
            noise = variance(samples)
        fitted = time.process_time()
        latents = draw(position, jax.random.split(last, model.draws), held, stars, noise)
        log_density = density(latents, held)
        ended = time.process_time()
        a = torch.tensor(np.asarray(latents["amplitude"]))
        costs = {"iterations": iterations, "pairs": model.pairs, "draws": len(a),
                 "seconds": matrices_seconds + ended - began,
                 "fit_seconds": matrices_seconds + fitted - began,
                 "matrices_seconds": matrices_seconds,
                 "iteration_seconds": (fitted - began) / iterations,
                 "compile_seconds": math.nan}  # fmt: skip
        return Result(log_density, (math.log(amplitude) + error * a).exp(), costs)

    return run


if __name__ == "__main__":
    main()
