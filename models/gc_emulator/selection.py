"""Selection of stars by position on the sky, and the fraction of a cluster that it includes."""

import math
from typing import NamedTuple

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from orrery.models.gc_emulator.emulator import Cluster
from orrery.models.gc_emulator.members import Centre
from orrery.physics.clusters.cluster_stars import axes
from orrery.physics.clusters.observations import SkySelection

RINGS, ANGLES = 64, 16  # nodes of the quadrature over the selected sky, and over half a ring
ARCMIN = math.pi / 180 / 60


class Selection(NamedTuple):
    """Completeness by angular distance from a point of the sky."""

    direction: Tensor  # (3,)
    radius: Tensor  # (k,) arcmin, rising
    completeness: Tensor  # (k,) linear in between, 0 outside

    def log_sky(self) -> float:
        """ln of the selected solid angle, weighted by completeness, rad^2, on a flat sky."""
        r, c = self.radius * ARCMIN, self.completeness
        moments = c[:-1] * (2 * r[:-1] + r[1:]) + c[1:] * (r[:-1] + 2 * r[1:])
        return math.log(2 * math.pi / 6 * float((r.diff() * moments).sum()))

    def log_inside(self, cluster: Cluster, centre: Centre, mass: Tensor) -> Tensor:
        """ln of the selected fraction of each cluster, (chains, 1).

        ``mass`` (chains, 1), Msun. The cluster is symmetric about the line from the point of the
        selection to its centre: half of each ring is enough. Nodes are concentrated, by sinh, where
        a ring is nearest to the centre and where the rings are, on the scale of the King radius, so
        that no dense core is missed.
        """
        (x, wx), (y, wy) = ((torch.from_numpy(v) for v in leggauss(n)) for n in (RINGS, ANGLES))
        core = (cluster.r0 / centre.distance)[..., None]  # (chains, 1, 1), rad
        chord2 = (centre.direction - self.direction).square().sum(-1, keepdim=True)
        d = 2 * (0.5 * (chord2 + (1e-3 * core).square()).sqrt()).asin()
        low, high = (
            torch.asinh((r * ARCMIN - d) / core) for r in (self.radius[0], self.radius[-1])
        )
        t = 0.5 * (low + high) + 0.5 * (high - low) * x[:, None]
        offset = core * torch.sinh(t)  # of a ring from the centre, (chains, rings, 1)
        ring = d + offset
        width = ((offset.square() + core.square()) / (d * ring.clamp_min(1e-9 * core))).sqrt()
        t_max = torch.asinh(math.pi / width)
        angle = width * torch.sinh(0.5 * t_max * (1 + y))  # (chains, rings, angles)
        half = (0.5 * offset).sin().square() + d.sin() * ring.sin() * (0.5 * angle).sin().square()
        R2 = centre.distance[..., None].square() * 4 * half * (1 - half)
        density = cluster.projected(R2.flatten(1)).surface_density.view(R2.shape)
        step = 0.5 * t_max * wy * (angle.square() + width.square()).sqrt()
        step = step * wx[:, None] * 0.5 * (high - low) * (offset.square() + core.square()).sqrt()
        step = 2 * step * ring.sin() * self._completeness_at(ring / ARCMIN)
        inside = (density * step).sum((1, 2)) * centre.distance[:, 0].square()
        return (inside[:, None] / mass).clamp_min(1e-30).log()

    def mean_completeness(self, direction: Tensor, radius: Tensor) -> Tensor:
        """On rings of ``radius`` (...), arcmin, about ``direction`` (3,)."""
        ring = (radius * ARCMIN)[..., None]
        d = 2 * (0.5 * (direction - self.direction).norm()).asin()
        angle = math.pi * (torch.arange(RINGS, dtype=torch.float64) + 0.5) / RINGS
        half = (0.5 * (ring - d)).sin().square() + d.sin() * ring.sin() * (0.5 * angle).sin() ** 2
        separation = 2 * half.clamp(0, 1).sqrt().asin() / ARCMIN
        inside = (separation >= self.radius[0]) & (separation <= self.radius[-1])
        return torch.where(inside, self._completeness_at(separation), 0.0).mean(-1)

    def _completeness_at(self, radius: Tensor) -> Tensor:
        """At radii, arcmin, between the first and the last."""
        knots, right = self.radius, torch.searchsorted(self.radius, radius.detach().contiguous())
        right = right.clamp(1, len(knots) - 1)
        fraction = (radius - knots[right - 1]) / (knots[right] - knots[right - 1])
        return torch.lerp(self.completeness[right - 1], self.completeness[right], fraction)


def selection_of(observed: SkySelection) -> Selection:
    """The same selection as tensors, about a unit vector."""
    ra, dec = (torch.tensor(math.radians(x), dtype=torch.float64) for x in observed.centre)
    radius, completeness = (torch.from_numpy(x) for x in (observed.radius, observed.completeness))
    return Selection(axes(ra, dec)[2], radius, completeness)


def sky_density(cluster: Cluster, centre: Centre, direction: Tensor) -> Tensor:
    """Mass per solid angle, Msun / rad^2, (chains, n), in directions (chains, n, 3)."""
    across = torch.linalg.cross(*torch.broadcast_tensors(direction, centre.direction))
    R2 = centre.distance**2 * across.square().sum(-1)
    return cluster.projected(R2).surface_density * centre.distance**2
