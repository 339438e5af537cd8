"""The centre of a cluster from its mass and radii, by lowered isothermal models, float64.

A LIMEPY fit gives W0, g and the half-mass radius. Where there is none a King model (g = 1) follows
from c = log10(r_t / r_0) or, of a collapsed core, from the ratio of the projected radii of half the
light and of half the central surface density. Harris's c refers to King's scale r_0, his core
radius is where the surface density halves: only so do these models have his half-light radii
(to 2%).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from orrery.physics.clusters.cluster_projection import project
from orrery.physics.clusters.lowered_isothermal import G, Model, pressures, solve
from orrery.physics.ejections.clusters import KING_HALF, KING_TIDAL, LIMEPY, Clusters

KING_W0_MIN, KING_W0_MAX = 0.1, 14.5


class CoreStructure(NamedTuple):
    """Of each cluster, (clusters,)."""

    rho0: Tensor  # Msun / pc^3, at the centre
    sigma0: Tensor  # km/s, of one component of the velocity at the centre
    v_esc: Tensor  # km/s, with which a star at the centre reaches the truncation radius
    r_t: Tensor  # pc, truncation radius
    r0: Tensor  # pc, King's scale
    W0: Tensor
    g: Tensor


class KingScales(NamedTuple):
    """Radii of King models in r_0: models of increasing W0."""

    W0: Tensor
    rt: Tensor  # truncation radius
    core: Tensor  # where the surface density is half the central one
    half: Tensor  # projected, with half of the mass


def core_structure(clusters: Clusters) -> CoreStructure:
    """Density, dispersion and escape velocity at the centres of the clusters.

    Raises ``ValueError`` for a cluster whose radii no King model has.
    """
    W0, g = clusters.W0.clone(), clusters.g.clone()
    r0 = torch.full_like(W0, torch.nan)
    source = np.array(clusters.structure_source)
    tidal, half = (torch.from_numpy(source == s) for s in (KING_TIDAL, KING_HALF))
    W0[tidal] = king_W0(clusters, tidal, clusters.r_tidal, "rt")
    W0[half] = king_W0(clusters, half, clusters.r_half, "half")
    king = tidal | half
    g[king] = 1.0
    r0[king] = clusters.r_core[king] / _at(W0[king], king_scales().core)
    model = solve(W0, g)
    fit = torch.from_numpy(source == LIMEPY)
    r0 = torch.where(fit, clusters.r_half_mass / model.rh, r0)
    return centre(model, clusters.mass, r0)


def centre(model: Model, mass: Tensor, r0: Tensor) -> CoreStructure:
    """The centre of models of this mass, Msun, and scale, pc, (models,).

    Poisson's equation in model units gives rho_0 = 9 s^2 / (4 pi G r_0^2), with
    s^2 = G M / (r_0 m_t). The dispersion follows from the moments of the distribution function at
    W0, and the potential rises by W0 s^2 from the centre to r_t.
    """
    s2 = G * mass / (r0 * model.mt)
    density, pressure, _ = pressures(model.g, model.W0, None)
    return CoreStructure(
        9 * s2 / (4 * math.pi * G * r0.square()),
        (s2 * pressure / density).sqrt(),
        (2 * s2 * model.W0).sqrt(),
        model.rt * r0,
        r0,
        model.W0,
        model.g,
    )


def king_W0(clusters: Clusters, of: Tensor, outer: Tensor, radius: str) -> Tensor:
    """W0 of the clusters ``of`` (a mask) from the ratio of the ``outer`` radius to r_core.

    ``radius`` is "rt" (the ratio is r_t / r_0 by Harris's convention) or "half" (projected).
    """
    scales = king_scales()
    ratio = scales.rt if radius == "rt" else scales.half / scales.core
    given = (outer / clusters.r_core)[of].log10()
    low, high = float(ratio[0].log10()), float(ratio[-1].log10())
    bad = ~((given >= low) & (given <= high))
    if bad.any():
        row = int(of.nonzero()[bad][0])
        column = "r_tidal" if radius == "rt" else "r_half"
        raise ValueError(
            f"{clusters.names[row]}: {column} = {float(outer[row]):g} pc and r_core = "
            f"{float(clusters.r_core[row]):g} pc fit no King model, whose ratio is between "
            f"{10**low:.3g} and {10**high:.3g}. Check their units, or give W0, g and r_half_mass."
        )
    return torch.from_numpy(PchipInterpolator(ratio.log10(), scales.W0)(given))


@functools.cache
def king_scales() -> KingScales:
    """Radii of King models from W0 = 0.1 to 14.5."""
    W0 = torch.linspace(KING_W0_MIN, KING_W0_MAX, 48, dtype=torch.float64)
    model = solve(W0, torch.ones_like(W0))
    steps = torch.linspace(-4, 0, 160, dtype=torch.float64)
    R = model.rt[:, None] * 10**steps
    surface = project(model, R).surface_density
    central = project(model, torch.zeros_like(R[:, :1])).surface_density
    rings = 2 * math.pi * surface * R.square()
    inner = math.pi * central * R[:, :1].square()
    mass = torch.cat([inner, inner + torch.cumulative_trapezoid(rings, R.log(), dim=1)], 1)
    core = _crossing(-surface / central, R, -0.5)
    return KingScales(W0, model.rt, core, _crossing(mass / mass[:, -1:], R, 0.5))


def _crossing(rising: Tensor, R: Tensor, level: float) -> Tensor:
    """ln R, interpolated, where the ``rising`` function of R, (models, n), reaches the level."""
    right = (rising >= level).double().argmax(1, keepdim=True).clamp_min(1)
    low, high = rising.gather(1, right - 1), rising.gather(1, right)
    log_R = R.log()
    start, end = log_R.gather(1, right - 1), log_R.gather(1, right)
    return torch.lerp(start, end, (level - low) / (high - low)).exp()[:, 0]


def _at(W0: Tensor, values: Tensor) -> Tensor:
    """A radius of `king_scales` at other ``W0``."""
    return torch.from_numpy(PchipInterpolator(king_scales().W0, values)(W0))
