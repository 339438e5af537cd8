"""Posterior of a one-zone model of the galaxy that the stars of a structure formed in.

A star's true abundances are those of the gas of the galaxy when it formed, with an intrinsic
scatter; the time is not known, so the likelihood is an integral over the track, weighted by the
stars formed. Measurements enter as everywhere in this component: see `mixture.Stars`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.abundances.mixture import LOG_2PI, Stars
from orrery.models.abundances.sampling import Prior, from_normal, sample
from orrery.models.inference.hmc import Target
from orrery.physics.chemical_evolution.one_zone import Galaxy, Track, alpha_knee, tracks
from orrery.physics.chemical_evolution.yields import yields

POINTS = 40  # of a track, in the likelihood
FARTHEST = 5.0  # standard deviations of the prior, beyond which the likelihood stays the same
SUPERNOVA_SCATTER, CAPTURE_SCATTER = "scatter", "scatter_capture"
PRIORS: dict[str, Prior] = {
    "efficiency": Prior("lognormal", 0.1, 0.5),  # 1/Gyr; dwarf spheroidals have .02-1
    "loading": Prior("lognormal", 10.0, 0.3),  # sets the mean metallicity
    "inflow_time": Prior("lognormal", 0.5, 0.4),  # Gyr
    "duration": Prior("log-uniform", 0.5, 10.0),  # Gyr
    "ia_rate": Prior("lognormal", 1.3e-3, 0.1),  # per Msun; Maoz & Graur 2017: (1.3 +- .1) 1e-3
    "ia_slope": Prior(
        "uniform", 0.5, 2.0
    ),  # 1.07 +- .09, Maoz & Graur 2017; clusters of galaxies 1.3
    "ia_minimum": Prior("log-uniform", 0.03, 0.5),  # Gyr, from the first white dwarfs on
    "r_prompt": Prior("lognormal", 0.3, 0.4),  # 1 makes [Eu/Mg] = 0
    "r_delayed": Prior("lognormal", 1.0, 0.5),
    "r_slope": Prior("uniform", 0.3, 2.5),
    "r_minimum": Prior("log-uniform", 0.01, 1.0),  # Gyr
    "agb": Prior("lognormal", 1.0, 0.2),
    SUPERNOVA_SCATTER: Prior("lognormal", 0.05, 0.2),  # dex, of elements that supernovae make
    CAPTURE_SCATTER: Prior("lognormal", 0.12, 0.2),  # dex, of elements beyond Zn, from rare events
}


def parameters(elements: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that abundances of these elements depend on."""
    source = yields(tuple(elements))
    captured = bool((source.r_process > 0).any())
    dropped = set() if captured else {"r_prompt", "r_delayed", "r_slope", "r_minimum"}
    if not captured:
        dropped.add(CAPTURE_SCATTER)
    if not bool((source.agb > 0).any()):
        dropped.add("agb")
    return tuple(name for name in PRIORS if name not in dropped)


def galaxy_of(values: dict[str, Tensor]) -> Galaxy:
    """The galaxy of these parameters; those that are left out have the values of `Galaxy`."""
    some = next(iter(values.values()))
    default = {k: v.to(some).expand_as(some) for k, v in Galaxy()._asdict().items()}
    return Galaxy(**{k: values.get(k, v) for k, v in default.items()})


def intrinsic_variance(values: dict[str, Tensor], elements: Sequence[str]) -> Tensor:
    """(..., k), dex^2: of each element's [X/H] around the track."""
    captured = yields(tuple(elements)).r_process > 0
    scatter = values[SUPERNOVA_SCATTER][..., None]
    heavy = values.get(CAPTURE_SCATTER, values[SUPERNOVA_SCATTER])[..., None]
    return torch.where(captured.to(scatter.device), heavy, scatter).square()


