"""A galaxy of one zone: gas flows in, makes stars, is enriched by them and blown out.

With a star formation rate proportional to the gas and an inflow that falls exponentially, gas and
prompt enrichment have closed forms; every delayed source is an integral of the prompt one over the
delay (Weinberg, Andrews & Freudenburg 2017, whose notation it follows but for the inflow).

    dM/dt  = inflow - (1 + loading - R) SFR,        inflow = exp(-t / tau) / tau,  M(0) = 0
    dMX/dt = (prompt yield + delayed yields) SFR - (1 + loading - R) SFR MX / M
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.chemical_evolution.delays import HUBBLE_TIME, log_power_law
from orrery.physics.chemical_evolution.yields import (
    AGB_METALLICITY,
    HYDROGEN,
    yields,
)

RECYCLED = 0.4  # R: share of a population that returns at once, Kroupa 2001 (Weinberg et al. 2017)
AGB_DELAYS = (1.0, 0.3, 4.5)  # slope, minimum, maximum (Gyr) of 1.3-4 Msun of t = 10 Gyr m^-2.5
NODES = 8  # of the integral over delays; rms error over the stars of a galaxy .0006 dex
SERIES_BELOW, TERMS = 0.05, 6  # of functions that are 0 / 0 at 0: error < 1e-12
FLOOR = -8.0  # [X/H] of the first gas, so that logarithms are finite


class Galaxy(NamedTuple):
    """Parameters, each (...); the defaults are a dwarf like Sculptor."""

    efficiency: Tensor = torch.tensor(0.5)  # star formation rate per gas mass, 1/Gyr
    loading: Tensor = torch.tensor(10.0)  # outflow per star formation rate
    inflow_time: Tensor = torch.tensor(0.5)  # e-folding time of the inflow, Gyr
    duration: Tensor = torch.tensor(3.0)  # of star formation, Gyr
    ia_rate: Tensor = torch.tensor(1.3e-3)  # SN Ia per Msun in a Hubble time (Maoz & Graur 2017)
    ia_slope: Tensor = torch.tensor(1.1)  # of their delays t^-slope
    ia_minimum: Tensor = torch.tensor(0.05)  # least delay, Gyr
    r_prompt: Tensor = torch.tensor(0.5)  # r-process without delay; 1 makes [Eu/Mg] = 0
    r_delayed: Tensor = torch.tensor(2.0)  # with delay, in a Hubble time, in the same unit
    r_slope: Tensor = torch.tensor(1.0)  # of its delays
    r_minimum: Tensor = torch.tensor(0.1)  # least delay, Gyr
    agb: Tensor = torch.tensor(1.0)  # factor of the yields of AGB stars


class Track(NamedTuple):
    """Gas of galaxies (...) at T times, and so the stars that form from it."""

    time: Tensor  # (..., T) Gyr since the first inflow
    mass_formed: Tensor  # (..., T) share of all stars; sums to 1
    abundances: Tensor  # (..., T, k) [X/H], dex


def tracks(galaxy: Galaxy, elements: tuple[str, ...], points: int = 64) -> Track:
    """Abundances [X/H] of the elements while stars form, at times dense where metals rise fast.

    Device and precision are those of ``galaxy``, the highest. Gradients are finite everywhere.
    """
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in galaxy))
    galaxy = Galaxy(*torch.broadcast_tensors(*(x.to(dtype) for x in galaxy)))
    u = (torch.arange(points).to(galaxy.duration) + 0.5) / points
    time = galaxy.duration[..., None] * u.square()
    rates = _Rates.of(galaxy)
    log_formed = rates.log_gas(time) + u.log()  # dt goes with u
    return Track(
        time,
        log_formed.softmax(-1),
        _abundances(galaxy, rates, time, log_formed, elements),
    )


def alpha_knee(galaxy: Galaxy, element: str = "Mg", drop: float = 0.1, points: int = 400) -> Tensor:
    """[Fe/H] (...) at which [element/Fe] has fallen ``drop`` dex under its core-collapse plateau.

    Star formation is taken to go on for a Hubble time; inf where the knee is not reached then.
    """
    long = galaxy._replace(duration=torch.full_like(galaxy.duration, HUBBLE_TIME))
    iron, alpha = tracks(long, ("Fe", element), points).abundances.unbind(-1)
    source = yields((element, "Fe"))
    plateau = (source.ccsn / source.solar).log10()
    below = (alpha - iron) - (plateau[0] - plateau[1] - drop)
    first = ((below[..., :-1] > 0) & (below[..., 1:] <= 0)).long()
    i = first.argmax(-1, keepdim=True)
    b0, b1 = below.gather(-1, i), below.gather(-1, i + 1)
    x0, x1 = iron.gather(-1, i), iron.gather(-1, i + 1)
    knee = (x0 + (x1 - x0) * b0 / (b0 - b1))[..., 0]
    return torch.where(first.any(-1), knee, torch.inf)


class _Rates(NamedTuple):
    """Of gas and prompt metals, (..., 1): 1/Gyr."""

    star_formation: Tensor
    loss: Tensor  # of metals, and of gas without inflow
    inflow: Tensor

    @classmethod
    def of(cls, galaxy: Galaxy) -> "_Rates":
        loss = galaxy.efficiency * (1 + galaxy.loading - RECYCLED)
        return cls(galaxy.efficiency[..., None], loss[..., None], 1 / galaxy.inflow_time[..., None])

    def log_gas(self, time: Tensor) -> Tensor:
        """Log of the gas mass, of a total inflow of 1."""
        slow, gap = torch.minimum(self.loss, self.inflow), (self.loss - self.inflow).abs()
        return (self.inflow * time * _rise(gap * time)).log() - slow * time

    def prompt(self, time: Tensor, delay: Tensor) -> Tensor:
        """Mass, per yield and gas mass at ``time``, of metals made ``delay`` before at a prompt.

        That is Q(time - delay) / M(time) with Q the mass of metals of a yield of 1 without delay.
        """
        then = (time - delay).clamp_min(0)
        slow, gap = torch.minimum(self.loss, self.inflow), (self.loss - self.inflow).abs()
        mass = _twice(gap * then, self.loss >= self.inflow) * then.square()
        # where almost no gas is left, and almost no star forms, the exponent is bounded
        growth = torch.exp((slow * torch.minimum(delay, time)).clamp_max(60))
        return self.star_formation * growth * mass / (time * _rise(gap * time))


def _abundances(
    galaxy: Galaxy, rates: _Rates, time: Tensor, log_formed: Tensor, elements: tuple[str, ...]
) -> Tensor:
    """[X/H] (..., T, k)."""
    source = yields(elements).to(time)
    iron = yields(("Fe",)).to(time)
    has_r, has_agb = bool((source.r_process > 0).any()), bool((source.agb > 0).any())
    hubble = torch.full_like(galaxy.ia_slope, HUBBLE_TIME)
    delays: list[tuple[Tensor, ...]] = [(galaxy.ia_slope, galaxy.ia_minimum, hubble)]
    if has_r:
        delays.append((galaxy.r_slope, galaxy.r_minimum, hubble))
    if has_agb:
        delays.append(tuple(torch.full_like(hubble, x) for x in AGB_DELAYS))
    delay, metals = _delayed(rates, time, *(torch.stack(x) for x in zip(*delays, strict=True)))
    prompt = rates.prompt(time, torch.zeros_like(time))[..., None]
    ia = galaxy.ia_rate[..., None, None] * metals[0].sum(-1, keepdim=True)
    mass = prompt * source.ccsn + ia * source.snia
    if has_r:
        late = galaxy.r_delayed[..., None, None] * metals[1].sum(-1, keepdim=True)
        mass = mass + (prompt * galaxy.r_prompt[..., None, None] + late) * source.r_process
    if has_agb:
        iron_h = _bracket(prompt * iron.ccsn + ia * iron.snia, iron.solar)[..., 0]
        weight = log_formed + rates.loss * time
        agb = _agb(time, delay[-1], metals[-1], iron_h, weight, source.agb)
        mass = mass + galaxy.agb[..., None, None] * agb
    return _bracket(mass, source.solar)


def _bracket(mass_fraction: Tensor, solar: Tensor) -> Tensor:
    return (mass_fraction / (HYDROGEN * solar) + 10**FLOOR).log10()


def _delayed(
    rates: _Rates, time: Tensor, slope: Tensor, minimum: Tensor, maximum: Tensor
) -> tuple[Tensor, Tensor]:
    """Delays (S, ..., T, NODES) of S sources t^-slope (S, ...), and the mass of metals from each.

    Mass is per yield and gas mass; its sum over the nodes is the integral over delays.
    """
    x, weight = (torch.from_numpy(a).to(time) for a in np.polynomial.legendre.leggauss(NODES))
    slope, minimum, maximum = (a[..., None, None] for a in (slope, minimum, maximum))
    start = minimum.log()
    width = torch.minimum(torch.maximum(time[..., None], minimum), maximum).log() - start
    delay = torch.exp(start + width * (x + 1) / 2)
    density = torch.exp(log_power_law(delay, slope, minimum, maximum))
    later = _Rates(*(a[..., None] for a in rates))
    return delay, later.prompt(time[..., None], delay) * density * delay * width * weight / 2


def _agb(
    time: Tensor, delay: Tensor, metals: Tensor, iron_h: Tensor, log_weight: Tensor, agb: Tensor
) -> Tensor:
    """Mass per gas mass (..., T, k) of AGB stars, whose yields follow their [Fe/H] at birth.

    ``metals`` (..., T, NODES) is of a yield of 1; ``log_weight`` (..., T) is of the stars formed,
    times the share that the gas keeps of what they make at birth.
    """
    then = (time[..., None] - delay).clamp_min(0)
    points = time.shape[-1]
    end = time[..., -1:, None] / (1 - 0.5 / points) ** 2
    place = ((then / end).clamp_min(1e-12).sqrt() * points - 0.5).clamp(0, points - 1.001)
    left = place.detach().floor().long()
    part = (place - left).flatten(-2)
    left = left.flatten(-2)
    # mean yield of the metals that the gas holds, had they been ejected at birth
    norm = log_weight.logcumsumexp(-1)
    mass = []
    for log_yield in _agb_yields(iron_h, agb):
        if log_yield is None:
            mass.append(torch.zeros_like(time))
            continue
        mean = ((log_weight + log_yield).logcumsumexp(-1) - norm).exp()
        here, there = mean.gather(-1, left), mean.gather(-1, left + 1)
        mass.append((metals * (here + (there - here) * part).unflatten(-1, (points, -1))).sum(-1))
    return torch.stack(mass, -1)


def _agb_yields(iron_h: Tensor, agb: Tensor) -> list[Tensor | None]:
    """Log yield (..., T) of each element: lines between the table's [Fe/H], the first goes on."""
    at = list(AGB_METALLICITY.values())
    result: list[Tensor | None] = []
    for values in agb:
        if not bool((values > 0).all()):
            result.append(None)
            continue
        height = values.log()
        log_yield = height[0].expand_as(iron_h)
        for i, (x0, x1) in enumerate(itertools.pairwise(at)):
            run = (iron_h - x0).clamp(max=x1 - x0) if i == 0 else (iron_h - x0).clamp(0, x1 - x0)
            log_yield = log_yield + run * (height[i + 1] - height[i]) / (x1 - x0)
        result.append(log_yield)
    return result


def _rise(x: Tensor) -> Tensor:
    """(1 - e^-x) / x of x >= 0."""
    near = x < SERIES_BELOW
    safe = torch.where(near, torch.ones_like(x), x)
    series = _polynomial(-x, [x.new_tensor(1 / math.factorial(n + 1)) for n in range(TERMS)])
    return torch.where(near, series, -torch.expm1(-safe) / safe)


def _twice(x: Tensor, metals_faster: Tensor) -> Tensor:
    """The like of `_rise` of gas in, metals out, both lost at one rate: of x >= 0.

    (1 - e^-x - x e^-x) / x^2 where the gas is lost faster than it falls in, else
    (e^-x - 1 + x) / x^2.
    """
    near = x < SERIES_BELOW
    safe = torch.where(near, torch.ones_like(x), x)
    fall = torch.exp(-safe)
    far = torch.where(metals_faster, 1 - fall - safe * fall, fall - 1 + safe) / safe.square()
    factor = metals_faster.to(x)
    series = [(1 + n * factor) / math.factorial(n + 2) for n in range(TERMS)]
    return torch.where(near, _polynomial(-x, series), far)


def _polynomial(x: Tensor, coefficients: list[Tensor]) -> Tensor:
    total = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = c + x * total
    return total
