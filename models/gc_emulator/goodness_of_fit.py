"""How profiles look under their posterior: the best fit, what it misses, replicated data, bands."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.special import gammaincc

from orrery.models.gc_emulator.profiles import Profiles
from orrery.models.gc_emulator.start import newton
from orrery.physics.clusters.cluster_profiles import observed

REPLICATED = 100  # draws of each chain that data are replicated from
QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)  # of the bands
GRID = 120  # radii of the bands
SWAMPED = 0.2  # share of the counts below the extra error that is worth a remark
PULLED = 2.0  # errors that a distance may be off its prior without a remark
MISFIT = 1e-3  # probability of a chi^2 below which a model does not fit

Arrays = dict[str, np.ndarray]


class Fit(NamedTuple):
    """What is reported beside the draws."""

    facts: dict[str, float]
    remarks: list[str]
    groups: dict[str, Arrays]
    shown: Arrays


def fit(posterior: Profiles, u: Tensor, seed: int) -> Fit:
    """``u`` (1, chains, draws, dim), the draws of HMC."""
    facts, misfits = _best(posterior, u)
    few = u[0, :, :: max(1, u.shape[2] // REPLICATED)]
    named = {name: values.flatten() for name, values in posterior.named(few).items()}
    with torch.no_grad():
        groups = _groups(posterior, named, few.shape[:2], torch.Generator().manual_seed(seed))
        shown = _shown(posterior, named)
    return Fit(facts, misfits + _pulled(u, posterior), groups, shown)


def _best(posterior: Profiles, u: Tensor) -> tuple[dict[str, float], list[str]]:
    """chi^2 of each profile at the maximum of the posterior, and the remarks that it calls for."""
    draws = u.flatten(1, 2)
    with torch.no_grad():
        thin = draws[:, :: max(1, draws.shape[1] // 500)]
        first = thin[:, posterior.log_prob(thin).argmax(1)]
    best = newton(posterior.log_prob, first)
    named = {name: value.flatten() for name, value in posterior.named(best).items()}
    facts = {"log_posterior_best": float(posterior.log_prob(best))}
    facts |= {f"{name}_best": float(value) for name, value in named.items()}
    remarks = []
    total, n = 0.0, 0
    for profile, seen in zip(posterior.profiles, posterior.seen(named), strict=True):
        chi2 = seen.chi2.detach()
        facts[f"chi2_{profile.name}"] = float(chi2)
        facts[f"n_{profile.name}"] = len(profile.r)
        total, n = total + float(chi2), n + len(profile.r)
        if float(gammaincc(torch.tensor(len(profile.r) / 2).to(chi2), chi2 / 2)) < MISFIT:
            remarks.append(
                f"the model does not fit {profile.name}: chi^2 is {float(chi2):.0f} for "
                f"{len(profile.r)} points"
            )
    facts |= {"chi2": total, "n": n, "chi2_reduced": total / max(1, n - posterior.n_globals)}
    if remarks:
        remarks.append(
            "where a model does not fit, the errors of its parameters say little: it is isotropic "
            "and of stars of a single mass"
        )
    return facts, remarks + _swamped(posterior, facts)


def _swamped(posterior: Profiles, facts: Mapping[str, float]) -> list[str]:
    """A remark on counts below the extra error, which is there for what the model misses too."""
    found = []
    for profile in posterior.profiles:
        if profile.kind == "density":
            extra = 10 ** facts["log10_extra_best"]
            below = profile.value < extra
            if float(below.double().mean()) > SWAMPED:
                found.append(
                    f"the extra error of {profile.name}, {extra:.2g} per arcmin2, exceeds "
                    f"{int(below.sum())} of its {len(below)} counts, all beyond "
                    f"{float(profile.r[below].min()):.2g} arcmin: these hardly count"
                )
    return found


def _pulled(u: Tensor, posterior: Profiles) -> list[str]:
    """A remark on a distance that the profiles want elsewhere than its prior."""
    i = posterior.names.index("distance")
    pull = float(u[..., i].mean())
    if abs(pull) < PULLED:
        return []
    return [
        f"the distance is {abs(pull):.1f} errors {'below' if pull < 0 else 'above'} its prior of "
        f"{posterior.distance[0]:g} ± {posterior.distance[1]:.2g} kpc"
    ]


def _groups(
    posterior: Profiles,
    named: Mapping[str, Tensor],
    shape: torch.Size,
    generator: torch.Generator,
) -> dict[str, Arrays]:
    """Profiles as observed, and as often replicated with their noise."""
    observed_data, constant, replicated = {}, {}, {}
    for profile, seen in zip(posterior.profiles, posterior.seen(named), strict=True):

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        model = seen.model
        if profile.kind == "density":
            width = 1 / (seen.model / seen.amplitude / seen.error).norm(dim=1, keepdim=True)
            model = model * (1 + width / seen.amplitude * normal(width))
            values = model + seen.error * normal(model)
        else:  # a value below the model is as far off as its upper error says
            below = torch.rand(model.shape, generator=generator, dtype=model.dtype)
            below = below * (profile.up + profile.down) < profile.up
            half = normal(model).abs()
            values = model + torch.where(below, -profile.up, profile.down) * half
        observed_data[profile.name] = profile.value.numpy()
        replicated[profile.name] = values.view(*shape, -1).numpy()
        for what in ("r", "down", "up"):
            constant[f"{profile.name}_{what}"] = getattr(profile, what).numpy()
    return {
        "posterior_predictive": replicated,
        "observed_data": observed_data,
        "constant_data": constant,
    }


def _shown(posterior: Profiles, named: Mapping[str, Tensor]) -> Arrays:
    """The profiles, and bands of the model for each kind of them, at `QUANTILES`.

    Of number densities the first sets the amplitude of the band, and the others are scaled to it.
    """
    seen = dict(zip((p.name for p in posterior.profiles), posterior.seen(named), strict=True))
    profiles = posterior.profiles
    shown = {
        "profiles": np.array([profile.name for profile in profiles]),
        "kinds": np.array([profile.kind for profile in profiles]),
    }
    if "log10_extra" in named:
        shown["extra"] = 10 ** named["log10_extra"].median()[None].numpy()
    first: Tensor | None = None
    for profile in profiles:
        scale = 1.0
        if profile.kind == "density":
            first = seen[profile.name].amplitude if first is None else first
            scale = float((first / seen[profile.name].amplitude).median())
        for what in ("r", "value", "down", "up"):
            values = getattr(profile, what).numpy()
            shown[f"{profile.name}_{what}"] = values if what == "r" else scale * values
        # errors with the extra one, of the side on which the typical model lies
        shown[f"{profile.name}_error"] = scale * seen[profile.name].error.median(0).values.numpy()
    for kind in dict.fromkeys(profile.kind for profile in profiles):
        r = torch.cat([profile.r for profile in profiles if profile.kind == kind])
        low, high = float(r[r > 0].min()), float(r.max())
        grid = torch.from_numpy(np.geomspace(0.8 * low, 1.1 * high, GRID))
        there = posterior.projected(named, grid)
        values = observed(kind, there, named["distance"][:, None])
        if kind == "density" and first is not None:
            values = first * values
        quantiles = torch.tensor(QUANTILES, dtype=values.dtype)
        shown[f"{kind}_grid"] = grid.numpy()
        shown[f"{kind}_band"] = values.quantile(quantiles, 0).numpy()
    return shown
