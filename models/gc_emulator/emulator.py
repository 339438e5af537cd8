"""The emulator of isotropic lowered isothermal models: any (W0, g) of its domain, differentiable.

phi(r; W0, g) / (1 - q) is smooth in (W0, g / g_limit(W0), q) with q = ln(1 + r^2) / ln(1 + r_t^2),
r in King radii, so that a tensor of its values at Chebyshev nodes gives it to 1e-9, at the edge
too. What depends on a place in phase space follows from phi in closed form; what is projected, by a
closed form that holds at the edge times a smooth function, which has tensors of its own. float64
throughout: the density at the edge is a power of a small difference.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import chebyshev
from physics.cluster_projection import project
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
SKY = 2  # projected profiles: ln of the surface density and of the mean square velocity
INTERVALS = 128  # of q
EXP_NODES, EXP_INTERVALS, EXP_MAX = (32, 40), 64, 16.0  # of the lowered exponential, over (a, x)
EXP_ORDER = 6.2  # largest a: g + 3
EDGE = 1e-3  # of W0: the energy below which ln f falls like a line, instead of to minus infinity
SKY_EDGE = 1e-6  # of G M / r_t: the depth at which projected profiles stop falling like a power


class Profiles(NamedTuple):
    """What is seen of clusters at projected radii, each (clusters, n)."""

    surface_density: Tensor  # Msun / pc^2
    v2_los: Tensor  # mean square velocities: along the line of sight, (km/s)^2
    v2_radial: Tensor  # on the sky, away from the centre
    v2_tangential: Tensor  # on the sky, about the centre


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
    # only when asked for: what `phi` is, for the SKY profiles, and `log_exp` for g + 2 and g + 3
    sky: Callable[[], tuple[Tensor, Tensor]]

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

    def projected(self, R2: Tensor) -> Profiles:
        """Surface density and mean square velocities at squared projected radii, pc^2.

        Smooth and all but zero beyond r_t.
        """
        x2, n = R2 / self.r0**2, len(self.W0)
        phi = self.potential(R2)
        shallow = SKY_EDGE * self.mt * self.r0 / self.rt
        phi = 0.5 * (phi + (phi.square() + shallow.square()).sqrt())
        log_x2, log_phi = torch.minimum(torch.log1p(x2), self.span), phi.log()
        pieces, log_exp = self.sky()
        q = (log_x2 / self.span).repeat(SKY, 1)
        smooth = chebyshev.evaluate_pieces(pieces, q).view(SKY, n, -1)
        powers = chebyshev.evaluate_pieces(log_exp, (phi / EXP_MAX).repeat(2, 1)).view(2, n, -1)
        # the Abel projection of E_gamma(g + 3/2, phi) where phi falls like a line
        log_density = (self.g + 2) * log_phi + powers[0] + 0.75 * log_x2 + smooth[0]
        v2 = self.s**2 * torch.exp(log_phi + powers[1] - powers[0] + smooth[1])
        unit = self.s**2 * self.mt / (G * self.r0)  # M / r0^2
        return Profiles(unit * log_density.exp(), v2, v2, v2)

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
    """The tensors of node values, which a fit fills: see `at`."""

    def __init__(self, n_W0: int, n_g: int, n_q: int) -> None:
        super().__init__()
        self.shape = (n_W0, n_g, n_q)
        # phi / W0 / (1 - q) at the nodes of q, then the scales
        self.table = nn.Parameter(torch.zeros(n_W0, n_g, n_q + SCALES, dtype=torch.float64))
        self.sky_table = nn.Parameter(torch.zeros(n_W0, n_g, SKY * n_q, dtype=torch.float64))
        a, x = (
            chebyshev.nodes(EXP_NODES[0], 0, EXP_ORDER),
            chebyshev.nodes(EXP_NODES[1], 0, EXP_MAX),
        )
        log_exp = lowered_exponential(a[:, None], x).log() - a[:, None] * x.log()
        series = [chebyshev.from_values(n) for n in (n_W0, n_g, *EXP_NODES)]
        exp_pieces = chebyshev.pieces_from_series(EXP_NODES[1], EXP_INTERVALS)
        self.from_W0: Tensor
        self.from_g: Tensor
        self.pieces: Tensor
        self.phi_pieces: Tensor
        self.log_exp: Tensor
        self.register_buffer("from_W0", series[0], persistent=False)
        self.register_buffer("from_g", series[1], persistent=False)
        pieces = chebyshev.pieces_from_series(n_q, INTERVALS) @ chebyshev.from_values(n_q)
        self.register_buffer("pieces", pieces, persistent=False)
        # times 1 - q: a series of one more term
        longer, q = chebyshev.nodes(n_q + 1), chebyshev.basis(chebyshev.nodes(n_q + 1), n_q)
        times = (1 - longer)[:, None] * (q @ chebyshev.from_values(n_q))
        pieces = chebyshev.pieces_from_series(n_q + 1, INTERVALS)
        pieces = pieces @ chebyshev.from_values(n_q + 1) @ times
        self.register_buffer("phi_pieces", pieces, persistent=False)
        log_exp = torch.einsum("ag,gx,bx,ijb->aij", series[2], log_exp, series[3], exp_pieces)
        self.register_buffer("log_exp", log_exp, persistent=False)

    def at(self, W0: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi / W0 / (1 - q) at the nodes of q, (models, n_q), scales, and `sky_table`'s rows."""
        weights = self._weights(W0, g)
        phi, scales = _rows(self.table, *weights).split([self.shape[2], SCALES], 1)
        return phi, scales, _rows(self.sky_table, *weights)

    def _weights(self, W0: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Of the nodes of W0 and of g, (models, nodes)."""
        n_W0, n_g, _ = self.shape
        by_W0 = chebyshev.basis((W0 - W0_MIN) / (W0_MAX - W0_MIN), n_W0) @ self.from_W0
        return by_W0, chebyshev.basis(g / g_limit(W0), n_g) @ self.from_g

    def targets(self, model: Model) -> tuple[Tensor, Tensor, Tensor]:
        """What `at` should give for solved models."""
        q = chebyshev.nodes(self.shape[2]).to(model.W0)
        r = torch.sqrt(torch.expm1(q * torch.log1p(model.rt**2)[:, None]))
        phi, _ = at_radius(model, r)
        norm = lowered_exponential(model.g + 1.5, model.W0)
        scales = torch.stack([model.rt, model.mt, model.rh, norm], 1)
        seen = project(model, r)
        low, high = (lowered_exponential(model.g[:, None] + a, phi) for a in (2, 3))
        sky = seen.surface_density / low * (1 + r * r) ** -0.75, seen.v2_los * low / high
        return phi / model.W0[:, None] / (1 - q), scales.log(), torch.cat(sky, 1).log()

    def cluster(self, W0: Tensor, g: Tensor, mass: Tensor, rh: Tensor) -> Cluster:
        """Models of mass ``mass``, Msun, and half-mass radius ``rh``, pc; each (clusters,)."""
        weights = self._weights(W0, g)
        phi, scales = _rows(self.table, *weights).split([self.shape[2], SCALES], 1)
        log_rt, log_mt, log_rh, log_norm = scales[:, :, None].unbind(1)
        log_mass, log_r0 = mass.log()[:, None], rh.log()[:, None] - log_rh
        log_s = 0.5 * (math.log(G) + log_mass - log_r0 - log_mt)

        def sky() -> tuple[Tensor, Tensor]:
            rows = _rows(self.sky_table, *weights).unflatten(1, (SKY, -1)).transpose(0, 1)
            return _times(rows.flatten(0, 1), self.pieces), self._exp(torch.cat([g + 2, g + 3]))

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
            phi=_times(phi, self.phi_pieces),
            log_exp=self._exp(g),
            sky=sky,
        )  # fmt: skip

    def lowered(self, cluster: Cluster, more: float) -> Cluster:
        """``cluster`` with `Cluster.log_lowered` of g + ``more``: f integrated over velocities."""
        g = cluster.g + more
        return cluster._replace(g=g, log_exp=self._exp(g[:, 0]))

    def _exp(self, a: Tensor) -> Tensor:
        """Pieces of ln(x^-a E_gamma(a, x)), (models, EXP_INTERVALS, terms)."""
        by_a = chebyshev.basis(a / EXP_ORDER, EXP_NODES[0])
        return (by_a @ self.log_exp.flatten(1)).unflatten(1, self.log_exp.shape[1:])


def _rows(table: Tensor, by_W0: Tensor, by_g: Tensor) -> Tensor:
    """The table (n_W0, n_g, columns) at other W0 and g: (models, columns)."""
    rows = (by_W0 @ table.flatten(1)).unflatten(1, table.shape[1:])
    return (by_g[:, None] @ rows).squeeze(1)


def _times(values: Tensor, pieces: Tensor) -> Tensor:
    """The pieces of functions of given node values, (models, intervals, terms)."""
    return (values @ pieces.flatten(0, 1).T).unflatten(1, pieces.shape[:2])
