"""Which stars are in a list by their place on the sky, and which share of a cluster that is."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from orrery.models.gc_emulator.emulator import Cluster
from orrery.models.gc_emulator.members import Centre
from orrery.physics.clusters.cluster_stars import axes

RINGS, RAYS = 64, 16  # of the quadrature over the selected part of the sky, and of half a ring
ARCMIN = math.pi / 180 / 60


class Selection(NamedTuple):
    """Completeness by the distance from a point of the sky."""

    direction: Tensor  # (3,)
    radius: Tensor  # (k,) arcmin, rising
    completeness: Tensor  # (k,) linear in between; none outside

    def log_sky(self) -> float:
        """ln of the solid angle that is selected, rad^2, on a flat sky."""
        r, c = self.radius * ARCMIN, self.completeness
        moments = c[:-1] * (2 * r[:-1] + r[1:]) + c[1:] * (r[:-1] + 2 * r[1:])
        return math.log(2 * math.pi / 6 * float((r.diff() * moments).sum()))

    def log_inside(self, cluster: Cluster, centre: Centre, mass: Tensor) -> Tensor:
        """ln p(S | theta): the share of each cluster that is selected, (chains, 1).

        ``mass`` (chains, 1), Msun. The cluster is the same on both sides of the line from here to
        its centre: half of each ring is enough. Nodes are crowded, by sinh, where a ring passes the
        centre nearest and where the rings do, to King radii, so that no core slips through.
        """
        (x, wx), (y, wy) = ((torch.from_numpy(v) for v in leggauss(n)) for n in (RINGS, RAYS))
        core = (cluster.r0 / centre.distance)[..., None]  # (chains, 1, 1), rad
        apart = (centre.direction - self.direction).square().sum(-1, keepdim=True)
        d = 2 * (0.5 * (apart + (1e-3 * core).square()).sqrt()).asin()
        low, high = (
            torch.asinh((r * ARCMIN - d) / core) for r in (self.radius[0], self.radius[-1])
        )
        t = 0.5 * (low + high) + 0.5 * (high - low) * x[:, None]
        off = core * torch.sinh(t)  # of a ring from the centre, (chains, rings, 1)
        ring = d + off
        width = ((off.square() + core.square()) / (d * ring.clamp_min(1e-9 * core))).sqrt()
        reach = torch.asinh(math.pi / width)
        angle = width * torch.sinh(0.5 * reach * (1 + y))  # (chains, rings, rays)
        half = (0.5 * off).sin().square() + d.sin() * ring.sin() * (0.5 * angle).sin().square()
        R2 = centre.distance[..., None].square() * 4 * half * (1 - half)
        density = cluster.projected(R2.flatten(1)).surface_density.view(R2.shape)
        step = 0.5 * reach * wy * (angle.square() + width.square()).sqrt()
        step = step * wx[:, None] * 0.5 * (high - low) * (off.square() + core.square()).sqrt()
        step = 2 * step * ring.sin() * self._complete(ring / ARCMIN)
        inside = (density * step).sum((1, 2)) * centre.distance[:, 0].square()
        return (inside[:, None] / mass).clamp_min(1e-30).log()

    def share(self, middle: Tensor, radius: Tensor) -> Tensor:
        """Mean completeness on rings about a direction (3,), of ``radius`` (...), arcmin."""
        ring = (radius * ARCMIN)[..., None]
        d = 2 * (0.5 * (middle - self.direction).norm()).asin()
        angle = math.pi * (torch.arange(RINGS, dtype=torch.float64) + 0.5) / RINGS
        half = (0.5 * (ring - d)).sin().square() + d.sin() * ring.sin() * (0.5 * angle).sin() ** 2
        apart = 2 * half.clamp(0, 1).sqrt().asin() / ARCMIN
        inside = (apart >= self.radius[0]) & (apart <= self.radius[-1])
        return torch.where(inside, self._complete(apart), 0.0).mean(-1)

    def _complete(self, radius: Tensor) -> Tensor:
        """At radii, arcmin, between the first and the last."""
        knots, right = self.radius, torch.searchsorted(self.radius, radius.detach().contiguous())
        right = right.clamp(1, len(knots) - 1)
        share = (radius - knots[right - 1]) / (knots[right] - knots[right - 1])
        return torch.lerp(self.completeness[right - 1], self.completeness[right], share)


def select(centre: tuple[float, float], radius: np.ndarray, completeness: np.ndarray) -> Selection:
    """About ``centre``, right ascension and declination in deg."""
    ra, dec = (torch.tensor(math.radians(x), dtype=torch.float64) for x in centre)
    return Selection(axes(ra, dec)[2], torch.from_numpy(radius), torch.from_numpy(completeness))


def on_sky(cluster: Cluster, centre: Centre, direction: Tensor) -> Tensor:
    """Mass per solid angle, Msun / rad^2, (chains, n), in directions (chains, n, 3)."""
    across = torch.linalg.cross(*torch.broadcast_tensors(direction, centre.direction))
    R2 = centre.distance**2 * across.square().sum(-1)
    return cluster.projected(R2).surface_density * centre.distance**2
