"""Densities looked up in a table, and what they tell of an age."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.blocks import grid
from models.gyro.networks import Rotation

COLOURS = torch.linspace(0.3, 3.6, 67)  # mag, 0.05 apart
PERIODS = torch.linspace(-1.3, 2.3, 241)  # log10 d, 0.015 apart
NODES = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))  # Gauss-Hermite, order 3
TYPICAL = {"colour": 0.03, "log_period": 0.01}  # errors that the clusters' own periods hold already
LARGEST = {"colour": 0.2, "log_period": 0.15}  # beyond them an error is taken as this


class Table(nn.Module):
    """ln p(log10 P | log10 age, colour), the mean over an ensemble, on a grid of all three."""

    def __init__(self, ages: Tensor) -> None:
        super().__init__()
        self.ages: Tensor
        self.values: Tensor
        self.register_buffer("ages", ages, persistent=False)
        shape = (len(COLOURS), len(PERIODS), len(ages))
        self.register_buffer("values", torch.zeros(shape, dtype=torch.float16))

    @torch.no_grad()
    def fill(self, rotation: Rotation) -> None:
        n, device = len(self.ages), self.values.device
        periods = PERIODS.to(device)
        for i, colour in enumerate(COLOURS.to(device)):
            parameters = rotation.parameters_of(self.ages, colour.expand(n))
            log_p = rotation.log_prob(parameters[:, None], periods[:, None])
            self.values[i] = (log_p.logsumexp(0) - math.log(len(log_p))).clamp_min(-60).half()

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> Tensor:
        """ln p (batch, ages) of stars, whose errors beyond the typical ones are convolved in."""
        excess = {}
        for name, typical in TYPICAL.items():
            error = batch[f"{name}_error"].clamp(max=LARGEST[name])
            excess[name] = (error.square() - typical**2).clamp_min(0).sqrt()
        parts = []
        for shift, weight in NODES:
            for move, mass in NODES:
                colour = batch["colour"] + shift * excess["colour"]
                period = batch["log_period"] + move * excess["log_period"]
                parts.append(self.at(colour, period) + math.log(weight * mass))
                if not (excess["log_period"] > 0).any() and not (excess["colour"] > 0).any():
                    return self.at(batch["colour"], batch["log_period"])
        return torch.stack(parts).logsumexp(0)

    def at(self, colour: Tensor, log_period: Tensor) -> Tensor:
        """ln p (batch, ages), linear between the points of the table; its ends beyond them."""
        places = []
        for x, points in ((colour, COLOURS), (log_period, PERIODS)):
            place = (x - points[0]) / (points[1] - points[0])
            place = place.clamp(0, len(points) - 1 - 1e-3)
            places.append((place.long(), place.frac()[:, None]))
        (i, u), (j, v) = places

        def corner(a: int, b: int) -> Tensor:
            return self.values[i + a, j + b].float()

        low = corner(0, 0) * (1 - v) + corner(0, 1) * v
        return low * (1 - u) + (corner(1, 0) * (1 - v) + corner(1, 1) * v) * u


def summaries(
    log_likelihood: Tensor, log_prior: Tensor, edges: Tensor, quantiles: Mapping[str, float]
) -> dict[str, Tensor]:
    """Quantiles and mean of age, Gyr, the evidence, and the cumulative posterior ``cdf``."""
    posterior = log_likelihood + log_prior
    evidence = posterior.logsumexp(1)
    mass = (posterior - evidence[:, None]).exp()
    cdf = torch.nn.functional.pad(mass.cumsum(1), (1, 0)).clamp(max=1)
    levels = torch.tensor([list(quantiles.values())], device=cdf.device)
    found = 10 ** (grid.quantile(cdf, edges, levels) - 3)
    ages = 10 ** (grid.centres(edges) - 3)
    rows = dict(zip(quantiles, found.unbind(1), strict=True))
    return {**rows, "age_mean": mass @ ages, "log_evidence": evidence, "cdf": cdf}
