"""The whole inference of the dust map beside that of NIFTy (nifty8.re), its reference.

pip install -e ".[bench]"
python -m benchmarks.dust
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

from benchmarks import dust_hmc
from benchmarks.dust_prior import nifty_field
from benchmarks.speed import best_of_five
from configs.command_line import quiet
from models.checkpoint import build
from models.dust import MOST, NEWTON
from models.dust.judged import Map, judged, known_stars, seen_voxels
from models.dust.prior import HYPER
from physics.extinction import mean_and_variance
from physics.icr import ICR, PLAIN, matern

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LEAST = 1e-2  # nats that a Newton step gains, or it is the last: ours and theirs


class Found(NamedTuple):
    """A posterior, and what it took."""

    log_rho: Tensor  # (samples, pixels, shells)
    amplitude: Tensor  # (samples,)
    facts: dict[str, float]


Infer = Callable[[int], Found]  # of a seed of the samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dust.csv"))
    parser.add_argument("--seeds", type=int, default=3, help="runs that are averaged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # XLA has no setting that holds it to one thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    quiet()
    settings, data = problem()
    model, _ = orrery(settings, data)
    judge = judge_of(model, data)
    methods: dict[str, Infer] = {
        "orrery": lambda seed: orrery({**settings, "seed": seed}, data)[1],
        "orrery, NIFTy's stencil": lambda seed: orrery({**settings, "seed": seed}, data, True)[1],
        "nifty8.re": nifty(model, data),
    }
    square = torch.ones(1024, 1024)
    rows: list[dict[str, Any]] = []
    for name, infer in methods.items():
        runs = [judge(infer(seed)) for seed in range(options.seeds)]
        row = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        for key in ("heldout_lpd", "coverage_68"):
            row[f"{key}_min"], row[f"{key}_max"] = (f(run[key] for run in runs) for f in (min, max))
        speed = 1e3 * best_of_five(lambda: square @ square)
        rows.append({"method": name, "runs": len(runs), **row, "matmul_1024_ms": speed})
        print(rows[-1], flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else f"{v:.4g}" for k, v in row.items()})


def problem() -> tuple[dict[str, Any], Any]:
    """Settings of the component, and its stars."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["model=dust", "experiment=dust_reference"])
    settings, of_data = (
        OmegaConf.to_container(config[name], resolve=True) for name in ("model", "data")
    )
    data = build(of_data)  # type: ignore[arg-type]
    data.setup("fit")
    return settings, data  # type: ignore[return-value]


def orrery(settings: dict[str, Any], data: Any, plain: bool = False) -> tuple[Any, Found]:
    """The component's own training, as `train.py` does it; ``plain``: with NIFTy's stencil."""
    data.setup("fit")
    began = time.process_time()
    model = build(settings)
    if plain:
        icr = ICR(model._processes.levels, matern(model.scale, model.nu), PLAIN)
        model._processes.scale, model._processes.made = model.scale, (icr, None)
    model.prepare(data)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=model.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    fitted = time.process_time()
    model.eval().calibrate(data)
    log_rho = model.rho().log()
    ended = time.process_time()
    (median, error), latents = model.amplitude, model.samples().detach()
    amplitude = (math.log(median) + error * latents[:, 1 - HYPER]).exp()
    facts = {"iterations": model.epochs, "pairs": model.pairs, "draws": len(latents),
             "seconds": ended - began, "fit_seconds": fitted - began,
             "compile_seconds": 0.0}  # fmt: skip
    return model.requires_grad_(False), Found(log_rho, amplitude, facts)


def nifty(model: Any, data: Any, **settings: Any) -> Infer:
    """The inference by NIFTy of what ``model`` infers; it is compiled in a first, short run."""
    run = nifty_run(model, data, **settings)
    cold, warm = (run(0, 1).facts["seconds"] for _ in range(2))

    def infer(seed: int) -> Found:
        found = run(seed, model.epochs)
        found.facts["compile_seconds"] = cold - warm
        return found

    return infer


