"""How well profiles and stars are fitted: chi^2, replicated data, p-values, model bands."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.special import gammaincc

from orrery.models.base import or_nothing
from orrery.models.gc_emulator.figure_data import (
    QUANTILES,
    VOLUME_POWERS,
    Arrays,
    Bins,
    Points,
    StarProfiles,
    profile_arrays,
)
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.models.gc_emulator.start import newton
from orrery.physics.clusters.cluster_profiles import model_profile

REPLICATED_DRAWS = 100  # of each chain, from which data are replicated
BAND_RADII = 120
MAX_FRACTION_BELOW_EXTRA = 0.2  # of the counts below the extra error, without a warning
MAX_DISTANCE_PULL_SIGMA = 2.0  # from the mean of its prior, without a warning
PREDICTIVE_DRAWS = 50  # whose models are compared with lists of stars
RADII_PER_BIN = 30
MIN_PREDICTIVE_P = 1e-3  # below it a model does not describe stars or profiles
P_VALUES = {"p_density": "number density", "p_dispersion": "velocity dispersion"}
MIN_CHI2_PROBABILITY = 1e-3  # of chi^2 or more: below it a model does not fit


class GoodnessOfFit(NamedTuple):
    """What is reported besides the draws."""

    metrics: dict[str, float]
    warnings: list[str]
    groups: dict[str, Arrays]  # of ArviZ
    figure: Arrays  # empty if it failed


def goodness_of_fit(posterior: ProfilesPosterior, u: Tensor, seed: int) -> GoodnessOfFit:
    """``u`` (1, chains, draws, dim): the draws of HMC."""
    metrics, misfits = _best_fit(posterior, u)
    thinned = u[0, :, :: max(1, u.shape[2] // REPLICATED_DRAWS)]
    named = {name: values.flatten() for name, values in posterior.named(thinned).items()}
    with torch.no_grad():
        metrics |= _profile_p_values(posterior, named)
        generator = torch.Generator().manual_seed(seed)
        groups = _replicated(posterior, named, thinned.shape[:2], generator)
        figure = or_nothing("profiles.png", lambda: _figure(posterior, named))
    return GoodnessOfFit(metrics, misfits + _distance_pull(u, posterior), groups, figure)


def _profile_p_values(
    posterior: ProfilesPosterior, named: Mapping[str, Tensor]
) -> dict[str, float]:
    """Posterior predictive p-values, `P_VALUES`, of the kinds of profiles that there are.

    ``named``: parameters, each (draws,). The probability of a larger chi^2, summed over profiles of
    a kind, where data are replicated with their errors; mean over draws.
    """
    chi2: dict[str, Tensor] = {}
    degrees = dict.fromkeys(P_VALUES, 0)
    for profile, fit in zip(posterior.profiles, posterior.compare(named), strict=True):
        of_counts = profile.kind == "density"
        key = "p_density" if of_counts else "p_dispersion"
        chi2[key] = chi2.get(key, 0) + fit.chi2
        degrees[key] += len(profile.r) - of_counts  # whose amplitude is fitted
    return {key: _mean_tail(value, degrees[key]) for key, value in chi2.items() if degrees[key]}


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
            "what a model lacks may be the cause: it has stars of a single mass, and no rotation"
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


@torch.no_grad()
def predictive_p_values(profiles: StarProfiles) -> dict[str, float]:
    """Posterior predictive p-values of stars in radial bins, `P_VALUES`.

    The probability that stars of the models deviate from them more than those observed, in chi^2
    summed over bins; mean over posterior draws (Gelman, Meng & Stern 1996). Replicated stars have
    the same total number, and velocities whose kurtosis is that of the data if it is below that of
    a normal distribution, so that their chi^2 has its usual distribution.
    """
    bins, (kind, density) = profiles.bins, profiles.density
    stride = max(1, len(density) // PREDICTIVE_DRAWS)
    p_values = {}
    observed = bins.sum(bins.weight)
    if len(observed) > 1:
        expected = _expected_counts(bins, kind, density[::stride])
        expected = expected * observed.sum() / expected.sum(1, keepdim=True)
        chi2 = ((observed - expected).square() / expected).sum(1)
        p_values["p_density"] = _mean_tail(chi2, len(observed) - 1)
    chi2, n = torch.zeros(()), 0
    for speeds, dispersions in profiles.speeds.values():
        weight = torch.where(speeds.v2.isfinite(), bins.weight, 0.0)
        model = bins.at_stars(dispersions[::stride]).square()  # (draws, stars)
        variance = 2 * (model + speeds.error2.nan_to_num()).square() / speeds.components
        off = speeds.v2.nan_to_num() - model
        scatter = (weight * off.square()).sum(1) / (weight * variance).sum(1)
        variance = variance * scatter.clamp_max(1)[:, None]
        difference, known = bins.sum(weight * off), bins.sum(weight) > 1
        variance = bins.sum(weight.square() * variance)
        chi2 = chi2 + (difference.square() / variance)[:, known].sum(1)
        n += int(known.sum())
    if n:
        p_values["p_dispersion"] = _mean_tail(chi2, n)
    return p_values


def star_fit(make: Callable[[], StarProfiles]) -> tuple[Arrays, dict[str, float]]:
    """Of a list of stars, whose profiles ``make`` computes, figure data and p-values.

    A part that fails is empty, with a warning, so that the draws are kept.
    """
    made = or_nothing("profiles.png", lambda: {"profiles": make()})
    if not made:
        return {}, {}
    profiles: StarProfiles = made["profiles"]
    figure = or_nothing("profiles.png", profiles.arrays)
    return figure, or_nothing("p-values", lambda: predictive_p_values(profiles))


def _mean_tail(chi2: Tensor, degrees: int) -> float:
    """Probability of a larger chi^2, mean over ``chi2`` (draws,)."""
    return float(gammaincc(torch.tensor(0.5 * degrees).to(chi2), 0.5 * chi2).mean())


def _expected_counts(bins: Bins, kind: str, density: Tensor) -> Tensor:
    """Stars in each bin, up to a factor, (draws, bins), of models ``density`` (draws, radii)."""
    low, high = bins.edges[:-1, None], bins.edges[1:, None]
    middle = (torch.arange(RADII_PER_BIN, dtype=low.dtype) + 0.5) / RADII_PER_BIN
    r = low + (high - low) * middle
    size = r ** (VOLUME_POWERS[kind] - 1) * bins.completeness(r) * (high - low)
    return (bins.interpolated(density, r.flatten()).unflatten(1, r.shape) * size).mean(2)


def description(p_values: Mapping[str, float], data: str = "stars") -> tuple[str, bool]:
    """Whether a model describes its ``data``, by their p-values: a sentence, and yes or no."""
    found = {name: p_values[key] for key, name in P_VALUES.items() if key in p_values}
    if not found:
        return (
            "there are no posterior predictive p-values: they need stars in two radial bins",
            True,
        )
    describes = min(found.values()) >= MIN_PREDICTIVE_P
    text = ", ".join(f"of the {name} {p:.2g}" for name, p in found.items())
    end = f"describes these {data}"
    if not describes:
        end = f"does not describe these {data}, and the errors of its parameters mean little"
    return f"posterior predictive p-value {text}: the model {end}", describes


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