class Observed(NamedTuple):
    """Stars of several galaxies, as `log_likelihood` wants them; rows of NaN fill up.

    Shapes (groups, n, ...), of values relative to ``origin``.
    """

    value: Tensor  # (groups, n, k), 0 where there is none
    variance: Tensor  # (groups, n, k)
    responses: Tensor  # (groups, n, k, r)
    measured: Tensor  # (groups, n, k)
    limits: tuple[tuple[int, Tensor, Tensor], ...]  # element, stars (groups, m), sign or 0
    origin: Tensor  # (groups, 1, k)

    @classmethod
    def of(cls, data: Sequence[Stars], dtype: torch.dtype) -> "Observed":
        n = max(stars.n for stars in data)
        r = max(stars.responses.shape[2] for stars in data)

        def stack(parts: Sequence[Tensor], fill: float) -> Tensor:
            out = parts[0].new_full((len(parts), n, *parts[0].shape[1:]), fill)
            for row, part in zip(out, parts, strict=True):
                row[: len(part)] = part
            return out

        value = stack([s.value for s in data], torch.nan)
        variance = stack([s.variance for s in data], 1.0)
        responses = stack(
            [torch.nn.functional.pad(s.responses, (0, r - s.responses.shape[2])) for s in data], 0.0
        )
        limit = stack([s.limit for s in data], 0)
        there = ~value.isnan()
        measured = there & (limit == 0)
        origin = value.nanmean(1, keepdim=True).nan_to_num(0.0)
        limits = []
        for element in range(value.shape[2]):
            sign = torch.where(there[..., element], limit[..., element], 0)
            m = int((sign != 0).sum(1).max())
            if m:
                rows = (sign != 0).long().argsort(dim=1, descending=True, stable=True)[:, :m]
                limits.append((element, rows, sign.gather(1, rows).to(dtype)))
        return cls(
            (value - origin).nan_to_num(0.0).to(dtype),
            torch.where(there, variance, 1.0).to(dtype),
            torch.where(there[..., None], responses, 0.0).to(dtype),
            measured,
            tuple(limits),
            origin.to(dtype),
        )


def log_likelihood(track: Track, variance: Tensor, data: Observed, iron: int | None) -> Tensor:
    """(groups, chains): nat, of all stars of each group, for its galaxies (groups, chains).

    ``variance`` (groups, chains, k) is intrinsic. With ``iron``, the place of Fe, the density is
    that of the other abundances given the measured [Fe/H], so that it does not matter how stars
    were selected by metallicity. Several limits of one star are independent given its measurements.
    """
    position = track.abundances - data.origin[:, None]  # (groups, chains, T, k)
    log_weight = track.mass_formed.clamp_min(1e-30).log()
    log_p = _log_density(position, log_weight, variance, data)
    if iron is not None:
        only = data.measured.clone()
        only[..., torch.arange(only.shape[-1]) != iron] = False
        given = data._replace(measured=only, limits=())
        log_p = log_p - _log_density(position, log_weight, variance, given)
    return log_p.sum(-1)


def _log_density(position: Tensor, log_weight: Tensor, intrinsic: Tensor, data: Observed) -> Tensor:
    """(groups, chains, n): log density of each star's data, summed over points of the track."""
    measured = data.measured[:, None]
    diagonal = data.variance[:, None] + intrinsic[:, :, None]  # (groups, chains, n, k)
    weight = measured / diagonal
    log_det = torch.where(measured, diagonal, 1.0).log().sum(-1)
    value = data.value[:, None]
    r = data.responses.shape[-1]
    precision = None
    if r:
        R = data.responses[:, None]
        weighted = weight[..., None] * R  # (groups, chains, n, k, r)
        inner = R.mT @ weighted + torch.eye(r).to(R)
        factor = torch.linalg.cholesky_ex(inner)[0]
        log_det = log_det + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        half = torch.linalg.solve_triangular(factor, weighted.mT, upper=False)
        precision = torch.diag_embed(weight) - half.mT @ half
        pull = (precision @ value[..., None])[..., 0]
        squares = (position[..., :, None] * position[..., None, :]).flatten(-2)
        square_weight = precision.flatten(-2)
    else:
        pull, squares, square_weight = weight * value, position.square(), weight
    # log weight + pull . position - position . precision . position / 2 of stars and points
    of_star = torch.cat([pull, -0.5 * square_weight, torch.ones_like(pull[..., :1])], -1)
    of_point = torch.cat([position, squares, log_weight[..., None]], -1)
    log_p = of_star @ of_point.mT  # (groups, chains, n, T)
    for element, rows, sign in data.limits:
        chance = _log_limit(position, diagonal, pull, precision, data, element, rows, sign)
        index = rows[:, None, :, None].expand(chance.shape)
        log_p = log_p.scatter_add(2, index, chance)
    constant = (pull * value).sum(-1) + log_det + measured.sum(-1) * LOG_2PI
    return log_p.logsumexp(-1) - 0.5 * constant


