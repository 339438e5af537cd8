"""Gaia XP spectra: this zoo beside the truth, PCA, the published network and GaiaXPy, in one run.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.scatter_vae

`reference`: simulated stars, of configs/experiment/scatter_vae_reference.yaml. All are measured by
the full covariance of the errors; the published network is trained on its diagonal, as published.
chi2 is per degree of freedom: coefficients less the numbers that were fitted to a star. These lower
its `nll` too, by half a nat each if the model is right: `nll_minus_truth` may be negative.
`chi2_no_scatter_median` is as if none had been learned, as for PCA, which knows of none.
`cpu_seconds` and `wall_seconds` are those of the fit, on two threads. `full_stars_per_second`: of
the quickest epoch on full covariances, wall, with loading, forward, backward, optimizer.
`real`: the shipped `scatter_vae_sampled` on the 400 sampled spectra that it has held out, measured
in the modes of their errors (`physics.gaia_xp.sampled`), and PCA as of `coefficients`.
`errors`: PCA of 1,200 of the same spectra, none of those that `scatter_vae_sampled` has held out,
and the residuals of another 400, with all errors taken as independent: `chi2_median`, what it would
be if k components were the truth and errors correlated as `physics.gaia_xp.sampled` says
(`chi2_expected`), and how far correlations of residuals between samples follow from that
(`correlation`: of the two, over all pairs).
`coefficients`: the shipped `scatter_vae_real`, and `scatter_vae` of simulated stars, on the sources
of `xp_coefficients_real.fits` that the former has held out, whatever --seeds is. PCA is of its
training stars, fitted with the errors, with the variance of its numbers and an amplitude, as of
the models. `marginal_nll`: latent numbers are integrated over their prior, by Laplace, so that
models of other numbers of them compare.
`speed`: flux and errors of the same simulated stars at 343 wavelengths, per CPU second of one
thread, best of five. GaiaXPy's errors are those of the full covariance even where it is not asked
for correlations between wavelengths, which we do not give: `ratio` is to that. What either prepares
once (`start_seconds`) does not count; GaiaXPy does so in each call. Differences: the greatest of
|ours, in float32 / GaiaXPy's - 1|, where a flux exceeds 1% of the star's greatest; for the diagonal
row GaiaXPy's correlations are set to 0.
`matmul_ms`: of a 1024^3 float32 matrix product, to compare machines by.
"""

import argparse
import csv
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits does not count as one that works

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib import rc_context

from orrery import command_line, load
from orrery.evaluation.timing import best_of_five
from orrery.models.scatter_vae import AMPLITUDE_ERROR, ScatterVAE
from orrery.models.scatter_vae.inference import LatentPosterior, posterior
from orrery.models.scatter_vae.outputs import LOG_P_FLAGGED, misfit
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp, xp_mock
from orrery.physics.gaia_xp.sampled import error_correlations
from orrery.runs import data_for
from orrery.train import train

REAL = "xp_sampled_apogee_2000.npz"
COEFFICIENTS = "xp_coefficients_real.fits"
PCA = (6, 10, 20)
PAPER = ("model.preset=paper", "model.covariance=diagonal", "model.epochs=64",
         "data.batch_size=512", "model.lr=1e-3")  # fmt: skip
