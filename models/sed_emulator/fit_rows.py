"""Fits of galaxies as rows of predictions: quantiles, fluxes, goodness of fit and flags."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from scipy import stats
from torch import Tensor

from orrery.models.inference.ensemble import MAX_RHAT, worst_rhat
from orrery.models.sed_emulator.draws import ensemble_draws, laplace_draws
from orrery.models.sed_emulator.fitting import MODE_DISTANCE, predicted_fluxes
from orrery.models.sed_emulator.networks import POGSON
from orrery.models.sed_emulator.outputs import (
    AT_EDGE,
    BIT,
    EDGE_X,
    LEAST_CONSTRAINT,
    POOR_FIT,
)
from orrery.models.sed_emulator.posterior import Mode, Photometry, pick, to_flux, to_parameters

if TYPE_CHECKING:
    from orrery.models.sed_emulator import SedEmulator
    from orrery.models.sed_emulator.some_bands import SomeBands

N_DRAWS = 200  # of the posterior, from which quantiles are
TIMES = 8  # at least, at which each walker of an ensemble gives a draw
SECOND_MODE = 0.05  # of the evidence
MAX_BEYOND = 3.0  # errors of a known redshift outside the prior's range


def fit_rows(model: "SedEmulator", emulator: "SomeBands", data: Photometry) -> dict[str, Tensor]:
    """Columns (n, ...) of galaxies whose photometry is in all bands of the model.

    ``emulator``: the model's, of the bands of the catalogue. Galaxies without photometry, or with a
    known redshift outside the prior's range, are blank (NaN) and flagged.
    """
    i_zred = model.names.index("zred")
    low, high = (float(x[i_zred]) for x in (model.priors.low, model.priors.high))
    beyond = (data.zred - data.zred.clamp(low, high)).abs()
    outside = beyond > MAX_BEYOND * data.zred_error
    empty = ~data.observed.any(1)
    data = data._replace(zred=torch.where(outside, data.zred.clamp(low, high), data.zred))
    modes = emulator.modes(data)
    converged = torch.ones_like(empty)
    n_draws = max(N_DRAWS, model.draws)
    if model.inference == "laplace":
        x = laplace_draws(modes, n_draws, model.seed)
    else:
        times = max(TIMES, math.ceil(n_draws / (2 * model.walkers)))
        own = emulator.of(data)
        found = ensemble_draws(emulator, own, modes, model.walkers, model.steps, times, model.seed)
        x, converged = found.flatten(1, 3), worst_rhat(found) < MAX_RHAT
    rows = _summary(model, data, modes, x)
    masks = {"no_photometry": empty, "outside_box": outside, "not_converged": ~converged}
    flags = rows["flags"] | _bits(masks)
    blank = empty | outside
    for name, values in rows.items():
        if name not in ("n_bands", "flags", "flux_observed", "flux_error"):
            mask = blank.reshape(-1, *[1] * (values.ndim - 1))
            rows[name] = torch.where(mask, torch.nan, values)
    return rows | {"flags": flags}


def _summary(
    model: "SedEmulator", data: Photometry, modes: list[Mode], x: Tensor
) -> dict[str, Tensor]:
    """Rows of galaxies from draws x (galaxies, draws, p)."""
    n, n_draws = x.shape[:2]
    zred = data.fixed_zred.repeat_interleave(n_draws)
    parameters = to_parameters(model.priors, x.flatten(0, 1), zred).reshape(n, n_draws, -1)
    rows = model.posterior_rows(parameters)
    share = torch.stack([mode.log_evidence() for mode in modes], 1).softmax(1)
    best = pick(modes, share.argmax(1))
    freedom = (data.measured.sum(1) - best.constraint).clamp_min(0.5).cpu().numpy()
    rank = torch.from_numpy(stats.chi2.cdf(best.chi2.cpu().numpy(), freedom)).to(x)
    masks = {
        "poor_fit": rank > POOR_FIT,
        "at_edge": _at_edge(model, data, best),
        "prior_dominated": best.constraint < LEAST_CONSTRAINT,
        "second_mode": _second_mode(model, modes, share, data),
        "not_converged": ~best.chi2.isfinite(),
    }
    rows |= {
        "chi2": best.chi2,
        "chi2_rank": rank,
        "n_bands": data.observed.sum(1).float(),
        "n_constrained": best.constraint,
        "flags": _bits(masks),
    }
    if model.inference == "laplace":
        flux, error = predicted_fluxes(model, data, best)
    else:
        flux, error = fluxes_of_draws(model, parameters)
    rows |= {
        "flux_model": flux,
        "flux_model_error": error,
        "flux_observed": torch.where(data.observed, data.flux, torch.nan),
        "flux_error": torch.where(data.observed, data.error, torch.nan),
    }
    return rows


def fluxes_of_draws(model: "SedEmulator", parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Median fluxes (n, bands), uJy, of draws (n, draws, p), and half their 68% intervals.

    With the emulator's errors. A part of the draws is enough.
    """
    few = parameters[:, :: max(1, parameters.shape[1] // 50)]
    flat = few.flatten(0, 1)
    flux = to_flux(model.emulate(flat))
    error = model.errors(flat).total().sqrt() * flux / POGSON
    flux, error = (values.reshape(*few.shape[:2], -1) for values in (flux, error))
    levels = torch.tensor([0.16, 0.5, 0.84]).to(flux)
    low, middle, high = flux.quantile(levels, dim=1)
    width = (0.25 * (high - low).square() + error.square().mean(1)).sqrt()
    return middle, width


def _at_edge(model: "SedEmulator", data: Photometry, best: Mode) -> Tensor:
    """Whether a fitted parameter of `AT_EDGE` is at the edge of its prior, (n,)."""
    edge = best.x.abs() > EDGE_X
    edge[:, model.names.index("zred")] &= data.fixed_zred.isnan()
    return edge[:, [model.names.index(name) for name in AT_EDGE]].any(1)


def _second_mode(
    model: "SedEmulator", modes: list[Mode], share: Tensor, data: Photometry
) -> Tensor:
    """Whether maxima of another redshift have some of the evidence, (n,); share: (n, modes)."""
    i = model.names.index("zred")
    each = [to_parameters(model.priors, mode.x, data.fixed_zred)[:, i] for mode in modes]
    log_ratio = torch.log1p(torch.stack(each, 1))
    best = share.argmax(1, keepdim=True)
    far = (log_ratio - log_ratio.gather(1, best)).abs() > MODE_DISTANCE
    return (share * far).sum(1) > SECOND_MODE


def _bits(masks: Mapping[str, Tensor]) -> Tensor:
    """Flags (n,), int16, of masks (n,) by name."""
    flags = torch.zeros_like(next(iter(masks.values())), dtype=torch.int16)
    for name, mask in masks.items():
        flags |= BIT[name] * mask.short()
    return flags
