"""How well binned profiles are fitted: chi^2 of the best model, replicated data, model bands."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.special import gammaincc

from orrery.models.gc_emulator.figure_data import QUANTILES, Arrays, Points, profile_arrays
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.models.gc_emulator.start import newton
from orrery.physics.clusters.cluster_profiles import model_profile

REPLICATED_DRAWS = 100  # of each chain, from which data are replicated
BAND_RADII = 120
MAX_FRACTION_BELOW_EXTRA = 0.2  # of the counts below the extra error, without a warning
MAX_DISTANCE_PULL_SIGMA = 2.0  # from the mean of its prior, without a warning
MIN_CHI2_PROBABILITY = 1e-3  # of chi^2 or more: below it a model does not fit


class GoodnessOfFit(NamedTuple):
    """What is reported besides the draws."""

    metrics: dict[str, float]
    warnings: list[str]
    groups: dict[str, Arrays]  # of ArviZ
    figure: Arrays


def goodness_of_fit(posterior: ProfilesPosterior, u: Tensor, seed: int) -> GoodnessOfFit:
    """``u`` (1, chains, draws, dim): the draws of HMC."""
    metrics, misfits = _best_fit(posterior, u)
    thinned = u[0, :, :: max(1, u.shape[2] // REPLICATED_DRAWS)]
    named = {name: values.flatten() for name, values in posterior.named(thinned).items()}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        groups = _replicated(posterior, named, thinned.shape[:2], generator)
        figure = _figure(posterior, named)
    return GoodnessOfFit(metrics, misfits + _distance_pull(u, posterior), groups, figure)


def _best_fit(posterior: ProfilesPosterior, u: Tensor) -> tuple[dict[str, float], list[str]]:
    """chi^2 of each profile at the maximum of the posterior, and warnings of misfits."""
    draws = u.flatten(1, 2)
    with torch.no_grad():
        thinned = draws[:, :: max(1, draws.shape[1] // 500)]
        start = thinned[:, posterior.log_prob(thinned).argmax(1)]
    best = newton(posterior.log_prob, start)
    named = {name: value.flatten() for name, value in posterior.named(best).items()}
    metrics = {"log_posterior_best": float(posterior.log_prob(best))}
    metrics |= {f"{name}_best": float(value) for name, value in named.items()}
    warnings = []
    total, n = 0.0, 0
    for profile, fit in zip(posterior.profiles, posterior.compare(named), strict=True):
        chi2 = fit.chi2.detach()
        metrics[f"chi2_{profile.name}"] = float(chi2)
        metrics[f"n_{profile.name}"] = len(profile.r)
        total, n = total + float(chi2), n + len(profile.r)
        probability = gammaincc(torch.tensor(len(profile.r) / 2).to(chi2), chi2 / 2)
        if float(probability) < MIN_CHI2_PROBABILITY:
            warnings.append(
                f"the model does not fit {profile.name}: chi^2 is {float(chi2):.0f} for "
                f"{len(profile.r)} points"
            )
    metrics |= {"chi2": total, "n": n, "chi2_reduced": total / max(1, n - posterior.n_globals)}
    if warnings:
        warnings.append(
            "errors of parameters are too small where a model does not fit: it has stars of a "
            "single mass, and no rotation"
        )
    return metrics, warnings + _below_extra_error(posterior, metrics)


def _below_extra_error(posterior: ProfilesPosterior, metrics: Mapping[str, float]) -> list[str]:
    """A warning of counts below the extra error, which also stands for what the model lacks."""
    warnings = []
    for profile in posterior.profiles:
        if profile.kind == "density":
            extra = 10 ** metrics["log10_extra_best"]
            below = profile.value < extra
            if float(below.double().mean()) > MAX_FRACTION_BELOW_EXTRA:
                warnings.append(
                    f"the extra error of {profile.name}, {extra:.2g} per arcmin2, exceeds "
                    f"{int(below.sum())} of its {len(below)} counts, all beyond "
                    f"{float(profile.r[below].min()):.2g} arcmin: these have little weight"
                )
    return warnings


def _distance_pull(u: Tensor, posterior: ProfilesPosterior) -> list[str]:
    """A warning of a distance far from the mean of its prior."""
    pull = float(u[..., posterior.distance_index].mean())
    if abs(pull) < MAX_DISTANCE_PULL_SIGMA:
        return []
    return [
        f"the distance is {abs(pull):.1f} sigma {'below' if pull < 0 else 'above'} its prior of "
        f"{posterior.distance[0]:g} ± {posterior.distance[1]:.2g} kpc"
    ]


def _replicated(
    posterior: ProfilesPosterior,
    named: Mapping[str, Tensor],
    shape: torch.Size,
    generator: torch.Generator,
) -> dict[str, Arrays]:
    """ArviZ groups: the profiles as observed, and replicated from each draw with their noise."""
    observed, constant, replicated = {}, {}, {}
    for profile, fit in zip(posterior.profiles, posterior.compare(named), strict=True):

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        model = fit.model
        if profile.kind == "density":
            width = 1 / (fit.model / fit.amplitude / fit.error).norm(dim=1, keepdim=True)
            model = model * (1 + width / fit.amplitude * normal(width))
            values = model + fit.error * normal(model)
        else:  # a value below the model deviates by its upper error
            below = torch.rand(model.shape, generator=generator, dtype=model.dtype)
            below = below * (profile.up + profile.down) < profile.up
            deviation = normal(model).abs()
            values = model + torch.where(below, -profile.up, profile.down) * deviation
        observed[profile.name] = profile.value.numpy()
        replicated[profile.name] = values.view(*shape, -1).numpy()
        for quantity in ("r", "down", "up"):
            constant[f"{profile.name}_{quantity}"] = getattr(profile, quantity).numpy()
    return {
        "posterior_predictive": replicated,
        "observed_data": observed,
        "constant_data": constant,
    }


def _figure(posterior: ProfilesPosterior, named: Mapping[str, Tensor]) -> Arrays:
    """The profiles, and for each kind of them a band of models.

    Of number densities the first sets the amplitude of the band, and the others are scaled to it.
    """
    profiles, fits = posterior.profiles, posterior.compare(named)
    amplitude: Tensor | None = None  # of the first number density
    points = []
    for profile, fit in zip(profiles, fits, strict=True):
        scale = 1.0
        if profile.kind == "density":
            amplitude = fit.amplitude if amplitude is None else amplitude
            scale = float((amplitude / fit.amplitude).median())
        value, down, up = (scale * x.numpy() for x in (profile.value, profile.down, profile.up))
        # errors with the extra one, of the side on which the median model lies
        error = scale * fit.error.median(0).values.numpy()
        points.append(Points(profile.name, profile.kind, profile.r.numpy(), value, down, up, error))
    bands = {}
    for kind in dict.fromkeys(profile.kind for profile in profiles):
        r = torch.cat([profile.r for profile in profiles if profile.kind == kind])
        low, high = float(r[r > 0].min()), float(r.max())
        grid = np.geomspace(0.8 * low, 1.1 * high, BAND_RADII)
        projected = posterior.projected(named, torch.from_numpy(grid))
        models = model_profile(kind, projected, named["distance"][:, None])
        if kind == "density" and amplitude is not None:
            models = amplitude * models
        quantiles = torch.tensor(QUANTILES, dtype=models.dtype)
        bands[kind] = grid, models.quantile(quantiles, 0).numpy()
    arrays = profile_arrays(points, bands)
    if "log10_extra" in named:
        arrays["extra_error"] = 10 ** named["log10_extra"].median()[None].numpy()
    return arrays
