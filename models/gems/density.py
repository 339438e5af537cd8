"""Densities in action space: a Gaussian mixture for every cluster, and one for the field.

Actions become coordinates y = (sqrt J_R, L_z / 30, sqrt J_z) in which what a cluster sprays is
nearly Gaussian: an ejection speed changes sqrt J_R and sqrt J_z about linearly, from a circular
orbit in the plane too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

L_Z_UNIT = 30.0  # (kpc km/s)^(1/2): coordinates of a halo star are of the order of 30
FREEDOM = 3.0  # degrees of freedom of Student's distribution: ejection speeds have a long tail
EM_STEPS = 10
LOG_2_PI = math.log(2 * math.pi)
SMALLEST_WIDTH = 0.02  # of a component, in standard deviations of its cluster's stars
N_MONOMIALS = 10
SYMMETRIC = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # elements of a covariance
N_MOMENTS = 9  # that describe a cluster: means, log widths and correlations of its coordinates


def coordinates(J: Tensor) -> Tensor:
    """y of actions J = (J_R, L_z, J_z), (..., 3), kpc km/s."""
    J_R, L_z, J_z = J.unbind(-1)
    return torch.stack([J_R.clamp_min(0).sqrt(), L_z / L_Z_UNIT, J_z.clamp_min(0).sqrt()], -1)


def log_jacobian(y: Tensor) -> Tensor:
    """ln |dy / dJ|, (...), of coordinates (..., 3); near the edges not above that of .1."""
    edge = y[..., [0, 2]].clamp_min(0.1)
    return -(2 * edge).log().sum(-1) - math.log(L_Z_UNIT)


class Moments(NamedTuple):
    """Of Student's distributions, with `FREEDOM`, of the coordinates of clusters' stars."""

    mean: Tensor  # (clusters, 3)
    scale: Tensor  # (clusters, 3, 3), lower triangular: times its transpose the matrix of widths

    def description(self) -> Tensor:
        """The network's input for each cluster, (clusters, N_MOMENTS)."""
        width = self.scale.diagonal(dim1=1, dim2=2)
        below = torch.cat(
            [self.scale[:, 1, :1] / width[:, 1:2], self.scale[:, 2, :2] / width[:, 2:]], 1
        )
        return torch.cat([self.mean, width.log(), below], 1)


def moments(y: Tensor, host: Tensor, n_clusters: int) -> Moments:
    """`Moments` of each cluster's stars: coordinates (n, 3) of stars of cluster ``host`` (n,).

    The most likely ones, by the steps of Liu & Rubin (1995, Statistica Sinica 5, 19): a few fast
    stars do not widen them, as they would a covariance.
    """
    y = y.double()
    inside = host < n_clusters
    y, host = y[inside], host[inside]
    count = torch.bincount(host, minlength=n_clusters)
    if int(count.min()) < 10:
        raise ValueError(
            f"cluster {int(count.argmin())} has {int(count.min())} bound stars to learn from; "
            f"expected 10 or more"
        )
    weight = torch.ones_like(y[:, 0])
    for _ in range(EM_STEPS):
        total = y.new_zeros(n_clusters).index_add_(0, host, weight)[:, None]
        mean = y.new_zeros(n_clusters, 3).index_add_(0, host, weight[:, None] * y) / total
        residual = y - mean[host]
        products = residual[:, :, None] * residual[:, None, :] * weight[:, None, None]
        covariance = y.new_zeros(n_clusters, 3, 3).index_add_(0, host, products)
        covariance = covariance / count[:, None, None]
        scale = torch.linalg.cholesky(covariance)
        z = torch.linalg.solve_triangular(scale[host], residual[..., None], upper=False)
        weight = (FREEDOM + 3) / (FREEDOM + z[..., 0].square().sum(1))
    return Moments(mean, scale)


class Mixture(NamedTuple):
    """Gaussian mixtures, a row each, normalised: precisions by their Cholesky factors."""

    log_weight: Tensor  # (rows, components)
    mean: Tensor  # (rows, components, 3)
    root: Tensor  # (rows, components, 3, 3), lower triangular: precision = root^T root

    def log_p(self, y: Tensor, row: Tensor) -> Tensor:
        """ln density of coordinates y (n, 3) in the mixture ``row`` (n,) of each."""
        z = torch.einsum("nmij,nmj->nmi", self.root[row], y[:, None] - self.mean[row])
        log_det = self.root[row].diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.logsumexp(
            self.log_weight[row] + log_det - 0.5 * z.square().sum(-1) - 1.5 * LOG_2_PI, 1
        )

    def unwhitened(self, by: Moments) -> "Mixture":
        """The mixture in coordinates, of one in coordinates scaled by the rows' moments."""
        inverse = torch.linalg.inv(by.scale)[:, None]
        mean = by.mean[:, None] + (by.scale[:, None] @ self.mean[..., None])[..., 0]
        return Mixture(self.log_weight, mean, self.root @ inverse)

    def covariance(self) -> Tensor:
        """Of each component, (rows, components, 3, 3)."""
        inverse = torch.linalg.inv(self.root)
        return inverse @ inverse.mT

    def coefficients(self) -> Tensor:
        """Of the `monomials` of y in ln(weight x density), (rows, components, N_MONOMIALS)."""
        precision = self.root.mT @ self.root
        linear = (precision @ self.mean[..., None])[..., 0]
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = self.log_weight + log_det - 1.5 * LOG_2_PI - 0.5 * (linear * self.mean).sum(-1)
        squares = -0.5 * precision.diagonal(dim1=-2, dim2=-1)
        mixed = -precision[..., [0, 0, 1], [1, 2, 2]]
        return torch.cat([constant[..., None], linear, squares, mixed], -1)