def _log_limit(
    position: Tensor,
    diagonal: Tensor,
    pull: Tensor,
    precision: Tensor | None,
    data: Observed,
    element: int,
    rows: Tensor,
    sign: Tensor,
) -> Tensor:
    """(groups, chains, m, T): log probability of one element's limits, given measurements."""
    group = torch.arange(len(rows), device=rows.device)[:, None]
    variance = diagonal[group, :, rows, element].transpose(1, 2)[..., None]
    residual = data.value[group, rows, element][:, None, :, None]
    residual = residual - position[..., None, :, element]
    if precision is not None:
        R = data.responses[group, rows]  # (groups, m, k, r)
        own = R[:, :, element]
        common = (R @ own[..., None])[..., 0] * data.measured[group, rows]  # with measurements
        gain = precision[group, :, rows].transpose(1, 2) @ common[:, None, ..., None]
        gain = gain[..., 0]  # (groups, chains, m, k)
        at = (gain * data.value[group, rows][:, None]).sum(-1, keepdim=True)
        residual = residual - at + gain @ position.mT
        explained = (gain * common[:, None]).sum(-1, keepdim=True)
        variance = variance + own.square().sum(-1)[:, None, :, None] - explained
    z = sign[:, None, :, None] * residual / variance.sqrt()
    return torch.where(sign[:, None, :, None] != 0, torch.special.log_ndtr(z), 0.0)


def log_posterior(
    data: Observed, elements: tuple[str, ...], given_iron: bool, points: int = POINTS
) -> tuple[Target, tuple[str, ...]]:
    """The target of HMC, of standard normal numbers (groups, chains, dim), and their names."""
    names = parameters(elements)
    iron = elements.index("Fe") if given_iron else None
    dtype = data.value.dtype

    def target(z: Tensor) -> Tensor:
        values = from_normal(z.to(dtype).clamp(-FARTHEST, FARTHEST), names, PRIORS)
        track = tracks(galaxy_of(values), elements, points)
        fit = log_likelihood(track, intrinsic_variance(values, elements), data, iron)
        return fit.double() - 0.5 * z.square().sum(-1)

    return target, names


def infer_evolution(
    data: Sequence[Stars],
    elements: Sequence[str],
    seed: int = 0,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 300,
    given_iron: bool = False,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Draws (galaxies, chains, draws) of each parameter, of galaxies with the stars ``data``.

    Parameters are those of `PRIORS`, and "alpha_knee" ([Fe/H], dex) where there are Fe and Mg.
    All galaxies are sampled at once, each on its own. ``given_iron``: the stars' [Fe/H] say nothing
    of the galaxy by themselves, as they were selected by it. float32 is twice as fast, and enough.
    """
    elements = tuple(elements)
    if "Fe" not in elements:
        raise ValueError(f"chemical evolution needs [Fe/H]; the elements are {', '.join(elements)}")
    target, names = log_posterior(Observed.of(data, dtype), elements, given_iron)
    z = sample(target, len(data), len(names), seed, chains, warmup, draws, data[0].value.device)
    values = from_normal(z, names, PRIORS)
    if "Mg" in elements:
        galaxy = galaxy_of(values)
        knees = [alpha_knee(Galaxy(*(x[i] for x in galaxy))) for i in range(len(data))]
        values["alpha_knee"] = torch.stack(knees)
    return values
