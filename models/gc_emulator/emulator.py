"""The emulator of isotropic lowered isothermal models: any (W0, g) of its domain, differentiable.

phi(r; W0, g) is smooth in (W0, g / g_limit(W0), q) with q = ln(1 + r^2) / ln(1 + r_t^2), r in King
radii, so that a tensor of its values at Chebyshev nodes gives it to 1e-9. All else follows from phi
in closed form. float64 throughout: the density at the edge is a power of a small difference.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import chebyshev
from physics.lowered_isothermal import (
    W0_MAX,
    W0_MIN,
    G,
    Model,
    at_radius,
    g_limit,
    lowered_exponential,
)

SCALES = 4  # ln of r_t, m_t and r_h, in model units, and of E_gamma(g + 3/2, W0)
INTERVALS = 128  # of q
EXP_NODES, EXP_INTERVALS, EXP_MAX = (24, 40), 64, 16.0  # of the lowered exponential, over (g, x)
G_TOP = 4.0
EDGE = 1e-3  # of W0: the energy below which ln f falls like a line, instead of to minus infinity


class Cluster(NamedTuple):
    """Models of given parameters, each (clusters, 1) unless said otherwise; pc, km/s, Msun."""

    W0: Tensor
    g: Tensor
    r0: Tensor  # King radius
    rt: Tensor  # truncation radius
    s: Tensor  # velocity scale
    mt: Tensor  # mass in units of r0 s^2 / G
    span: Tensor  # ln(1 + (r_t / r_0)^2)
    log_norm: Tensor  # ln E_gamma(g + 3/2, W0)
    log_f0: Tensor  # of f / M where E_gamma = 1, (pc km/s)^-3
    phi: Tensor  # (clusters, INTERVALS, terms), over q
    log_exp: Tensor  # (clusters, EXP_INTERVALS, terms), ln(x^-g E_gamma(g, x)) over x / EXP_MAX

    def potential(self, r2: Tensor) -> Tensor:
        """phi in units of s^2 at squared radii, pc^2, (clusters, n); Kepler's beyond r_t."""
        x2 = r2 / self.r0**2
        q = torch.log1p(x2) / self.span
        inside = self.W0 * chebyshev.evaluate_pieces(self.phi, q.clamp_max(1.0))
        kepler = self.mt * (x2.clamp_min(1e-6).rsqrt() - self.r0 / self.rt)
        return torch.where(q > 1, kepler, inside)

    def radius2(self, phi: Tensor) -> Tensor:
        """Squared radii, pc^2, where the potential is ``phi``, (clusters, n); r_t^2 at most."""
        q = chebyshev.invert_pieces(self.phi, phi / self.W0)
        return self.r0**2 * torch.expm1(q * self.span)

    def density(self, r2: Tensor) -> Tensor:
        """Mass density, Msun / pc^3, at squared radii, pc^2; zero beyond r_t."""
        rho_0 = 9 * self.s**2 / (4 * math.pi * G * self.r0**2)
        phi = self.potential(r2).clamp_min(0)
        return rho_0 * lowered_exponential(self.g + 1.5, phi) / self.log_norm.exp()

    def dispersion(self, r2: Tensor) -> Tensor:
        """One-dimensional velocity dispersion, km/s, at squared radii, pc^2; zero beyond r_t."""
        phi = self.potential(r2).clamp_min(1e-300)
        pressure, density = (lowered_exponential(self.g + a, phi) for a in (2.5, 1.5))
        return self.s * (pressure / density.clamp_min(1e-300)).sqrt()

    def log_df(self, r2: Tensor, v2: Tensor) -> Tensor:
        """ln f / M, (pc km/s)^-3, of stars at squared radii, pc^2, and speeds, (km/s)^2.

        Integrates to 1 over phase space. Below E = 0 it falls by a factor e in 1e-3 W0 or less, so
        that a star that is not bound has a low probability with a gradient, and not none.
        """
        energy = self.potential(r2) - 0.5 * v2 / self.s**2
        return self.log_f0 + self.log_lowered(energy)

    def log_lowered(self, energy: Tensor) -> Tensor:
        """ln E_gamma(g, energy); below `EDGE` continued by a line, through zero energy."""
        edge = EDGE * self.W0
        inside = torch.maximum(energy, edge)
        smooth = chebyshev.evaluate_pieces(self.log_exp, inside / EXP_MAX)
        depth = (edge - energy).clamp_min(0.0)
        # the slope at the edge, and a round corner for g near 0, where the slope is none
        below = (self.g / edge + 1 / (1 + self.g)) * depth
        below = below + (1 + (depth / edge).square()).sqrt() - 1
        return self.g * inside.log() + smooth - below