def log_sum_exp(terms: Tensor, dims: tuple[int, ...]) -> Tensor:
    """ln of the sum of exp(terms), float64, without ``dims``; exponentials in float32, to 1e-6."""
    top = terms.amax(dims, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    total = (terms - top).float().clamp_(min=-80).exp_().sum(dims)
    return total.double().log_() + top.reshape(total.shape)


def monomials(y: Tensor) -> Tensor:
    """1, y, their squares and their products, (..., N_MONOMIALS), of coordinates (..., 3)."""
    one = torch.ones_like(y[..., :1])
    return torch.cat([one, y, y.square(), y[..., [0, 0, 1]] * y[..., [1, 2, 2]]], -1)


def squared_distance(
    y: Tensor, error: Tensor, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Of stars from Gaussians, by the sum of their covariances: squared, and ln of the determinant.

    Stars are at y (n, 3) with ``error`` (n, 3, 3), Gaussians have a ``mean`` (m, 3) and a
    ``covariance`` (m, 3, 3): (n, m) each, float32.
    """
    total = [error[:, i, j].float()[:, None] + covariance[:, i, j].float() for i, j in SYMMETRIC]
    return squared_length((y[:, None] - mean).float().unbind(-1), total)


def squared_length(offset: Sequence[Tensor], covariance: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Squared length of vectors by the inverse of a covariance, and ln of its determinant.

    Three components (...,) of the vectors, and the covariance's six in the order of `SYMMETRIC`.
    The inverse is written out: many small ones are slow in torch.
    """
    (first, second, third), (a, b, c, d, e, f) = offset, covariance
    bc, ef, df = b * c - f * f, e * f - d * c, d * f - e * b
    determinant = a * bc + d * ef + e * df
    square = first * (first * bc + 2 * (second * ef + third * df))
    square = square + second * (second * (a * c - e * e) + 2 * third * (d * e - a * f))
    square = square + third * third * (a * b - d * d)
    return square / determinant, determinant.log()


def log_student(square: Tensor, log_det: Tensor) -> Tensor:
    """ln density of Student's distribution in three dimensions, of `squared_distance`."""
    constant = math.lgamma((FREEDOM + 3) / 2) - math.lgamma(FREEDOM / 2)
    constant -= 1.5 * math.log(FREEDOM * math.pi)
    return constant - 0.5 * log_det - (FREEDOM + 3) / 2 * torch.log1p(square / FREEDOM)


class MixtureNetwork(nn.Module):
    """The shape of what a cluster sprays, whitened by its moments, from these moments."""

    def __init__(self, components: int, width: int) -> None:
        super().__init__()
        self.components = components
        last = nn.Linear(width, 10 * components)
        nn.init.normal_(last.weight, std=0.1 / width**0.5)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(N_MOMENTS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        start = torch.zeros(components, 10)
        start[:, 1:4] = 0.8 * torch.randn(components, 3)
        start[:, 4:7] = 0.5
        self.common = nn.Parameter(start)  # to all clusters

    def forward(self, description: Tensor) -> Mixture:
        """Mixtures of clusters, from their scaled descriptions (clusters, N_MOMENTS)."""
        shape = len(description), self.components, 10
        return unpacked(self.layers(description).reshape(shape) + self.common)


class FieldMixture(nn.Module):
    """The field's mixture, in coordinates scaled by the field's moments."""

    def __init__(self, components: int) -> None:
        super().__init__()
        start = torch.zeros(1, components, 10)
        start[..., 1:4] = torch.randn(components, 3)
        start[..., 4:7] = 0.7
        self.parameters_ = nn.Parameter(start)

    def forward(self) -> Mixture:
        return unpacked(self.parameters_)


def unpacked(parameters: Tensor) -> Mixture:
    """Mixtures of parameters (rows, components, 10): weight, mean, and root of the precision."""
    log_diagonal = parameters[..., 4:7].clamp(max=-math.log(SMALLEST_WIDTH))
    root = torch.diag_embed(log_diagonal.exp())
    below = torch.zeros_like(root)
    below[..., 1, 0], below[..., 2, :2] = parameters[..., 7], parameters[..., 8:]
    return Mixture(parameters[..., 0].log_softmax(-1), parameters[..., 1:4], root + below)
