"""Smooth star formation histories, drawn at random: none of the bins that galaxies are fitted by.

Times are Gyr of cosmic time since star formation began, at a lookback time ``age`` (n,); a history
is given as a `StarFormation` of many bins, even in log lookback time from 1 Myr on.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.star_formation import StarFormation

N_FINE_BINS = 100
YOUNGEST = 1e-3  # Gyr: the end of the first bin
WITHIN = 8  # points of a bin at which a rate is evaluated
FIRST_STARS = 0.1  # Gyr after the Big Bang: no star formation before
Rate = Callable[[Tensor], Tensor]  # of times (n, k) since the beginning: rates of any scale, (n, k)


def delayed(tau: Tensor) -> Rate:
    """t exp(-t / tau), of a time scale ``tau`` (n,), Gyr."""
    return lambda t: t * torch.exp(-t / tau[:, None])


def truncated(tau: Tensor, end: Tensor, fall: Tensor) -> Rate:
    """`delayed` that from a time ``end`` (n,) on falls exponentially, in ``fall`` (n,), Gyr."""
    return lambda t: delayed(tau)(t) * torch.exp(-(t - end[:, None]).clamp_min(0) / fall[:, None])


def double_power_law(tau: Tensor, falling: Tensor, rising: Tensor) -> Rate:
    """1 / ((t / tau)^falling + (t / tau)^-rising), parameters (n,) each.

    Carnall et al. (2018, MNRAS 480, 4379), eq. 10.
    """

    def rate(t: Tensor) -> Tensor:
        x = (t.clamp_min(1e-6) / tau[:, None]).log()
        return torch.exp(-torch.logaddexp(falling[:, None] * x, -rising[:, None] * x))

    return rate


def with_bursts(rise: Tensor, start: Tensor, length: Tensor, strength: Tensor) -> Rate:
    """exp(t ``rise``) and bursts, (n, bursts) each: ``start``, ``length`` Gyr, ``strength``.

    ``rise`` (n,), 1/Gyr, is 0 where the rate is constant; strengths are relative to it.
    """

    def rate(t: Tensor) -> Tensor:
        into = (t[..., None] - start[:, None]) / length[:, None]
        burst = torch.where((into >= 0) & (into < 1), strength[:, None], 0.0).sum(-1)
        return torch.exp(rise[:, None] * t) * (1 + burst)

    return rate


def binned(rate: Rate, age: Tensor, zred: Tensor) -> StarFormation:
    """Histories of 1 Msun formed that began ``age`` (n,), Gyr, before ``zred`` (n,)."""
    end = age_of_universe(zred)
    steps = torch.linspace(0, 1, N_FINE_BINS).to(zred)
    edges = (math.log(YOUNGEST) + steps * (end / YOUNGEST).log()[:, None]).exp()
    edges = torch.cat([torch.zeros_like(edges[:, :1]), edges], 1)
    share = (torch.arange(WITHIN).to(zred) + 0.5) / WITHIN
    lookback = edges[:, :-1, None] + edges.diff(dim=1)[..., None] * share
    time = age[:, None] - lookback.flatten(1)
    sfr = torch.where(time > 0, rate(time.clamp_min(0)), 0.0)
    sfr = sfr.unflatten(1, (N_FINE_BINS, WITHIN)).mean(2)
    return StarFormation(edges, sfr / (sfr * edges.diff(dim=1)).sum(1, keepdim=True))


# --- random histories ---------------------------------------------------------------------------


def draw_history(kind: str, zred: Tensor, generator: torch.Generator) -> StarFormation:
    """Random histories of a ``kind`` of `KINDS` at redshifts ``zred`` (n,)."""
    if kind not in KINDS:
        raise ValueError(f"there are no histories '{kind}'; expected one of {', '.join(KINDS)}")
    rate, age = KINDS[kind](age_of_universe(zred), generator)
    return binned(rate, age, zred)


def _uniform(low: Tensor | float, high: Tensor | float, n: int, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=g)


def _log_uniform(low: Tensor | float, high: Tensor | float, n: int, g: torch.Generator) -> Tensor:
    low, high = torch.as_tensor(low).log(), torch.as_tensor(high).log()
    return _uniform(low, high, n, g).exp()


def _quenched(age: Tensor, since: Tensor, g: torch.Generator) -> Rate:
    """Either truncated or a double power law, whose peak is ``since`` (n,), Gyr, ago."""
    n, end = len(age), age - since
    fall = _log_uniform(0.01, 0.1, n, g)
    cut = truncated(_log_uniform(0.05, 3.0, n, g) * age, end, fall)
    smooth = double_power_law(end, _log_uniform(5.0, 1e3, n, g), _log_uniform(0.5, 20.0, n, g))
    chosen = torch.rand(n, generator=g) < 0.5
    return lambda t: torch.where(chosen[:, None], _of_mean_1(cut(t)), _of_mean_1(smooth(t)))


def _of_mean_1(rate: Tensor) -> Tensor:
    return rate / rate.mean(1, keepdim=True).clamp_min(1e-30)


def _quiescent(universe: Tensor, g: torch.Generator) -> tuple[Rate, Tensor]:
    """Quenched for at least 0.3 Gyr, or for a sixth of the age of the universe."""
    n = len(universe)
    age = _uniform(0.4, 1.0, n, g) * (universe - FIRST_STARS)
    least = torch.minimum(universe / 6, torch.tensor(0.3))
    return _quenched(age, _uniform(least, 0.85 * age, n, g), g), age


def _post_starburst(universe: Tensor, g: torch.Generator) -> tuple[Rate, Tensor]:
    """Most stars formed within a short time that ended 50 to 500 Myr ago."""
    n = len(universe)
    since = torch.minimum(_log_uniform(0.05, 0.5, n, g), 0.4 * universe)
    length = _log_uniform(0.05, 0.4, n, g)
    age = torch.minimum(since + length, 0.95 * (universe - FIRST_STARS))
    fall = _log_uniform(0.005, 0.05, n, g)
    return truncated(_log_uniform(0.1, 3.0, n, g) * length, age - since, fall), age


def _star_forming(universe: Tensor, g: torch.Generator) -> tuple[Rate, Tensor]:
    """Delayed, of a time scale of half the age or more."""
    n = len(universe)
    age = _uniform(0.2, 1.0, n, g) * (universe - FIRST_STARS)
    return delayed(_log_uniform(0.5, 10.0, n, g) * age), age


def _bursty(universe: Tensor, g: torch.Generator) -> tuple[Rate, Tensor]:
    """Constant or rising, with three bursts at random times."""
    n = len(universe)
    age = _uniform(0.2, 1.0, n, g) * (universe - FIRST_STARS)
    rise = _uniform(0.0, 3.0, n, g) / age
    start = torch.rand(n, 3, generator=g) * age[:, None]
    length = _log_uniform(0.01, 0.2, 3 * n, g).reshape(n, 3)
    strength = _log_uniform(0.3, 10.0, 3 * n, g).reshape(n, 3)
    return with_bursts(rise, start, length, strength), age


KINDS: dict[str, Callable[[Tensor, torch.Generator], tuple[Rate, Tensor]]] = {
    "quiescent": _quiescent,
    "post_starburst": _post_starburst,
    "star_forming": _star_forming,
    "bursty": _bursty,
}
