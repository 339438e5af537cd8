"""Priors of galaxy parameters: independent, truncated, and as functions of a standard normal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HOW = ("prior", "uniform", "mixture")
UNIFORM_SHARE = 0.2  # of parameters of a mixture
EDGE = 1e-6  # of the probability, at either end
LEAST_PROBABILITY = 1e-3  # of a density within its box: less, and float32 does not resolve it


@dataclass(frozen=True)
class Prior:
    """Of one parameter: a ``kind`` of density between ``low`` and ``high``.

    "uniform"; "normal" with ``mean`` and ``sigma``; "student_t" of two degrees of freedom with
    centre ``mean`` and scale ``sigma``.
    """

    kind: str
    low: float
    high: float
    mean: float = 0.0
    sigma: float = 1.0

    def _cumulative(self, x: Tensor) -> Tensor:
        t = (x - self.mean) / self.sigma
        if self.kind == "normal":
            return torch.special.ndtr(t)
        return 0.5 + 0.5 * t / (2 + t * t).sqrt()  # Student's t, 2 degrees of freedom

    def _ends(self, like: Tensor) -> tuple[float, float]:
        # on the CPU, where a number is known at once
        ends = self._cumulative(torch.tensor([self.low, self.high], dtype=like.dtype).double())
        return float(ends[0]), float(ends[1])

    def probability(self) -> float:
        """Of the density between ``low`` and ``high``, before it is truncated to them."""
        if self.kind == "uniform":
            return 1.0
        low, high = self._ends(torch.zeros(0))
        return high - low

    def from_unit(self, p: Tensor) -> Tensor:
        """The value at cumulative probability p, 0 to 1."""
        if self.kind == "uniform":
            return (self.low + (self.high - self.low) * p).clamp(self.low, self.high)
        low, high = self._ends(p)
        q = (low + (high - low) * p).clamp(1e-7, 1 - 1e-7)
        if self.kind == "normal":
            t = torch.special.ndtri(q)
        else:
            t = (2 * q - 1) / (2 * q * (1 - q)).sqrt()
        return (self.mean + self.sigma * t).clamp(self.low, self.high)

    def to_unit(self, x: Tensor) -> Tensor:
        """Cumulative probability at x."""
        if self.kind == "uniform":
            return (x - self.low) / (self.high - self.low)
        low, high = self._ends(x)
        return (self._cumulative(x) - low) / (high - low)

    def log_prob(self, x: Tensor) -> Tensor:
        """ln of the density, -inf outside."""
        inside = (x >= self.low) & (x <= self.high)
        if self.kind == "uniform":
            value = torch.full_like(x, -math.log(self.high - self.low))
        else:
            low, high = self._ends(x)
            t = (x - self.mean) / self.sigma
            if self.kind == "normal":
                value = -0.5 * t * t - 0.5 * math.log(2 * math.pi)
            else:
                value = -1.5 * torch.log1p(t * t / 2) - 1.5 * math.log(2)
            value = value - math.log(self.sigma * (high - low))
        return torch.where(inside, value, -torch.inf)


class Priors:
    """Independent priors of parameters (n, p), in the order of ``names``."""

    def __init__(self, priors: Mapping[str, Prior]) -> None:
        self.names = tuple(priors)
        self.each = tuple(priors.values())
        self.low = torch.tensor([prior.low for prior in self.each])
        self.high = torch.tensor([prior.high for prior in self.each])

    def draw(self, n: int, generator: torch.Generator, how: str = "prior") -> Tensor:
        """``n`` random sets of parameters, (n, p).

        ``how``: "prior"; "uniform" in the box; "mixture", from the prior, but each parameter with a
        probability of 0.2 uniform in the box, so that rare galaxies are among them.
        """
        if how not in HOW:
            raise ValueError(f"training_set is '{how}'; expected one of {', '.join(HOW)}")
        unit = torch.rand(n, len(self.each), generator=generator)
        from_prior = self.from_unit(unit)
        uniform = self.low + (self.high - self.low) * unit
        if how == "mixture":
            chosen = torch.rand(unit.shape, generator=generator) < UNIFORM_SHARE
            return torch.where(chosen, uniform, from_prior)
        return uniform if how == "uniform" else from_prior

    def from_unit(self, unit: Tensor) -> Tensor:
        """Parameters at cumulative probabilities, both (..., p)."""
        columns = zip(self.each, unit.unbind(-1), strict=True)
        return torch.stack([prior.from_unit(p) for prior, p in columns], -1)

    def from_normal(self, x: Tensor) -> Tensor:
        """Parameters as functions of standard normal numbers, both (..., p)."""
        return self.from_unit(torch.special.ndtr(x))

    def normal_slope(self, x: Tensor, parameters: Tensor) -> Tensor:
        """d parameter / d x (..., p) of ``parameters`` = `from_normal` (x)."""
        columns = zip(self.each, parameters.unbind(-1), strict=True)
        log_density = torch.stack([prior.log_prob(value) for prior, value in columns], -1)
        return torch.exp(-0.5 * x.square() - 0.5 * math.log(2 * math.pi) - log_density)

    def to_normal(self, parameters: Tensor) -> Tensor:
        """The inverse of `from_normal`; at the edges of the box a finite number."""
        columns = zip(self.each, parameters.unbind(-1), strict=True)
        unit = torch.stack([prior.to_unit(x) for prior, x in columns], -1)
        return torch.special.ndtri(unit.clamp(EDGE, 1 - EDGE))

    def log_prob(self, parameters: Tensor) -> Tensor:
        """ln of the prior density (...) of parameters (..., p)."""
        columns = zip(self.each, parameters.unbind(-1), strict=True)
        return torch.stack([prior.log_prob(x) for prior, x in columns], -1).sum(-1)

    def outside(self, parameters: Tensor) -> Tensor:
        """Mask (...) of parameters (..., p) outside the box."""
        low, high = self.low.to(parameters), self.high.to(parameters)
        return ~((parameters >= low) & (parameters <= high)).all(-1)


def read_priors(settings: Mapping[str, Any], names: tuple[str, ...]) -> Priors:
    """Priors of ``names`` from settings such as ``{"zred": ["uniform", 0.5, 3]}``.

    A list holds the kind, the lower and the upper end, and for "normal" and "student_t" the mean
    and the scale.
    """
    unknown = [n for n in settings if n not in names]
    missing = [n for n in names if settings.get(n) is None]
    if unknown or missing:
        raise ValueError(
            f"data.parameters: {'unknown: ' + ', '.join(unknown) + '; ' if unknown else ''}"
            f"{'missing: ' + ', '.join(missing) + '; ' if missing else ''}"
            f"expected a prior for each of {', '.join(names)}"
        )
    return Priors({name: _read(name, settings[name]) for name in names})


def _read(name: str, values: Any) -> Prior:
    what = f"data.parameters.{name} is {values}"
    try:
        kind, *numbers = values
        numbers = [float(x) for x in numbers]
    except (TypeError, ValueError):
        kind, numbers = "", []
    expected = {"uniform": 2, "normal": 4, "student_t": 4}.get(kind)
    if len(numbers) != expected:
        raise ValueError(
            f"{what}; expected [uniform, low, high], or [normal, low, high, mean, sigma], or "
            f"[student_t, low, high, centre, scale]"
        )
    low, high, *shape = numbers
    if not low < high or (shape and not shape[1] > 0) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{what}: expected low < high, a scale > 0 and finite numbers")
    prior = Prior(kind, low, high, *shape)
    if prior.probability() < LEAST_PROBABILITY:
        raise ValueError(f"{what}: between {low:g} and {high:g} there is no probability")
    return prior
