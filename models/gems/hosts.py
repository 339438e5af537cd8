"""Clusters and the field as hosts: tabulated densities of coordinates, and their priors."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.gems.density import (
    LOG_2_PI,
    SYMMETRIC,
    Moments,
    log_student,
    log_sum_exp,
    monomials,
    squared_distance,
    squared_length,
)
from orrery.physics.sky import sky_angle

PRIORS = ("flat", "mass", "rate")
N_NEAR = 12  # clusters that a star is compared with at every draw
N_BY_MIXTURE = 64  # clusters whose mixture is compared with the star's mean and covariance
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

        A star is compared with the `N_NEAR` nearest clusters at every draw, with the
        `N_BY_MIXTURE` nearest by the mean and covariance of its draws. The rest have the density of
        Student's distributions of their moments, whose tails are long: at most the least of these.
        """
        share = log_weight.softmax(1).nan_to_num()[..., None]
        mean = (share * y).sum(1)
        residual = y - mean[:, None]
        error = (share * residual).mT @ residual
        total = log_weight.logsumexp(1, keepdim=True)
        far = self.student(mean, error)
        nearest = far.topk(min(N_BY_MIXTURE, far.shape[1]), 1).indices
        middle = self.convolved(mean, error, nearest)
        far = torch.minimum(far, middle.amin(1, keepdim=True)).double()
        far = far.scatter(1, nearest, middle.double()) + total
        near = nearest[:, :N_NEAR]
        powers = monomials(y).mT
        chosen = self.clusters[near].flatten(1, 2)
        terms = torch.baddbmm(log_weight[:, None], chosen, powers)  # of each, at each draw
        terms = terms.reshape(*near.shape, -1)
        log_p = far.scatter(1, near, log_sum_exp(terms, (2,)))
        field = self.field.expand(len(y), -1, -1)
        field = torch.baddbmm(log_weight[:, None], field, powers)
        return torch.cat([log_p, log_sum_exp(field, (1, 2))[:, None]], 1)

    def convolved(self, y: Tensor, error: Tensor, cluster: Tensor) -> Tensor:
        """ln density at y (batch, 3), convolved with Gaussian errors (batch, 3, 3), in clusters.

        Their numbers, and the answer, are (batch, any).
        """
        mean, covariance = self.mean.float(), self.covariance.float()
        parts = [mean[..., i] for i in range(3)] + [covariance[..., i, j] for i, j in SYMMETRIC]
        table = torch.stack([*parts, self.log_weight.float()])  # contiguous rows are fast to take
        taken = table.index_select(1, cluster.flatten()).view(len(table), len(y), -1)
        offset = [at[:, None] - mean for at, mean in zip(y.float().unbind(-1), taken, strict=False)]
        total = [error[:, i, j, None].float() + c for (i, j), c in
                 zip(SYMMETRIC, taken[3:9], strict=True)]  # fmt: skip
        square, log_det = squared_length(offset, total)
        terms = taken[9] - 0.5 * (square + log_det + 3 * LOG_2_PI)
        return log_sum_exp(terms.view(*cluster.shape, -1), (2,))

    def student(self, y: Tensor, error: Tensor) -> Tensor:
        """ln of Student's distributions of all clusters' moments, widened: (batch, clusters)."""
        scale = self.moments.scale
        return log_student(*squared_distance(y, error, self.moments.mean, scale @ scale.mT))

    def within_reach(
        self, ra: Tensor, dec: Tensor, distance: Tensor, distance_error: Tensor
    ) -> Tensor:
        """Whether stars (batch,) are within the tidal radius on the sky, and maybe along it.

        deg and kpc; a star whose distance is not known (NaN) may be at any. (batch, clusters).
        """
        radius = self.of("r_t") / (1e3 * self.of("distance"))
        near = sky_angle(ra[:, None], dec[:, None], self.of("ra"), self.of("dec")) < radius
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