SMALL = ("model.epochs=4", "data.n_train=1500", "data.n_test=300", "data.batch_size=128")
SEED_OF_SAMPLED = 28  # of the split of scatter_vae_sampled
MAX_RESIDUAL = 3.0  # sigma, at which residuals are cut in their correlations
FAINT = 1e-2  # of the greatest flux
FULL = "full_stars_per_second"
SETS = ("reference", "real", "errors", "coefficients", "speed")
METHODS = (
    *(
        "truth",
        *(f"pca{k}" for k in PCA),
        "paper",
        "scatter_vae",
        "scatter_vae_real",
        "scatter_vae_sampled",
    ),
    *("gaiaxpy", "gaiaxpy_correlations", "scatter_vae_diagonal", "scatter_vae_correlated"),
)
COLUMNS = (
    *("set", "method", "seed", "n", "chi2_median", "chi2_per_coefficient_median"),
    *(
        "chi2_no_scatter_median",
        "marginal_nll",
        "misfits",
        "nll",
        "nll_minus_truth",
        "scatter_ratio_median",
        "coverage_68",
    ),
    *("coverage_95", "kl", "active_latents", "cpu_seconds", "wall_seconds", FULL),
    *("chi2_expected", "correlation", "spectra_per_second", "ratio", "start_seconds"),
    *("flux_difference", "error_difference", "matmul_ms"),
)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="by default benchmarks/scatter_vae.csv")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/xp"), help=f"of {REAL}")
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--small", action="store_true", help="a trial, whose figures mean nothing")
    options = parser.parse_args()
    small = SMALL if options.small else ()
    out = options.out or Path("outputs" if small else "", "benchmarks/scatter_vae.csv")
    for seed in options.seeds:
        for name in options.set:
            folder = Path(f"outputs/benchmarks/scatter_vae/{name}_{seed}").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            if name == "reference":
                rows = reference(seed, folder, small)
            elif name == "coefficients":
                rows = coefficients(options.data.resolve() / COEFFICIENTS)
            elif name == "errors":
                rows = errors(options.data.resolve() / REAL, seed)
            elif name == "real":
                rows = real(options.data.resolve() / REAL)
            else:
                rows = speed(seed, 64 if small else 512)
            for row in rows:
                row |= {"set": name, "seed": seed}
                update(out, row)
                print(*(f"{k}={text(row[k])}" for k in COLUMNS if k in row), flush=True)


def update(path: Path, row: Row) -> None:
    """Put a row into the table, in the place of the one with its set, method and seed."""
    rows: dict[tuple[int, int, int], Row] = {}
    old = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    for one in (*old, row):
        place = SETS.index(one["set"]), int(one["seed"]), METHODS.index(one["method"])
        rows[place] = {key: text(value) for key, value in one.items()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[place] for place in sorted(rows))


def text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# --- how good -------------------------------------------------------------------------------------


def reference(seed: int, folder: Path, small: tuple[str, ...]) -> Iterator[Row]:
    common = ("experiment=scatter_vae_reference", *small)
    ours = trained(seed, folder / "scatter_vae", *common)
    truth = {key: ours[f"{key}_true_model"] for key in COLUMNS if f"{key}_true_model" in ours}
    truth["chi2_per_coefficient_median"] = truth["chi2_median"]
    rows = [{"method": "truth", **truth}, *principal(ours, 110), chosen("scatter_vae", ours)]
    published = trained(seed, folder / "paper", *common, *PAPER, *small[:1])
    for row in (*rows, chosen("paper", published)):
        yield {**row, "nll_minus_truth": row["nll"] - truth["nll"]}


@torch.inference_mode()
def real(path: Path) -> Iterator[Row]:
    """The spectra that `scatter_vae_sampled` has held out, by it and by PCA."""
    model = load("scatter_vae_sampled")
    data = data_for(model.record, {"path": str(path), "split": "test"})
    (batch,) = data.prediction_batches()
    for k in PCA:
        yield {"method": f"pca{k}", **scores(model, principal_posterior(model, batch, k), batch)}
    yield {"method": "scatter_vae_sampled", **scores(model, model.posterior(batch), batch)}


