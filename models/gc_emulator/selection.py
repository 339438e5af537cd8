"""Which stars are in a list by their place on the sky, and which share of a cluster that is."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor
from torch.nn import functional as F

from models.gc_emulator.emulator import Cluster
from models.gc_emulator.members import Centre
from physics.cluster_stars import axes

RINGS, RAYS = 64, 8  # of the quadrature over the selected part of the sky
ARCMIN = math.pi / 180 / 60


class Selection(NamedTuple):
    """Completeness by the distance from a point of the sky."""

    direction: Tensor  # (3,)
    radius: Tensor  # (k,) arcmin, rising
    completeness: Tensor  # (k,) linear in between; none outside

    def log_sky(self, scale: float) -> float:
        """ln of the solid angle that is selected, rad^2; ``scale`` as `log_inside`."""
        return float(self._rings(scale)[1].sum().log())

    def log_inside(self, cluster: Cluster, centre: Centre, mass: Tensor, scale: float) -> Tensor:
        """ln p(S | theta): the share of each cluster that is selected, (chains, 1).

        ``mass`` (chains, 1), Msun; ``scale``: of what is dense of the cluster, rad, roughly.
        """
        rho, weight = self._rings(scale)
        east, north, _ = axes(
            torch.atan2(self.direction[1], self.direction[0]), self.direction[2].asin()
        )
        angle = torch.arange(RAYS, dtype=torch.float64) * (2 * math.pi / RAYS)
        ray = angle.cos()[:, None] * east + angle.sin()[:, None] * north
        places = (self.direction + rho.tan()[:, None, None] * ray).flatten(0, 1)
        density = on_sky(cluster, centre, F.normalize(places, dim=-1)[None])
        inside = (density.unflatten(1, (RINGS, RAYS)).mean(2) * weight).sum(1, keepdim=True)
        return (inside / mass).clamp(1e-30, 1.0).log()

    def _rings(self, scale: float) -> tuple[Tensor, Tensor]:
        """Radii, rad, of a quadrature over the selected sky, and weights, rad^2.

        In equal steps of asinh(radius / scale), for the cluster is concentrated.
        """
        knots = self.radius * ARCMIN
        x, w = (torch.from_numpy(v) for v in leggauss(RINGS))
        low, high = (torch.asinh(v / scale) for v in (knots[0], knots[-1]))
        y = 0.5 * (low + high) + 0.5 * (high - low) * x
        rho = scale * torch.sinh(y)
        weight = 0.5 * (high - low) * w * scale * torch.cosh(y) * 2 * math.pi * rho
        right = torch.searchsorted(knots, rho).clamp(1, len(knots) - 1)
        share = (rho - knots[right - 1]) / (knots[right] - knots[right - 1])
        complete = torch.lerp(self.completeness[right - 1], self.completeness[right], share)
        return rho, weight * complete


def select(centre: tuple[float, float], radius: np.ndarray, completeness: np.ndarray) -> Selection:
    """About ``centre``, right ascension and declination in deg."""
    ra, dec = (torch.tensor(math.radians(x), dtype=torch.float64) for x in centre)
    return Selection(axes(ra, dec)[2], torch.from_numpy(radius), torch.from_numpy(completeness))


def on_sky(cluster: Cluster, centre: Centre, direction: Tensor) -> Tensor:
    """Mass per solid angle, Msun / rad^2, (chains, n), in directions (chains, n, 3)."""
    across = torch.linalg.cross(*torch.broadcast_tensors(direction, centre.direction))
    R2 = centre.distance**2 * across.square().sum(-1)
    return cluster.projected(R2).surface_density * centre.distance**2