def nifty_run(
    model: Any,
    data: Any,
    cg: dict[str, Any] | None = None,
    newton: dict[str, Any] | None = None,
    residual_map: str = "smap",
    real: str = "float32",
) -> Callable[[int, int], Found]:
    """Of a seed and so many outer iterations."""
    import jax
    import nifty8.re as jft
    from jax import numpy as jnp
    from jax.tree_util import Partial

    cg = cg or {"tol": model.tolerance, "maxiter": MOST}
    # what Newton's method would choose otherwise
    of_newton = {"absdelta": None, "resnorm": None, "norm_ord": 2, **cg}
    newton = newton or {"maxiter": NEWTON, "absdelta": LEAST, "xtol": 0.0}
    data.setup("fit")
    batch = data.training_batch()
    dtype = jnp.dtype(real)
    (mean, mean_error), (amplitude, error) = model.prior.mean, model.prior.amplitude
    shape, base = (model.grid.nside, model.grid.shells), model._processes.levels[0].nside
    field, _ = nifty_field(shape, base, dtype, model.scale)
    like = jax.ShapeDtypeStruct((), dtype)
    domain = jft.Vector({"xi": field.domain, "mean": like, "amplitude": like})
    build_matrices = jax.jit(lambda: field.matrices())

    def log_rho(x: Any, held: Any) -> Any:
        a = jnp.exp(math.log(amplitude) + error * x["amplitude"])
        return mean + mean_error * x["mean"] + a * field(x["xi"], held)

    def inference(held: Any, stars: Any, variance: Any) -> Any:
        pixel, lengths, extinction = stars

        def forward(x: Any) -> Any:
            return (jnp.exp(log_rho(x, held))[pixel] * lengths).sum(1)

        likelihood = jft.Gaussian(
            extinction,
            Partial(jnp.multiply, 1 / variance),
            Partial(jnp.multiply, jax.lax.rsqrt(variance)),
        ).amend(forward, domain=domain)
        return jft.OptimizeVI(
            likelihood, 1, kl_jit=False, residual_jit=False, residual_map=residual_map
        )

    @jax.jit
    def iterate(position: Any, key: Any, *given: Any) -> Any:
        """Samples about the position, then the position among its samples."""
        vi = inference(*given)
        state = vi.init_state(
            key,
            n_samples=model.pairs,
            sample_mode="linear_resample",
            draw_linear_kwargs={"cg_kwargs": cg},
            kl_kwargs={"minimize_kwargs": {**newton, "cg_kwargs": of_newton}},
        )
        samples, state = vi.update(jft.Samples(pos=position, samples=None, keys=None), state)
        return samples.pos, samples.samples, state.minimization_state.nhev

    @jax.jit
    def draw(position: Any, keys: Any, *given: Any) -> Any:
        drawn, _ = inference(*given).draw_linear_samples(position, keys, cg_kwargs=cg)
        return drawn.samples

    every_log_rho = jax.jit(jax.vmap(log_rho, (0, None)))

    def density(x: Any, held: Any) -> Tensor:
        return torch.tensor(np.asarray(every_log_rho(x, held), np.float32))

    def run(seed: int, iterations: int) -> Found:
        began = time.process_time()
        with jax.enable_x64(True):
            held = jax.block_until_ready(build_matrices())
        held = jax.tree.map(lambda m: jnp.asarray(m, dtype), held)
        found = model.stars(batch)
        stars = (
            jnp.asarray(found.pixel.numpy(), jnp.int32),
            *(jnp.asarray(x.numpy(), dtype) for x in (found.paths.lengths, batch["extinction"])),
        )

        def variance(x: Any) -> Any:
            rho = density(x, held).exp()[:, found.pixel]
            along = mean_and_variance(rho, found.paths, model.widths)[1].mean(0)
            return jnp.asarray((batch["extinction_error"].square() + along).numpy(), dtype)

        *keys, last = jax.random.split(jax.random.key(seed), iterations + 1)
        position = jft.zeros_like(domain)
        noise, products = variance(jax.tree.map(lambda x: x[None], position)), 0
        for key in keys:
            position, samples, n = iterate(position, key, held, stars, noise)
            noise, products = variance(samples), products + int(n)
        fitted = time.process_time()
        latents = draw(position, jax.random.split(last, model.draws), held, stars, noise)
        log_density = density(latents, held)
        ended = time.process_time()
        a = torch.tensor(np.asarray(latents["amplitude"], np.float32))
        facts = {"iterations": iterations, "pairs": model.pairs, "draws": len(a),
                 "seconds": ended - began, "fit_seconds": fitted - began,
                 "compile_seconds": 0.0}  # fmt: skip
        return Found(log_density, (math.log(amplitude) + error * a).exp(), facts)

    return run


def judge_of(model: Any, data: Any) -> Callable[[Found], dict[str, float]]:
    """Of a posterior its figures of merit, beside truth and held-out stars."""
    data.setup("fit")
    truth = data.true_density().log().float()
    seen = seen_voxels(model.stars(data.training_batch()), len(truth), model.widths)
    data.setup("test")
    held_out = known_stars(data)
    kernel = matern(model.scale, model.nu)

    def judge(found: Found) -> dict[str, float]:
        row = dict(found.facts)
        row |= dust_hmc.judged(found.log_rho, truth, seen, model, held_out)
        ours = Map(model.grid, model.gp, kernel, found.log_rho, model.stars, True, model.even)
        row |= judged(ours, data, held_out)
        del row["icr_covariance_error"]  # of our prior
        constant, best = row["heldout_lpd_constant"], row["heldout_lpd_truth"]
        row["gap_closed"] = (row["heldout_lpd"] - constant) / (best - constant)
        a = found.amplitude
        return row | {"amplitude": float(a.mean()), "amplitude_std": float(a.std())}

    return judge


if __name__ == "__main__":
    main()