def errors(path: Path, seed: int) -> Iterator[Row]:
    """Residuals of PCA, and the correlations that errors of sampled spectra should have."""
    with np.load(path) as file:
        x, e = (file[name].astype(float) for name in ("flux", "flux_error"))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED_OF_SAMPLED))
    rest = np.random.default_rng(seed).permutation(order[len(x) // 5 :].numpy())
    train, other = rest[: 3 * len(rest) // 4], rest[3 * len(rest) // 4 :]
    flux = x.mean(1, keepdims=True)
    unit = np.median(e[train] / flux[train], 0)
    y, e = x / flux / unit, e / flux / unit
    mean = y[train].mean(0)
    components = np.linalg.svd(y[train] - mean, full_matrices=False)[2]
    predicted = error_correlations(xp.SAMPLED)
    for k in PCA:
        fitted = np.vstack([components[:k], mean])  # and an amplitude
        r = np.empty((len(other), x.shape[1]))
        for row, i in enumerate(other):
            basis, _ = np.linalg.qr((fitted / e[i]).T)
            white = (y[i] - mean) / e[i]
            r[row] = white - basis @ (basis.T @ white)
        basis, _ = np.linalg.qr((fitted / np.median(e[other], 0)).T)
        left = np.eye(len(basis)) - basis @ basis.T
        ours = left @ predicted @ left
        sigma, pairs = np.sqrt(np.diag(ours)), np.triu_indices(len(ours), 1)
        found = np.corrcoef(r.clip(-MAX_RESIDUAL, MAX_RESIDUAL).T)
        alike = np.corrcoef(found[pairs], (ours / sigma[:, None] / sigma)[pairs])[0, 1]
        yield {
            "method": f"pca{k}", "n": len(other), "chi2_median": np.median((r**2).mean(1)),
            "chi2_expected": np.trace(ours) / len(ours), "correlation": alike,
        }  # fmt: skip


@torch.inference_mode()
def coefficients(path: Path) -> Iterator[Row]:
    """The stars that `scatter_vae_real` has held out, by it, by `scatter_vae` and by PCA."""
    ours, simulated = load("scatter_vae_real"), load("scatter_vae")
    data = data_for(ours.record, {"path": str(path), "split": "test"})
    (batch,) = data.prediction_batches()
    for k in PCA:
        yield {"method": f"pca{k}", **scores(ours, principal_posterior(ours, batch, k), batch)}
    for method, model in (("scatter_vae", simulated), ("scatter_vae_real", ours)):
        yield {"method": method, **scores(model, model.posterior(batch), batch)}


def principal_posterior(model: ScatterVAE, batch: Any, k: int) -> LatentPosterior:
    """Of the amplitude and k principal components of the training set of ``model``."""
    y, error = model.standardised(batch)
    along = model.components[:, :k] * model.component_std[:k]
    zero = model.center / model.scale

    def decode(z: torch.Tensor) -> torch.Tensor:
        shape = z[:, :k] @ along.T
        return shape + AMPLITUDE_ERROR * z[:, k:] * (shape + zero)

    white = model.whitening_of(torch.zeros_like(error), batch)
    start = torch.zeros(len(error), k + 1)
    return posterior(start, decode, y, error, lambda _: white, model.refine)


def scores(model: ScatterVAE, found: LatentPosterior, batch: Any) -> Row:
    """Of stars with all bands; ``misfits``: the fraction with p < 1e-4."""
    squares, dof, log_p = misfit(found, model.whitened_mask(batch["observed"]))
    n = found.residual.shape[1]
    log_errors = (batch["errors"] / batch["flux"][:, None]).log().sum(1)
    if model.in_modes:
        log_errors = torch.zeros_like(log_errors)
    residual = found.studentised().abs()
    marginal = found.marginal_nll(log_errors, torch.tensor(float(n)))
    return {
        "n": len(squares),
        "chi2_median": float((squares / dof).median()),
        "chi2_per_coefficient_median": float((squares / n).median()),
        "marginal_nll": float(marginal.double().mean()),
        "misfits": float((log_p < LOG_P_FLAGGED).double().mean()),
        "coverage_68": float((residual < 1).double().mean()),
        "coverage_95": float((residual < 1.959964).double().mean()),
    }


def trained(seed: int, folder: Path, *overrides: str) -> dict[str, Any]:
    """Train and judge the component as ``train.py`` does, on two threads; what is found."""
    timed = ("+callbacks.clock._target_=benchmarks.scatter_vae.Clock", "~callbacks.progress")
    words = ["model=scatter_vae", *overrides, f"seed={seed}", f"run_dir='{folder}'", *timed]
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        config = compose("train", words)
    torch.set_num_threads(2)
    train(config, words)
    metrics, seconds = ((folder / name).read_text() for name in ("metrics.json", Clock.FILE))
    return {**json.loads(metrics), **json.loads(seconds)}


def principal(found: Row, n: int) -> Iterator[Row]:
    """The rows of PCA in what a run of ours found; ``n`` numbers of a spectrum."""
    for k in PCA:
        chi2, nll = found[f"pca{k}_chi2_median"], found[f"pca{k}_nll"]
        row = {"method": f"pca{k}", "n": found["n"], "nll": nll, "chi2_no_scatter_median": chi2}
        yield row | {"chi2_median": chi2, "chi2_per_coefficient_median": chi2 * (1 - k / n)}


def chosen(method: str, found: Row) -> Row:
    row = {key: found[key] for key in COLUMNS if key in found and key != "spectra_per_second"}
    return {"method": method, **row, "matmul_ms": found["matmul_1024_ms"]}


class Clock(L.Callback):
    """How long a fit took, and its quickest epoch on full covariances: a file in its folder."""

    FILE = "clock.json"

    def on_fit_start(self, *_: Any) -> None:
        self.began, self.quickest = clock(), 0.0

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.first = clock()

    def on_train_batch_end(self, trainer: Any, model: Any, _: Any, batch: Any, i: int) -> None:
        warm = model.warm_up * model.fit.epochs
        full = "correlations_rp" in batch and trainer.current_epoch >= warm
        if full and trainer.is_last_batch:
            speed = len(batch["flux"]) * (i + 1) / (clock() - self.first)[1]
            self.quickest = max(self.quickest, speed)

    def on_fit_end(self, trainer: Any, model: Any) -> None:
        cpu, wall = clock() - self.began
        found = {"cpu_seconds": cpu, "wall_seconds": wall, FULL: self.quickest}
        found = {name: value for name, value in found.items() if value}
        (Path(trainer.default_root_dir) / self.FILE).write_text(json.dumps(found))


def clock() -> np.ndarray:
    """Seconds: CPU of this process and of the children that have ended, and wall."""
    return np.array([sum(os.times()[:4]), time.perf_counter()])


# --- how fast -------------------------------------------------------------------------------------


def speed(seed: int, n: int) -> Iterator[Row]:
    table = xp_mock.simulate(n, np.random.default_rng(seed))
    x, e = (
        torch.from_numpy(np.concatenate([table[f"{b}_{what}"] for b in xp.BANDS], 1)).float()
        for what in ("coefficients", "coefficient_errors")
    )
    packed = {b: torch.from_numpy(table[f"{b}_coefficient_correlations"]) for b in xp.BANDS}
    frame, spectra, square = as_gaiaxpy(table), Spectra(xp.SAMPLED), torch.ones(1024, 1024)

    def theirs(method: str, correlations: bool) -> Row:
        start = best_of_five(lambda: calibrated(frame[:2], correlations))
        rate = (n - 2) / (best_of_five(lambda: calibrated(frame, correlations)) - start)
        return {"method": method, "spectra_per_second": rate, "start_seconds": start}

    def ours(method: str, given: dict[str, torch.Tensor] | None) -> Row:
        start = best_of_five(lambda: Spectra(xp.SAMPLED))
        rate = n / best_of_five(lambda: (spectra.flux(x), spectra.error(e, given)))
        flux, error = calibrated(as_gaiaxpy(table, given is not None), False)
        of_flux = np.abs(spectra.flux(x).double().numpy() / flux - 1)
        of_error = np.abs(spectra.error(e, given).double().numpy() / error - 1)
        of_flux = of_flux[np.abs(flux) > FAINT * flux.max(1, keepdims=True)]
        row = {"method": method, "spectra_per_second": rate, "start_seconds": start}
        return row | {"flux_difference": of_flux.max(), "error_difference": of_error.max()}

    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [theirs("gaiaxpy", False), theirs("gaiaxpy_correlations", True)]
        rows += [ours("scatter_vae_diagonal", None), ours("scatter_vae_correlated", packed)]
        more = {"n": n, "matmul_ms": 1e3 * best_of_five(lambda: square @ square)}
    peer = rows[0]["spectra_per_second"]
    yield from (row | more | {"ratio": row["spectra_per_second"] / peer} for row in rows)


def calibrated(frame: Any, correlations: bool) -> tuple[np.ndarray, np.ndarray]:
    """Flux and its error (batch, k), by GaiaXPy, without what it prints."""
    with redirect_stdout(io.StringIO()), rc_context():  # its import changes figures
        from gaiaxpy import calibrate

        settings = {"save_file": False, "with_correlation": correlations}
        found, _ = calibrate(frame, sampling=xp.SAMPLED, **settings)
    return np.stack(found["flux"]), np.stack(found["flux_error"])


def as_gaiaxpy(table: dict[str, np.ndarray], correlated: bool = True) -> Any:
    """A simulation as the DataFrame that GaiaXPy takes."""
    import pandas as pd

    columns: Row = {"source_id": table["source_id"]}
    for band in xp.BANDS:
        n = table[f"{band}_coefficients"].shape[1]
        columns |= {f"{band}_standard_deviation": 1.0, f"{band}_n_parameters": n}
        for what in ("s", "_errors", "_correlations"):
            values = table[f"{band}_coefficient{what}"].astype(float)
            values *= correlated or what != "_correlations"
            columns[f"{band}_coefficient{what}"] = list(values)
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
