"""Binned profiles of a cluster, and what a model of it shows there; float64.

Star counts follow the mass: a profile of number density has the shape of the surface density, and
an amplitude that is free.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from physics.cluster_stars import KMS_PER_MAS_YR_KPC
from physics.lowered_isothermal import G, Model, at_radius, density, moment

PC_PER_ARCMIN_KPC = 1e3 * math.pi / (180 * 60)
# kinds of profiles, and the units of their values
UNITS = {
    "density": "1/arcmin2",
    "los": "km/s",
    "radial": "mas/yr",
    "tangential": "mas/yr",
    "total": "mas/yr",
}
FLOOR = 1e-2  # km/s, added to dispersions in quadrature: their slope at r_t would be infinite
NODES = 24  # along a line of sight: 1e-9

Field = Callable[[Tensor], Tensor]


class Profile(NamedTuple):
    """A profile as observed. ``down`` and ``up`` are the errors to each side."""

    name: str
    kind: str  # of `UNITS`
    r: Tensor  # (n,), arcmin
    value: Tensor  # (n,), in the unit of the kind; number density after its background
    down: Tensor
    up: Tensor


class Projected(NamedTuple):
    """A model at projected radii, (models, n)."""

    surface_density: Tensor  # Msun / pc^2
    v2_los: Tensor  # mean squares of velocities, (km/s)^2
    v2_radial: Tensor
    v2_tangential: Tensor


def radius(r: Tensor, distance: Tensor) -> Tensor:
    """Projected radii, pc, of angles ``r``, arcmin, at a distance in kpc."""
    return PC_PER_ARCMIN_KPC * distance * r


def observed(kind: str, model: Projected, distance: Tensor) -> Tensor:
    """The model in the unit of the profile; number density in Msun / pc^2, before its amplitude.

    ``distance`` (models, 1), kpc. The total proper motion is the mean of its two components.
    """
    if kind == "density":
        return model.surface_density
    square = {
        "los": model.v2_los,
        "radial": model.v2_radial,
        "tangential": model.v2_tangential,
        "total": 0.5 * (model.v2_radial + model.v2_tangential),
    }[kind]
    dispersion = (square + FLOOR**2).sqrt()
    return dispersion if kind == "los" else dispersion / (KMS_PER_MAS_YR_KPC * distance)


def projected(model: Model, mass: Tensor, rh: Tensor, R: Tensor) -> Projected:
    """Solved isotropic models of ``mass``, Msun, and ``rh``, pc, both (models,), at ``R``, pc."""
    r0 = (rh / model.rh)[:, None]
    s2 = G * mass[:, None] / (r0 * model.mt[:, None])
    rho_0 = 9 * s2 / (4 * math.pi * G * r0**2)
    a = model.g[:, None] + 1.5

    def fields(r2: Tensor) -> tuple[Tensor, Tensor]:
        r = r2.sqrt() / r0
        phi = at_radius(model, r)[0].clamp_min(0)
        rho = rho_0 * density(model, phi, r)
        ratio = moment(a + 1, phi, None) / moment(a, phi, None).clamp_min(1e-300)
        return rho, rho * s2 * ratio

    return along_lines_of_sight(fields, R.square(), r0, model.rt[:, None] * r0)


def along_lines_of_sight(
    fields: Callable[[Tensor], tuple[Tensor, Tensor]], R2: Tensor, r0: Tensor, rt: Tensor
) -> Projected:
    """Integrals of density and pressure, `fields` of squared radii (models, n), isotropic.

    ``R2`` (models, n), squared projected radii; the core radius and the edge are (models, 1).
    Gauss-Legendre in asinh(z / c), c^2 = R^2 + r0^2: even both in the core and in the halo.
    """
    x, w = (torch.from_numpy(v).to(R2) for v in np.polynomial.legendre.leggauss(NODES))
    core = (R2 + r0**2).sqrt()[..., None]
    top = torch.asinh((rt**2 - R2).clamp_min(1e-20).sqrt()[..., None] / core)
    t = 0.5 * top * (1 + x)
    z, dz = core * torch.sinh(t), core * torch.cosh(t) * top * w
    rho, pressure = fields((R2[..., None] + z * z).flatten(1))
    surface = (rho.view(z.shape) * dz).sum(-1)
    v2 = (pressure.view(z.shape) * dz).sum(-1) / surface.clamp_min(1e-300)
    v2 = torch.where(surface > 0, v2, 0.0)
    return Projected(surface, v2, v2, v2)
