"""Binned profiles of a cluster, and the same profiles of a model; float64.

Star counts follow the mass: a profile of number density has the shape of the surface density, and
an amplitude that is free.
"""

import math
from typing import NamedTuple

from torch import Tensor

from orrery.physics.clusters.cluster_projection import Projected, project
from orrery.physics.clusters.lowered_isothermal import G, Model
from orrery.physics.constants import KM_S_PER_AU_YR

PC_PER_ARCMIN_KPC = 1e3 * math.pi / (180 * 60)
# kinds of profiles, and the units of their values
UNITS = {
    "density": "1/arcmin2",
    "los": "km/s",
    "radial": "mas/yr",
    "tangential": "mas/yr",
    "total": "mas/yr",
}
DISPERSION_FLOOR = (
    1e-2  # km/s, added to dispersions in quadrature: their slope at r_t would be infinite
)


class Profile(NamedTuple):
    """A profile as observed. ``down`` and ``up`` are the errors to each side."""

    name: str
    kind: str  # of `UNITS`
    r: Tensor  # (n,), arcmin
    value: Tensor  # (n,), in the unit of the kind; number density less its background
    down: Tensor
    up: Tensor


def projected_radius(r: Tensor, distance: Tensor) -> Tensor:
    """Projected radii, pc, of angles ``r``, arcmin, at a distance in kpc."""
    return PC_PER_ARCMIN_KPC * distance * r


def model_profile(kind: str, model: Projected, distance: Tensor) -> Tensor:
    """A profile of models, (models, n), in its unit of `UNITS`; density as Msun / pc^2.

    ``model``: of `project_physical`. ``distance`` (models, 1), kpc. The square of the
    total proper motion is the mean over its two components.
    """
    if kind == "density":
        return model.surface_density
    square = {
        "los": model.v2_los,
        "radial": model.v2_radial,
        "tangential": model.v2_tangential,
        "total": 0.5 * (model.v2_radial + model.v2_tangential),
    }[kind]
    dispersion = (square + DISPERSION_FLOOR**2).sqrt()
    return dispersion if kind == "los" else dispersion / (KM_S_PER_AU_YR * distance)


def project_physical(model: Model, mass: Tensor, rh: Tensor, R: Tensor) -> Projected:
    """Solved models of ``mass``, Msun, and ``rh``, pc, both (models,), at ``R`` (models, n), pc.

    Surface density in Msun / pc^2, mean square velocities in (km/s)^2.
    """
    r0 = (rh / model.rh)[:, None]
    s2 = G * mass[:, None] / (r0 * model.mt[:, None])
    density, *v2 = project(model, R / r0)
    return Projected(mass[:, None] / r0**2 * density, *(s2 * x for x in v2))
