"""A basis of spectra: principal components that are orthogonal in relative flux."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.observed import LYMAN_LIMIT
from orrery.physics.sps.population import N_PIXELS

# weights of pixels in the basis: of the common grid over the fine one, and of what is rarely seen
COARSE, IONISING, FAR_INFRARED = 2.0, 0.2, 0.1
FAR = 1e5  # Angstrom
FAINT = 1e-4  # of the mean of the fine grid: fainter pixels count as if they were as bright
ROUNDING = 1e-9  # of the largest entry of a matrix that is to be positive definite
LEAST_SCATTER = 1e-5  # of outputs of the network in the training set


class Basis(NamedTuple):
    """Principal components, and the scales of the coefficients of n components of galaxies."""

    vectors: Tensor  # (k, pixels)
    pixel_scale: Tensor  # (pixels,), that makes spectra alike in all pixels
    center: Tensor  # (n, k): mean coefficients of a component
    spread: Tensor  # (n, k, k): coefficients = center + standard numbers @ spread
    root: Tensor  # (n, k, k): errors of coefficients @ root are relative errors of spectra


def principal_components(shapes: Tensor, wavelength: Tensor, k: int) -> Basis:
    """The first ``k`` of ``shapes`` (galaxies, n, pixels), at ``wavelength`` (pixels,), Angstrom.

    ``shapes``: spectra of a mean of 1 on the fine grid, float64.
    """
    weight = torch.ones_like(shapes[0, 0])
    weight[:N_PIXELS] *= COARSE
    weight[wavelength < LYMAN_LIMIT] *= IONISING
    weight[wavelength > FAR] *= FAR_INFRARED
    rows = shapes.flatten(0, 1)
    scale = weight / rows.clamp_min(FAINT).log().mean(0).exp()
    scaled = rows * scale
    _, vectors = torch.linalg.eigh(scaled @ scaled.T)
    components = vectors[:, -k:].flip(1).T @ scaled
    basis = torch.linalg.qr(components.T)[0].T / scale
    scales = [_scales_of(each, basis, scale, weight) for each in shapes.unbind(1)]
    center, spread, root = (torch.stack(parts) for parts in zip(*scales, strict=True))
    return Basis(basis, scale, center, spread, root)


def _scales_of(
    each: Tensor, basis: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Center (k,), spread and root (k, k) of one component's shapes (galaxies, pixels)."""
    size = (weight / each.clamp_min(FAINT)).square().mean(0) / weight.square().sum()
    metric = (basis * size) @ basis.T
    metric = metric + ROUNDING * metric.max() * torch.eye(len(basis)).to(metric)
    root = torch.linalg.cholesky(metric)
    shape = (each * scale) @ (basis * scale).T
    relative = (shape - shape.mean(0)) @ root
    _, scatter, axes = torch.linalg.svd(relative, full_matrices=False)
    scatter = (scatter / len(each) ** 0.5).clamp_min(LEAST_SCATTER)
    return shape.mean(0), (scatter[:, None] * axes) @ torch.linalg.inv(root), root
