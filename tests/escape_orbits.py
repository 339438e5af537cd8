"""Orbits of ejected stars from a cluster's centre, through its moving potential, to outside of it.

The simulation starts them outside with what is left of their speed: a test compares both.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.clusters.lowered_isothermal import Model, at_radius, solve
from orrery.physics.ejections.structure import CoreStructure
from orrery.physics.ejections.three_body import Ejections
from orrery.physics.milky_way.axisymmetric import HasAccelerations, acceleration
from orrery.physics.milky_way.potentials import KPC_PER_GYR

INNERMOST = -7.0  # ln(r / r_0), within which the density is constant
TABLE_SIZE = 2000
STEP = 0.05  # of the time to cross the distance to the centre, or to fall to it, or of the orbit


class Departure(NamedTuple):
    """Stars as they leave, (n, clusters, ...)."""

    x: Tensor  # kpc, Galactocentric, (..., 3)
    v: Tensor  # km/s, (..., 3)
    time: Tensor  # Gyr after the ejection
    away: Tensor  # bool; the others turned back, and are given where they did


def from_core(
    x: Tensor,
    v: Tensor,
    ejections: Ejections,
    core: CoreStructure,
    galaxy: HasAccelerations,
    radii: float = 5.0,
) -> Departure:
    """Stars that start at the centre with their full speed, when ``radii`` r_t away from it.

    ``x``, kpc, and ``v``, km/s, are the cluster's when it ejects the star: (clusters, 3) or
    (n, clusters, 3), without the clusters' axis if the ejections are of one cluster.

    The star moves in the lowered isothermal model of ``core`` ((clusters,), or of one cluster),
    which moves in the ``galaxy``, by Runge-Kutta steps of order 4, each star with its own.
    """
    shape = ejections.direction.shape
    clusters = torch.arange(core.W0.numel()).reshape(core.W0.shape).expand(shape[:-1]).flatten()
    r0, r_t = (1e-3 * y.reshape(-1)[clusters] for y in (core.r0, core.r_t))  # kpc
    s2 = (core.v_esc.square() / (2 * core.W0)).reshape(-1)[clusters]
    log_mean_density = _mass_table(solve(core.W0.reshape(-1), core.g.reshape(-1)))

    def stiffness(offset: Tensor, rows: Tensor) -> Tensor:
        """G M(< r) / r^3, (km/s / kpc)^2."""
        log_r = (offset.norm(dim=-1) / r0[rows]).clamp_min(1e-300).log()
        return s2[rows] / r0[rows].square() * log_mean_density(clusters[rows], log_r).exp()

    def slopes(state: Tensor, rows: Tensor) -> Tensor:
        place, speed, offset, drift = state.unbind(1)
        carried = acceleration(galaxy, place)
        tide = acceleration(galaxy, place + offset) - carried
        pull = -stiffness(offset, rows)[:, None] * offset
        return torch.stack([speed, carried, drift, pull + tide], 1)

    flight = (ejections.v[..., None] * ejections.direction).reshape(-1, 3)
    x, v = (y.expand(shape).reshape(-1, 3) for y in (x, v))
    states = torch.stack([x, v, torch.zeros_like(x), flight], 1)
    times = torch.zeros(len(states), dtype=states.dtype)
    rows = torch.arange(len(states))
    while len(rows):
        state = states[rows]
        place, speed, offset, drift = (state[:, i] for i in range(4))
        size = offset.norm(dim=-1) + r0[rows]
        fall = size.square() * stiffness(offset, rows)
        crossing = size / (drift.square().sum(-1) + fall).sqrt()
        h = STEP * torch.minimum(crossing, place.norm(dim=-1) / speed.norm(dim=-1))
        times[rows] += h
        h = h[:, None, None]
        k1 = slopes(state, rows)
        k2 = slopes(state + 0.5 * h * k1, rows)
        k3 = slopes(state + 0.5 * h * k2, rows)
        k4 = slopes(state + h * k3, rows)
        state = state + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        states[rows] = state
        inside = state[:, 2].norm(dim=-1) < radii * r_t[rows]
        outward = (state[:, 2] * state[:, 3]).sum(-1) > 0
        rows = rows[inside & outward]
    away = states[:, 2].norm(dim=-1) >= radii * r_t
    return Departure(
        (states[:, 0] + states[:, 2]).view(shape),
        (states[:, 1] + states[:, 3]).view(shape),
        (times / KPC_PER_GYR).view(shape[:-1]),
        away.view(shape[:-1]),
    )


def _mass_table(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """ln(m / r^3) in model units, of the model's row and ln(r / r_0); linear in a fine table."""
    last = model.rt.log()
    span = last - INNERMOST
    fractions = torch.linspace(0, 1, TABLE_SIZE, dtype=last.dtype)
    table = at_radius(model, (INNERMOST + span[:, None] * fractions).exp())[1]
    log_mass = model.mt.log()

    def interpolated(rows: Tensor, log_r: Tensor) -> Tensor:
        level = ((log_r - INNERMOST) / span[rows]).clamp(0, 1) * (TABLE_SIZE - 1)
        left = level.long().clamp_max(TABLE_SIZE - 2)
        inside = torch.lerp(table[rows, left], table[rows, left + 1], level - left)
        return torch.where(log_r < last[rows], inside, log_mass[rows] - 3 * log_r)

    return interpolated
