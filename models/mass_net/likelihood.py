"""Density of the relative motion of pairs of known masses."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.mass_net.networks import PairStatistics, bound_density
from orrery.physics.constants import constant_like
from orrery.physics.wide_binaries import motion

TINY = 1e-12


class PairDensity(NamedTuple):
    """ln of densities of w, each (members, batch)."""

    log_p: Tensor  # of the pair
    log_outlier: Tensor  # its part of outliers

    @property
    def outlier_probability(self) -> Tensor:
        return (self.log_outlier - self.log_p).exp()


def pair_density(
    statistics: PairStatistics, batch: Batch, log_mass: Tensor, largest_mass: float | None
) -> PairDensity:
    """Density of w of bound pairs and outliers of total ``log_mass``, ln Msun, (members, batch).

    Normalised over the w that the catalogue's selection leaves: of bound pairs slower than a
    circular orbit about ``largest_mass``, Msun.
    """
    log_s = batch["log_separation"]
    log_outlier, log_bound = statistics.log_outlier_fractions(log_s)
    alpha = statistics.alpha(log_s)
    bound = log_bound + bound_density(batch["likelihood"], log_mass, alpha).clamp_min(TINY).log()
    outlier = log_outlier + statistics.log_outlier_density(
        batch["motion"], batch["covariance"], log_mass
    )
    if largest_mass is not None:
        speed = largest_mass**0.5
        slow = torch.logaddexp(
            log_bound + _bound_fraction(speed, log_mass, alpha).log(),
            log_outlier + statistics.log_slower(speed, log_mass),
        )
        bound, outlier = bound - slow, outlier - slow
    return PairDensity(torch.logaddexp(bound, outlier), outlier)


def _bound_table(part: int) -> Tensor:
    return motion.bound_table()[part]


def _bound_fraction(speed: float, log_mass: Tensor, alpha: Tensor) -> Tensor:
    """Fraction of bound pairs with |w| below ``speed``, (members, batch)."""
    x, fractions = (constant_like(log_mass, _bound_table, part) for part in (0, 1))
    step = x[1] - x[0]
    place = (speed * (-0.5 * log_mass).exp() / step).clamp(0, len(x) - 1 - 1e-3)
    low = place.detach().long()
    values = torch.lerp(fractions[low], fractions[low + 1], (place - low)[..., None])
    return (values * motion.alpha_weights(alpha)).sum(-1).clamp(TINY, 1)
