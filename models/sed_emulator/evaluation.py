"""Metrics of the emulator against the generator, and of fitted galaxies against true parameters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Data, Evaluation, Metrics, PredictedRows, or_nothing
from orrery.models.sed_emulator import figure_data
from orrery.models.sed_emulator.covariance import Errors
from orrery.models.sed_emulator.outputs import BIT
from orrery.models.sed_emulator.spectra import AT_ONCE, SpectrumNetwork
from orrery.physics.sps.indices import d4000, h_delta
from orrery.physics.sps.population import fine_wavelengths
from orrery.physics.sps.synthesis import Synthesis

if TYPE_CHECKING:
    from orrery.models.sed_emulator import SedEmulator

# beyond which galaxies are rare in the prior
QUIESCENT, DUSTY, METAL_POOR = -10.5, 1.5, -1.5  # log sSFR 1/yr, dust2, logzsol
MIN_RARE = 50
OUTLIER_Z = 0.15  # |dz| / (1 + z)
CLIP = 5.0  # typical residuals, beyond which one counts no more in a correlation
TIMED_SEDS = 4096
TIMED_GALAXIES = {"laplace": 512, "ensemble": 32}
SPECTRA = 2000  # galaxies whose spectra are compared
OPTICAL = (3000.0, 7000.0)  # Angstrom
STRONG_LINE = 0.01  # of the brightest line: fainter ones are not compared
NO_ANSWER = BIT["no_photometry"] | BIT["outside_box"]


@runtime_checkable
class HasExactMagnitudes(Protocol):
    """Data that can be drawn by the exact generator."""

    def exact_magnitudes(self) -> tuple[Tensor, Tensor] | None:
        """Parameters (n, p) and exact magnitudes (n, bands) of galaxies drawn from the prior.

        They are apart from those of training; None if the data are a catalogue.
        """


@torch.no_grad()
def evaluate(model: "SedEmulator", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of the emulator, on a simulation, and of fits where the truth is known."""
    evaluation = Evaluation(fit_metrics(model, rows))
    exact = data.exact_magnitudes() if isinstance(data, HasExactMagnitudes) else None
    arrays: dict[str, np.ndarray] = {}
    if exact is not None:
        parameters, magnitudes = (x.to(model.surviving) for x in exact)
        residual = emulate(model, parameters) - magnitudes
        errors = _errors(model, parameters)
        evaluation.metrics |= emulator_metrics(residual, errors)
        evaluation.metrics |= rare_metrics(model, parameters, residual)
        arrays = {"residual": residual.cpu().numpy()}
        if isinstance(model.network, SpectrumNetwork):
            generator: Any = data
            few = parameters[:SPECTRA]
            evaluation.metrics |= spectrum_metrics(model.network, generator.synthesis, few)
    if not evaluation.metrics:
        return evaluation
    evaluation.figures = or_nothing("figures", lambda: figure_data.figure_data(model, rows, arrays))
    parameters = model.priors.draw(TIMED_SEDS, torch.Generator().manual_seed(0)).to(model.surviving)
    evaluation.timings = {"seds_per_second": (lambda: model.emulate(parameters), TIMED_SEDS)}
    if isinstance(network := model.network, SpectrumNetwork):
        evaluation.timings["spectra_per_second"] = (
            lambda: [network.rest_spectrum(part) for part in parameters.split(AT_ONCE)],
            TIMED_SEDS,
        )
    batch = next(data.prediction_batches())
    device = model.surviving.device
    n = TIMED_GALAXIES[model.inference]
    first = {name: values[:n].to(device) for name, values in batch.items()}
    evaluation.timings["galaxies_per_second"] = (
        lambda: model.predict_step(first),
        len(first["flux"]),
    )
    evaluation.smaller_is_better = frozenset(
        (
            "sigma68_mag",
            "p997_mag",
            "worst_band_sigma68_mag",
            "mean_abs_residual_correlation",
            "median_pixel_error",
        )
    )
    return evaluation


def emulate(model: "SedEmulator", parameters: Tensor) -> Tensor:
    """Magnitudes of many galaxies, in parts."""
    return torch.cat([model.emulate(part) for part in parameters.split(8192)])


def _errors(model: "SedEmulator", parameters: Tensor) -> Errors:
    parts = [model.errors(part) for part in parameters.split(8192)]
    return Errors(*(torch.cat(each) for each in zip(*parts, strict=True)))


def emulator_metrics(residual: Tensor, errors: Errors) -> Metrics:
    """Of residuals (n, bands), mag, and their predicted covariance."""
    size = residual.abs()
    sigma = _level(size, 0.68)
    colours = residual.diff(dim=1) / errors.colour_variance().sqrt()
    metrics = {
        "n_seds": len(residual),
        "sigma68_mag": float(sigma.median()),
        "p997_mag": float(_level(size, 0.997).median()),
        "worst_band_sigma68_mag": float(sigma.max()),
        "emulator_coverage_68": float((size < errors.total().sqrt()).float().mean()),
    }
    if residual.shape[1] > 1:
        correlation = residual_correlation(residual.cpu().numpy())
        n = len(correlation)
        off = (np.abs(correlation).sum() - n) / (n * (n - 1))
        metrics["mean_abs_residual_correlation"] = float(off)
        metrics["colour_whitened_sigma"] = float(_level(colours.abs(), 0.6827).median())
    return metrics


def _level(values: Tensor, level: float) -> Tensor:
    """Quantile (bands,) of (n, bands)."""
    k = max(1, min(len(values), round(level * len(values))))
    return values.kthvalue(k, dim=0).values