class IsothermalEmulator(nn.Module):
    """The tensor of node values, which a fit fills: see `at`."""

    def __init__(self, n_W0: int, n_g: int, n_q: int) -> None:
        super().__init__()
        self.shape = (n_W0, n_g, n_q)
        # phi / W0 at the nodes of q, then the scales
        self.table = nn.Parameter(torch.zeros(n_W0, n_g, n_q + SCALES, dtype=torch.float64))
        g, x = chebyshev.nodes(EXP_NODES[0], 0, G_TOP), chebyshev.nodes(EXP_NODES[1], 0, EXP_MAX)
        log_exp = lowered_exponential(g[:, None], x).log() - g[:, None] * x.log()
        series = [chebyshev.from_values(n) for n in (n_W0, n_g, *EXP_NODES)]
        pieces = chebyshev.pieces_from_series(n_q, INTERVALS) @ chebyshev.from_values(n_q)
        exp_pieces = chebyshev.pieces_from_series(EXP_NODES[1], EXP_INTERVALS)
        self.from_W0: Tensor
        self.from_g: Tensor
        self.pieces: Tensor
        self.log_exp: Tensor
        self.register_buffer("from_W0", series[0], persistent=False)
        self.register_buffer("from_g", series[1], persistent=False)
        self.register_buffer("pieces", pieces, persistent=False)
        log_exp = torch.einsum("ag,gx,bx,ijb->aij", series[2], log_exp, series[3], exp_pieces)
        self.register_buffer("log_exp", log_exp, persistent=False)

    def at(self, W0: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """phi / W0 at the nodes of q, (models, n_q), and its scales."""
        n_W0, n_g, n_q = self.shape
        by_W0 = chebyshev.basis((W0 - W0_MIN) / (W0_MAX - W0_MIN), n_W0) @ self.from_W0
        by_g = chebyshev.basis(g / g_limit(W0), n_g) @ self.from_g
        rows = (by_W0 @ self.table.flatten(1)).unflatten(1, self.table.shape[1:])
        phi, scales = (by_g[:, None] @ rows).squeeze(1).split([n_q, SCALES], 1)
        return phi, scales

    def targets(self, model: Model) -> tuple[Tensor, Tensor]:
        """What `at` should give for solved models."""
        q = chebyshev.nodes(self.shape[2]).to(model.W0)
        r = torch.sqrt(torch.expm1(q * torch.log1p(model.rt**2)[:, None]))
        phi, _ = at_radius(model, r)
        norm = lowered_exponential(model.g + 1.5, model.W0)
        scales = torch.stack([model.rt, model.mt, model.rh, norm], 1)
        return phi / model.W0[:, None], scales.log()

    def cluster(self, W0: Tensor, g: Tensor, mass: Tensor, rh: Tensor) -> Cluster:
        """Models of mass ``mass``, Msun, and half-mass radius ``rh``, pc; each (clusters,)."""
        phi, scales = self.at(W0, g)
        log_rt, log_mt, log_rh, log_norm = scales[:, :, None].unbind(1)
        log_mass, log_r0 = mass.log()[:, None], rh.log()[:, None] - log_rh
        log_s = 0.5 * (math.log(G) + log_mass - log_r0 - log_mt)
        return Cluster(
            W0=W0[:, None],
            g=g[:, None],
            r0=log_r0.exp(),
            rt=(log_rt + log_r0).exp(),
            s=log_s.exp(),
            mt=log_mt.exp(),
            span=F.softplus(2 * log_rt),
            log_norm=log_norm,
            log_f0=math.log(9 / (4 * math.pi) / (2 * math.pi) ** 1.5)
            - log_mt - 3 * log_r0 - 3 * log_s - log_norm,
            phi=(phi @ self.pieces.flatten(0, 1).T).unflatten(1, self.pieces.shape[:2]),
            log_exp=self._lowered(g),
        )  # fmt: skip

    def lowered(self, cluster: Cluster, more: float) -> Cluster:
        """``cluster`` with `Cluster.log_lowered` of g + ``more``: f integrated over velocities."""
        g = cluster.g + more
        return cluster._replace(g=g, log_exp=self._lowered(g[:, 0]))

    def _lowered(self, g: Tensor) -> Tensor:
        by_g = chebyshev.basis(g / G_TOP, EXP_NODES[0])
        return (by_g @ self.log_exp.flatten(1)).unflatten(1, self.log_exp.shape[1:])
