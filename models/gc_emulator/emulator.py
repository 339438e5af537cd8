"""The emulator of lowered isothermal models: a differentiable function of W0, g and r_h / r_a.

phi / (1 - q) is smooth in W0, g / g_limit, (r_h / r_a)^2 and q = ln(1 + r^2) / ln(1 + r_t^2), r in
King radii, so that interpolation between its values at Chebyshev nodes gives it to 1e-9, at the
edge too. Functions of a point in phase space are closed forms of phi. Profiles on the sky are a
closed form that holds at the edge times a smooth function, which has tables of its own. float64
throughout: the density at the edge is a power of a small difference.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.models.gc_emulator import chebyshev
from orrery.physics.clusters.cluster_projection import Projected, project
from orrery.physics.clusters.lowered_isothermal import (
    W0_MAX,
    W0_MIN,
    G,
    Model,
    at_radius,
    g_limit,
    lowered_exponential,
    moment,
    pressures,
    second_suppression,
    suppression,
)
from orrery.physics.constants import constant_like

SCALES = 4  # ln of r_t, m_t and r_h, in model units, and of E_gamma(g + 3/2, W0)
INTERVALS = 128  # of q
# nodes of the lowered exponential E_gamma(a, x) over (a, x), intervals of x, its maximum
EXP_NODES, EXP_INTERVALS, EXP_MAX = (32, 40), 64, 16.0
EXP_MAX_ORDER = 6.2  # largest a: g + 3
# nodes of 1F1(1; b; -z) and 1F1(2; b; -z) over (b, x) and range of b; z = SCALE x / (1 - x)
SUPPRESSION_NODES, SUPPRESSION_RANGE, SUPPRESSION_SCALE = (16, 40), (2.5, 7.2), 5.0
EDGE_ENERGY = 1e-3  # of W0: below it ln f falls linearly, instead of to minus infinity
SKY_EDGE_POTENTIAL = 1e-6  # of G M / r_t: below it projected profiles stop falling as a power


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
    inverse_ra2: Tensor | None  # r_a^-2, pc^-2; None where the emulator is of isotropic models
    # on demand, for profiles on the sky: pieces over q of the smooth functions; of `log_exp` for
    # g + 2 and g + 3; of suppression by anisotropy; each (functions, clusters, intervals, terms)
    sky: Callable[[], tuple[Tensor, Tensor, Tensor]]

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
        return rho_0 * moment(self.g + 1.5, phi, self._p2(r2)) / self.log_norm.exp()

    def dispersions(self, r2: Tensor) -> tuple[Tensor, Tensor]:
        """Radial and one tangential velocity dispersion, km/s, at squared radii, pc^2."""
        phi = self.potential(r2).clamp_min(1e-300)
        density, radial, tangential = pressures(self.g, phi, self._p2(r2))
        density = density.clamp_min(1e-300)
        return self.s * (radial / density).sqrt(), self.s * (tangential / density).sqrt()

    def _p2(self, r2: Tensor) -> Tensor | None:
        return None if self.inverse_ra2 is None else r2 * self.inverse_ra2

    def projected(self, R2: Tensor) -> Projected:
        """Profiles at squared projected radii, pc^2, (clusters, n): Msun / pc^2 and (km/s)^2.

        Smooth, and nearly zero beyond r_t.
        """
        x2 = R2 / self.r0**2
        phi = self.potential(R2)
        floor = SKY_EDGE_POTENTIAL * self.mt * self.r0 / self.rt
        phi = 0.5 * (phi + (phi.square() + floor.square()).sqrt())
        log_x2, log_phi = torch.minimum(torch.log1p(x2), self.span), phi.log()
        pieces, log_exp, suppressed = self.sky()
        smooth = _evaluate_each(pieces, log_x2 / self.span)
        # the Abel projections of density and pressures, over phi^(g + 2) and phi^(g + 3), as if phi
        # were linear and r constant
        density, radial = _evaluate_each(log_exp, phi / EXP_MAX).exp()
        tangential = radial
        if (p2 := self._p2(R2)) is not None:
            z = phi * p2 / SUPPRESSION_SCALE
            first, second, third = _evaluate_each(suppressed, z / (1 + z))
            weight = p2 / (1 + z)
            density = (density + weight * first) / (1 + p2)
            radial = (radial + weight * second) / (1 + p2)
            tangential = (radial + weight / (1 + z) * third) / (1 + p2)
        log_density = (self.g + 2) * log_phi + density.log() + 0.75 * log_x2 + smooth[0]
        unit = self.s**2 * self.mt / (G * self.r0)  # M / r0^2
        v2 = self.s**2 * phi / density * smooth[1:].exp()
        v2_los = tangential * v2[0]
        if p2 is None:
            return Projected(unit * log_density.exp(), v2_los, v2_los, v2_los)
        return Projected(unit * log_density.exp(), v2_los, radial * v2[1], tangential * v2[2])

    def log_df(self, r2: Tensor, v2: Tensor, j2: Tensor | None = None) -> Tensor:
        """ln f / M, (pc km/s)^-3, of stars at squared radii, pc^2, and speeds, (km/s)^2.

        ``j2``: squared specific angular momenta, (pc km/s)^2, which anisotropic models need.
        Integrates to 1 over phase space. Below E = 0 it falls by a factor e in 1e-3 W0 or less, so
        that a star that is not bound has a low but positive probability, with a gradient.
        """
        energy = self.potential(r2) - 0.5 * v2 / self.s**2
        log_f = self.log_f0 + self.log_lowered(energy)
        if self.inverse_ra2 is None:
            return log_f
        if j2 is None:
            raise ValueError("an anisotropic cluster's stars need their angular momenta, j2")
        return log_f + self.log_anisotropy(j2)

    def log_anisotropy(self, j2: Tensor) -> Tensor:
        """Term of ln f in squared angular momenta, (pc km/s)^2; zero for isotropic clusters."""
        if self.inverse_ra2 is None:
            return torch.zeros_like(j2)
        return -0.5 * j2 * self.inverse_ra2 / self.s**2

    def log_lowered(self, energy: Tensor) -> Tensor:
        """ln E_gamma(g, energy), (clusters, n); below `EDGE_ENERGY` continued linearly."""
        edge = EDGE_ENERGY * self.W0
        inside = torch.maximum(energy, edge)
        smooth = chebyshev.evaluate_pieces(self.log_exp, inside / EXP_MAX)
        depth = (edge - energy).clamp_min(0.0)
        # the slope at the edge, and a rounded corner for g near 0, where the slope is 0
        below = (self.g / edge + 1 / (1 + self.g)) * depth
        below = below + (1 + (depth / edge).square()).sqrt() - 1
        return self.g * inside.log() + smooth - below


class IsothermalEmulator(nn.Module):
    """Tables of values at Chebyshev nodes, the parameters of the fit; `cluster` interpolates them.

    - ``n_W0``, ``n_g``, ``n_q``: nodes in W0, g / g_limit and q.
    - ``n_ra``: nodes in (r_h / r_a)^2; 1: isotropic models.
    - ``modes``: principal components that stand for the columns of either table, see `fit_modes`;
      empty: the tables hold the columns themselves.
    """

    def __init__(
        self, n_W0: int, n_g: int, n_q: int, n_ra: int = 1, modes: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.shape = (n_ra, n_W0, n_g, n_q)
        # profiles on the sky: surface density and one mean square velocity, or all three
        self.n_sky = 2 if n_ra == 1 else 4
        nodes = self.shape[:3]
        # phi / W0 / (1 - q) at the nodes of q, then the scales
        columns = (n_q + SCALES, self.n_sky * n_q)
        tables = (torch.zeros(*nodes, n, dtype=torch.float64) for n in modes or columns)
        self.table, self.sky_table = (nn.Parameter(table) for table in tables)
        for name, n, m in zip(("modes", "sky_modes"), columns, modes or columns, strict=True):
            self.register_buffer(name, torch.eye(n, m).double(), persistent=bool(modes))
        for name, n in (("from_ra", n_ra), ("from_W0", n_W0), ("from_g", n_g)):
            self.register_buffer(name, chebyshev.from_values(n), persistent=False)
        pieces = chebyshev.pieces_from_series(n_q, INTERVALS) @ chebyshev.from_values(n_q)
        self.register_buffer("pieces", pieces, persistent=False)
        # times 1 - q: a series of one more term
        q = chebyshev.nodes(n_q + 1)
        times = (1 - q)[:, None] * (chebyshev.basis(q, n_q) @ chebyshev.from_values(n_q))
        pieces = chebyshev.pieces_from_series(n_q + 1, INTERVALS)
        self.register_buffer(
            "phi_pieces", pieces @ chebyshev.from_values(n_q + 1) @ times, persistent=False
        )
        a, x = (
            chebyshev.nodes(EXP_NODES[0], 0, EXP_MAX_ORDER)[:, None],
            chebyshev.nodes(EXP_NODES[1], 0, EXP_MAX),
        )
        log_exp = lowered_exponential(a, x).log() - a * x.log()
        self.register_buffer("log_exp", _tabulate(log_exp), persistent=False)
        b = chebyshev.nodes(SUPPRESSION_NODES[0], *SUPPRESSION_RANGE)[:, None]
        x = chebyshev.nodes(SUPPRESSION_NODES[1])
        z, gamma = SUPPRESSION_SCALE * x / (1 - x), torch.exp(-torch.lgamma(b))
        first, second = suppression(b, z) / (1 - x), second_suppression(b, z) / (1 - x) ** 2
        both = torch.stack([_tabulate(gamma * first), _tabulate(gamma * second)])
        self.register_buffer("suppressions", both, persistent=False)

    modes: Tensor  # (columns, modes)
    sky_modes: Tensor
    from_ra: Tensor
    from_W0: Tensor
    from_g: Tensor
    pieces: Tensor
    phi_pieces: Tensor
    log_exp: Tensor
    suppressions: Tensor

    def columns_at(
        self, W0: Tensor, g: Tensor, rh_ra: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """phi / W0 / (1 - q) at the nodes of q, (models, n_q), `SCALES`, and columns of the sky.

        ``rh_ra``: r_h / r_a, (models,), from 0 to 1; None for isotropic models.
        """
        weights = self._weights(W0, g, rh_ra)
        phi, scales = self._columns(weights)
        return phi, scales, _interpolate(self.sky_table, *weights) @ self.sky_modes.T

    def _columns(self, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        columns = _interpolate(self.table, *weights) @ self.modes.T
        phi, scales = columns.split([self.shape[3], SCALES], 1)
        return phi, scales

    @torch.no_grad()
    def fit_modes(self, model: Model) -> None:
        """Set the modes to the principal components of the columns of solved models."""
        phi, scales, sky = self.targets(model)
        for modes, rows in ((self.modes, torch.cat([phi, scales], 1)), (self.sky_modes, sky)):
            components = torch.linalg.svd(rows, full_matrices=False).Vh
            modes.copy_(components[: modes.shape[1]].T)

    def _weights(self, W0: Tensor, g: Tensor, rh_ra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Interpolation weights of the nodes of r_a and W0, and of those of g, (models, nodes)."""
        n_ra, n_W0, n_g, _ = self.shape
        outer = chebyshev.basis((W0 - W0_MIN) / (W0_MAX - W0_MIN), n_W0) @ self.from_W0
        if rh_ra is not None:
            by_ra = chebyshev.basis(rh_ra.square(), n_ra) @ self.from_ra
            outer = (by_ra[:, :, None] * outer[:, None]).flatten(1)
        return outer, chebyshev.basis(g / g_limit(W0, rh_ra), n_g) @ self.from_g

    def targets(self, model: Model) -> tuple[Tensor, Tensor, Tensor]:
        """The exact columns of `columns_at` for solved models."""
        q = constant_like(model.W0, chebyshev.nodes, self.shape[3])
        r = torch.sqrt(torch.expm1(q * torch.log1p(model.rt**2)[:, None]))
        phi, _ = at_radius(model, r)
        norm = lowered_exponential(model.g + 1.5, model.W0)
        scales = torch.stack([model.rt, model.mt, model.rh, norm], 1)
        projected = project(model, r)
        p2 = None if model.ra is None else (r / model.ra[:, None]) ** 2
        density, radial, tangential = pressures(model.g[:, None] + 0.5, phi, p2)
        sky = (
            projected.surface_density / density * (1 + r * r) ** -0.75,
            projected.v2_los * density / tangential,
            projected.v2_radial * density / radial,
            projected.v2_tangential * density / tangential,
        )
        return (
            phi / model.W0[:, None] / (1 - q),
            scales.log(),
            torch.cat(sky[: self.n_sky], 1).log(),
        )

    def cluster(
        self, W0: Tensor, g: Tensor, mass: Tensor, rh: Tensor, ra: Tensor | None = None
    ) -> Cluster:
        """Models of mass ``mass``, Msun, and half-mass radius ``rh``, pc; each (clusters,).

        ``ra``: anisotropy radius, pc, from ``rh`` up; None or infinite where isotropic.
        """
        rh_ra = None
        if self.shape[0] > 1:
            rh_ra = torch.zeros_like(rh) if ra is None else rh / ra
        elif ra is not None:
            raise ValueError("this emulator is of isotropic models: ra must be None")
        weights = self._weights(W0, g, rh_ra)
        phi, scales = self._columns(weights)
        log_rt, log_mt, log_rh, log_norm = scales[:, :, None].unbind(1)
        log_mass, log_r0 = mass.log()[:, None], rh.log()[:, None] - log_rh
        log_s = 0.5 * (math.log(G) + log_mass - log_r0 - log_mt)

        def sky() -> tuple[Tensor, Tensor, Tensor]:
            rows = (
                (_interpolate(self.sky_table, *weights) @ self.sky_modes.T)
                .unflatten(1, (self.n_sky, -1))
                .transpose(0, 1)
            )
            log_exp = torch.stack([self._log_exp_pieces(g + 2), self._log_exp_pieces(g + 3)])
            low, high = SUPPRESSION_RANGE
            by_b = [
                chebyshev.basis((g + b - low) / (high - low), SUPPRESSION_NODES[0]) for b in (3, 4)
            ]
            functions = ((by_b[0], 0), (by_b[1], 0), (by_b[1], 1))
            suppressed = torch.stack([_combine(by, self.suppressions[i]) for by, i in functions])
            return _combine(rows, self.pieces), log_exp, suppressed

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
            phi=_combine(phi, self.phi_pieces),
            log_exp=self._log_exp_pieces(g),
            inverse_ra2=None if rh_ra is None else (rh_ra / rh).square()[:, None],
            sky=sky,
        )  # fmt: skip

    def with_index_increment(self, cluster: Cluster, increment: float) -> Cluster:
        """``cluster`` with the `log_lowered` of g + increment: 1/2 per velocity integrated over."""
        g = cluster.g + increment
        return cluster._replace(g=g, log_exp=self._log_exp_pieces(g[:, 0]))

    def _log_exp_pieces(self, a: Tensor) -> Tensor:
        """Pieces of ln(x^-a E_gamma(a, x)), (models, EXP_INTERVALS, terms)."""
        return _combine(chebyshev.basis(a / EXP_MAX_ORDER, EXP_NODES[0]), self.log_exp)