def residual_correlation(residual: np.ndarray) -> np.ndarray:
    """Correlation matrix (bands, bands) of residuals (n, bands), robust to outliers."""
    scale = np.quantile(np.abs(residual), 0.68, axis=0)
    return np.asarray(np.corrcoef((residual / scale).clip(-CLIP, CLIP).T))


def rare_metrics(model: "SedEmulator", parameters: Tensor, residual: Tensor) -> Metrics:
    """sigma_68 in the median band of galaxies that are rare in the prior."""
    quantities = model.quantities(parameters)
    masks = {
        "quiescent": quantities["log_ssfr"] < QUIESCENT,
        "dusty": quantities["dust2"] > DUSTY,
        "metal_poor": quantities["logzsol"] < METAL_POOR,
    }
    return {
        f"sigma68_{name}_mag": float(_level(residual[mask].abs(), 0.68).median())
        for name, mask in masks.items()
        if int(mask.sum()) >= MIN_RARE
    }


def relative_errors(network: SpectrumNetwork, synthesis: Synthesis, parameters: Tensor) -> Tensor:
    """Emulated over exact spectra on the fine grid, minus 1: (n, fine pixels)."""
    parts = [
        network.rest_spectrum(part) / synthesis.fine_spectrum(part)[0] - 1
        for part in parameters.split(AT_ONCE)
    ]
    return torch.cat(parts)


def spectrum_metrics(network: SpectrumNetwork, synthesis: Synthesis, parameters: Tensor) -> Metrics:
    """Of spectra at rest, behind dust, against the generator's of parameters (n, p).

    Errors of pixels are relative, at 3,000 to 7,000 A; ``pca_``: of the basis alone, without the
    network. Indices: see `physics.sps.indices`.
    """
    wavelength = fine_wavelengths().to(parameters)
    optical = (wavelength >= OPTICAL[0]) & (wavelength <= OPTICAL[1])
    network.learn_from(synthesis.population)
    sizes: dict[str, list[Tensor]] = {"pixel": [], "pca_pixel": []}
    changes: dict[str, list[Tensor]] = {"d4000": [], "h_delta": []}
    line_errors = []
    for part in parameters.split(AT_ONCE):
        exact, lines = synthesis.fine_spectrum(part)
        for name, light in (
            ("pixel", network.light(part)),
            ("pca_pixel", network.exact_light(part)),
        ):
            found = network.rest_spectrum(part, light)
            sizes[name].append((found / exact - 1).abs()[:, optical])
        emulated = network.rest_spectrum(part)
        for name, index in (("d4000", d4000), ("h_delta", h_delta)):
            difference = index(wavelength, emulated) - index(wavelength, exact)
            changes[name].append(difference.abs())
        if network.lines:
            strong = lines > STRONG_LINE * lines.amax(1, keepdim=True)
            line_errors.append((network.rest_lines(part) / lines - 1).abs()[strong])
    metrics: Metrics = {"n_spectra": len(parameters)}
    for name, parts in sizes.items():
        values = torch.cat(parts).flatten()
        metrics |= {f"median_{name}_error": _quantile(values, 0.5)}
        metrics |= {f"p99_{name}_error": _quantile(values, 0.99)}
    for name, parts in changes.items():
        values = torch.cat(parts)
        metrics |= {
            f"sigma68_{name}": _quantile(values, 0.68),
            f"p99_{name}": _quantile(values, 0.99),
        }
    if line_errors:
        values = torch.cat(line_errors)
        metrics |= {"median_line_error": _quantile(values, 0.5)}
        metrics |= {"p99_line_error": _quantile(values, 0.99)}
    return metrics


def _quantile(values: Tensor, level: float) -> float:
    """Of any number of values (n,)."""
    return float(_level(values[:, None], level)[0])


def fit_metrics(model: "SedEmulator", rows: Mapping[str, np.ndarray]) -> Metrics:
    """Of fitted galaxies whose true parameters are known, or their redshifts."""
    names = [
        n
        for n in (*model.names, *model.quantity_texts)
        if np.isfinite(rows.get(f"{n}_true", np.nan)).any()
    ]
    metrics: Metrics = {}
    coverage, bias = [], []
    answered = (rows["flags"] & NO_ANSWER) == 0
    for name in names:
        true, middle = rows[f"{name}_true"].astype(float), rows[name].astype(float)
        low, high = rows[f"{name}_q16"].astype(float), rows[f"{name}_q84"].astype(float)
        # a redshift that is known is not inferred
        known = answered & np.isfinite(true) & np.isfinite(middle) & (high > low)
        if not known.any():
            continue
        metrics.setdefault("n", int(known.sum()))
        true, middle, low, high = (x[known] for x in (true, middle, low, high))
        inside = float(np.mean((true > low) & (true < high)))
        offset = float(np.median((middle - true) / (0.5 * (high - low))))
        metrics |= {f"coverage_68_{name}": inside, f"offset_{name}": offset}
        coverage.append(inside)
        bias.append(abs(offset))
        error = middle - true
        if name == "zred":
            scaled = error / (1 + true)
            centre = np.median(scaled)
            metrics["zred_sigma_mad"] = float(1.4826 * np.median(np.abs(scaled - centre)))
            metrics["zred_outliers"] = float(np.mean(np.abs(scaled) > OUTLIER_Z))
        else:
            metrics[f"sigma68_{name}"] = float(np.quantile(np.abs(error), 0.68))
    if coverage:
        metrics["coverage_68"] = float(np.mean(coverage))
        metrics["largest_offset"] = float(np.max(bias))
    return metrics
