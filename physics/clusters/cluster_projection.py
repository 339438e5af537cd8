"""Projections of lowered isothermal models: integrals along the line of sight, float64."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.clusters.lowered_isothermal import (
    Model,
    at_radius,
    lowered_exponential,
    pressures,
)
from orrery.physics.constants import constant_like

QUADRATURE_NODES = 64


class Projected(NamedTuple):
    """Profiles at projected radii, each (models, n).

    In units of M / r_0^2 and s^2, or in Msun / pc^2 and (km/s)^2, as the function says.
    """

    surface_density: Tensor
    v2_los: Tensor  # mean square velocity along the line of sight
    v2_radial: Tensor  # on the sky, away from the centre
    v2_tangential: Tensor  # on the sky, about the centre


def _quadrature() -> Tensor:
    """Nodes and weights of Gauss and Legendre between 0 and 1, (2, nodes)."""
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    return torch.from_numpy(np.stack([0.5 + 0.5 * nodes, 0.5 * weights]))


def project(model: Model, radius: Tensor) -> Projected:
    """Profiles at projected radii (models, n), r_0, in units of M / r_0^2 and s^2; 0 beyond r_t.

    Gauss-Legendre along the line of sight, in a coordinate that is dense in the core, where
    ln(1 + r^2) = ln(1 + R^2) + T sin^2(theta), and at the edge, by theta = pi/2 s (2 - s): there
    the density is a power g + 3/2 of the depth.
    """
    s, weights = constant_like(radius, _quadrature)
    theta = 0.5 * math.pi * s * (2 - s)
    base = 1 + radius.square()
    outermost = torch.log((1 + model.rt.square())[:, None] / base)
    inside = outermost > 0
    span = torch.where(inside, outermost, 1.0)[..., None]
    tau = span * theta.sin().square()
    z2 = base[..., None] * torch.expm1(tau)
    r2 = radius.square()[..., None] + z2
    along = base[..., None] * tau.exp() * span * (2 * theta).sin() / z2.sqrt()  # 2 dz / dtheta
    measure = along * (math.pi * (1 - s)) * weights

    r = r2.sqrt()
    phi, _ = at_radius(model, r.flatten(1))
    p2 = None if model.ra is None else r2.flatten(1) / model.ra[:, None] ** 2
    rho, radial, tangential = (
        x.view_as(r) * measure for x in pressures(model.g[:, None], phi.clamp_min(0), p2)
    )
    sine2 = radius.square()[..., None] / r2  # of the angle between radius and line of sight
    sums = (
        rho,
        radial * (1 - sine2) + tangential * sine2,
        radial * sine2 + tangential * (1 - sine2),
        tangential,
    )
    density, *moments = (x.sum(-1) for x in sums)
    norm = 9 / (4 * math.pi * model.mt * lowered_exponential(model.g + 1.5, model.W0))
    v2 = [torch.where(inside, x / density.clamp_min(1e-300), 0.0) for x in moments]
    return Projected(torch.where(inside, norm[:, None] * density, 0.0), *v2)
