"""Clusters and the field as hosts: tabulated densities of coordinates, and their priors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.gems.density import (
    LOG_2_PI,
    Moments,
    log_student,
    log_sum_exp,
    monomials,
    squared_distance,
)

PRIORS = ("flat", "mass", "rate")
N_NEAR = 12  # clusters that a star is compared with at every draw
TABLE = (  # the rows of `physics.ejections.population.cluster_table`
    "ra", "dec", "distance", "e_distance", "r_t", "mass", "rate",
    "x_x", "x_y", "x_z", "v_x", "v_y", "v_z", "ln_speed", "ln_speed_std",
)  # fmt: skip


class Hosts(NamedTuple):
    """Possible hosts: clusters, and the field as the last one of every answer.

    Coefficients are of the `monomials` of coordinates in ln(weight x density) of each Gaussian.
    """

    moments: Moments  # of the clusters
    clusters: Tensor  # coefficients (clusters, components, N_MONOMIALS)
    log_weight: Tensor  # of the same Gaussians, (clusters, components)
    mean: Tensor  # (clusters, components, 3)
    covariance: Tensor  # (clusters, components, 3, 3)
    table: Tensor  # (len(TABLE), clusters)
    field: Tensor  # coefficients (1, components, N_MONOMIALS)

    def of(self, name: str) -> Tensor:
        """A row of the table, (clusters,)."""
        return self.table[TABLE.index(name)]

    def log_prior(self, prior: str, field_prior: float) -> Tensor:
        """ln of the prior of each cluster, and of the field at the end, (clusters + 1,)."""
        weight = torch.ones_like(self.table[0])
        if prior != "flat":
            weight = self.of(prior)
        weight = (1 - field_prior) * weight / weight.sum()
        return torch.cat([weight, weight.new_full((1,), field_prior)]).log()

    def log_p(self, y: Tensor) -> Tensor:
        """ln density of coordinates (n, 3) in each host, (n, clusters + 1)."""
        powers = monomials(y)
        terms = [
            (powers @ t.flatten(0, 1).T).unflatten(1, t.shape[:2])
            for t in (self.clusters, self.field)
        ]
        return torch.cat([of_components.logsumexp(2) for of_components in terms], 1)

    def log_likelihood(self, y: Tensor, log_weight: Tensor) -> Tensor:
        """ln of densities at draws (batch, draws, 3), weighted and summed: (batch, clusters + 1).

        A star is compared with the `N_NEAR` nearest clusters at every draw, and with the others by
        the mean and covariance of its draws.
        """
        share = log_weight.softmax(1).nan_to_num()[..., None]
        mean = (share * y).sum(1)
        residual = y - mean[:, None]
        error = (share * residual).mT @ residual
        total = log_weight.logsumexp(1, keepdim=True)
        far = self.convolved(mean, error) + total
        near = self.nearest(mean, error)
        powers = monomials(y).mT
        chosen = self.clusters[near].flatten(1, 2)
        terms = torch.baddbmm(log_weight[:, None], chosen, powers)  # of each, at each draw
        terms = terms.reshape(*near.shape, -1)
        log_p = far.scatter(1, near, log_sum_exp(terms, (2,)))
        field = self.field.expand(len(y), -1, -1)
        field = torch.baddbmm(log_weight[:, None], field, powers)
        return torch.cat([log_p, log_sum_exp(field, (1, 2))[:, None]], 1)

    def convolved(self, y: Tensor, error: Tensor) -> Tensor:
        """ln density of each cluster at y (batch, 3), convolved with Gaussian errors."""
        gaussians = self.mean.flatten(0, 1), self.covariance.flatten(0, 1)
        square, log_det = squared_distance(y, error, *gaussians)
        terms = self.log_weight.flatten().float() - 0.5 * (square + log_det + 3 * LOG_2_PI)
        return log_sum_exp(terms.unflatten(1, self.log_weight.shape), (2,))

    def nearest(self, y: Tensor, error: Tensor) -> Tensor:
        """The clusters most likely by Student's distributions of their moments: (batch, N_NEAR)."""
        scale = self.moments.scale
        student = log_student(*squared_distance(y, error, self.moments.mean, scale @ scale.mT))
        return student.topk(min(N_NEAR, student.shape[1]), 1).indices

    def within_reach(
        self, ra: Tensor, dec: Tensor, distance: Tensor, distance_error: Tensor
    ) -> Tensor:
        """Whether stars (batch,) are within the tidal radius on the sky, and maybe along it.

        deg and kpc; a star whose distance is not known (NaN) may be at any. (batch, clusters).
        """
        radius = self.of("r_t") / (1e3 * self.of("distance"))
        near = angle(ra[:, None], dec[:, None], self.of("ra"), self.of("dec")) < radius
        apart = (distance[:, None] - self.of("distance")).abs()
        error = torch.hypot(distance_error[:, None], self.of("e_distance"))
        return near & ~(apart > 3 * error)

    def joined(self, others: "Hosts") -> "Hosts":
        """These clusters and then others, with the field of these."""
        return Hosts(
            Moments(*(torch.cat(pair) for pair in zip(self.moments, others.moments, strict=True))),
            torch.cat([self.clusters, others.clusters]),
            torch.cat([self.log_weight, others.log_weight]),
            torch.cat([self.mean, others.mean]),
            torch.cat([self.covariance, others.covariance]),
            torch.cat([self.table, others.table], 1),
            self.field,
        )


def angle(ra: Tensor, dec: Tensor, ra_0: Tensor, dec_0: Tensor) -> Tensor:
    """Angles on the sky, radian, between places in deg."""
    ra, dec, ra_0, dec_0 = (x * (math.pi / 180) for x in (ra, dec, ra_0, dec_0))
    square = torch.sin((dec - dec_0) / 2) ** 2
    square = square + torch.cos(dec) * torch.cos(dec_0) * torch.sin((ra - ra_0) / 2) ** 2
    return 2 * torch.asin(square.clamp(0, 1).sqrt())