def _interpolate(table: Tensor, outer: Tensor, by_g: Tensor) -> Tensor:
    """The table (n_ra, n_W0, n_g, columns) at parameters between the nodes: (models, columns)."""
    rows = (outer @ table.flatten(2).flatten(0, 1)).unflatten(1, table.shape[2:])
    return (by_g[:, None] @ rows).squeeze(1)


def _combine(values: Tensor, pieces: Tensor) -> Tensor:
    """Pieces (..., intervals, terms) of functions that are linear in ``values`` (..., n)."""
    return (values @ pieces.flatten(0, 1).T).unflatten(-1, pieces.shape[:2])


def _tabulate(values: Tensor) -> Tensor:
    """Pieces over x, (EXP_INTERVALS, terms, n), of ``values`` (n, n_x) at nodes of a and x."""
    n, n_x = values.shape
    pieces = chebyshev.pieces_from_series(n_x, EXP_INTERVALS)
    by_a, by_x = chebyshev.from_values(n), chebyshev.from_values(n_x)
    return torch.einsum("ag,gx,bx,ijb->ija", by_a, values, by_x, pieces)


def _evaluate_each(pieces: Tensor, x: Tensor) -> Tensor:
    """Functions (functions, clusters, intervals, terms) at x, (functions, clusters, n)."""
    n = len(pieces)
    return chebyshev.evaluate_pieces(pieces.flatten(0, 1), x.repeat(n, 1)).unflatten(0, (n, -1))
