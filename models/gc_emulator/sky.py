"""The posterior of stars on the sky, with measurement errors, about an unknown centre.

The cluster's parameters are joined by those of its centre, by the true coordinates of every star
(see `models.gc_emulator.members`), and by a population of field stars if there is one. A star of
the field knows nothing of its numbers n, which are then unit normal, so that the mixture

    p(data, n) = (1 - f) p(data, n | cluster) / F + f p(data | field) N(n)

is the exact posterior of the mixture of marginal densities. F is the share of the cluster inside
the selection: p(S | theta).
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from torch import Tensor
from torch.nn import functional as F

from models.gc_emulator.emulator import Cluster, IsothermalEmulator
from models.gc_emulator.members import (
    KMS,
    Centre,
    SkyStars,
    log_members,
    log_members_without_errors,
    log_normal,
)
from models.gc_emulator.posterior import UNITS, cluster_of, grid, parameters, physical
from physics.cluster_stars import axes, to_sky

CENTRE = {"ra": "deg", "dec": "deg", "distance": "kpc", "pm_ra": "mas/yr", "pm_dec": "mas/yr",
          "rv": "km/s"}  # fmt: skip
FIELD = {"pm_ra": "mas/yr", "pm_dec": "mas/yr", "parallax": "mas", "rv": "km/s"}
RV_PRIOR = 200.0  # km/s, of a centre's velocity that nothing measures
NODES = 12  # of the quadrature over depths, where chains begin
RINGS, RAYS = 64, 8  # of the quadrature over the selected part of the sky
ARCMIN = math.pi / 180 / 60


class Selection(NamedTuple):
    """Which stars are in the list, by their distance from a point of the sky."""

    direction: Tensor  # (3,)
    radius: Tensor  # (k,) arcmin, rising
    completeness: Tensor  # (k,) linear in between; none outside


class Sky:
    """Data sets, each with a posterior of its own; see `models.gc_emulator.start.Posterior`.

    Globals: `parameters`; of the centre the offsets east and north of ``middle``, the distance,
    proper motions and velocity along the line of sight; of the field its share, and mean and
    width of what is measured. ``distance``: mean and error of its normal prior, pc.
    """

    accept = 0.9
    units: ClassVar = {
        **UNITS,
        **{f"centre_{name}": unit for name, unit in CENTRE.items()},
        **{f"field_{name}{more}": unit for name, unit in FIELD.items() for more in ("", "_width")},
    }

    def __init__(
        self,
        emulator: IsothermalEmulator,
        stars: SkyStars,
        distance: tuple[float, float],
        selection: Selection | None = None,
        field: bool = False,
    ) -> None:
        self.emulator, self.stars, self.selection, self.field = emulator, stars, selection, field
        if field and selection is None:
            raise ValueError("a field needs a selection: how much sky it fills")
        sets, n = stars.pm.shape[:2]
        self.per_star = 6 if bool((stars.direction_error > 0).any()) else 4
        self.n_latents = self.per_star * n
        # columns that the field has a normal distribution of
        pairs = [
            (stars.pm[..., 0], stars.pm_error[..., 0]),
            (stars.pm[..., 1], stars.pm_error[..., 1]),
            (stars.parallax, stars.parallax_error),
            (stars.rv, stars.rv_error),
        ]
        self.measured = {
            name: (x, e)
            for name, (x, e) in zip(FIELD, pairs, strict=True)
            if x is not None and e is not None
        }
        self.names = parameters(emulator)
        self.n_cluster = len(self.names)
        self.n_placed = self.n_cluster + len(CENTRE)  # parameters of the cluster and its centre
        self.n_globals = self.n_placed + (1 + 2 * len(self.measured) if field else 0)

        out = F.normalize(stars.direction.mean(1), dim=-1)
        ra, dec = torch.atan2(out[:, 1], out[:, 0]), out[:, 2].asin()
        self.tangent = torch.stack(axes(ra, dec), 1)  # (sets, 3, 3): east, north, out
        offset = stars.direction @ self.tangent[:, :2].mT
        offset = offset - offset.median(1, keepdim=True).values
        r = offset.norm(dim=-1)
        # the stars of the inner half say how the cluster moves
        inner = (r <= r.median(1, keepdim=True).values)[..., None]
        pm = torch.where(inner, stars.pm, torch.nan)
        middle = pm.nanmedian(1, keepdim=True).values
        scatter = 1.4826 * (pm - middle).abs().nanmedian(1).values.mean(-1, keepdim=True)
        error = stars.pm_error.square().mean((1, 2)).sqrt()[:, None]
        pm_width = torch.maximum((scatter**2 - error**2).clamp_min(0).sqrt(), 0.3 * scatter)
        self.typical_pm = pm_width  # (sets, 1)
        d = torch.tensor(distance, dtype=torch.float64).expand(sets, 2)
        self.typical_r = 1.3 * r.median(1, keepdim=True).values * d[:, :1]
        rv = d[:, :1] * 0 if stars.rv is None else stars.rv.nanmedian(1, keepdim=True).values
        self.middle = torch.cat([0 * d, d[:, :1], middle[:, 0], rv], 1)  # (sets, 6)
        few = n**-0.5
        angle = few * self.typical_r / d[:, :1]
        speed = 0 * rv + RV_PRIOR if stars.rv is None else KMS * d[:, :1] * scatter * few
        self.unit = torch.cat([angle, angle, d[:, 1:], scatter * few, scatter * few, speed], 1)
        nodes, weights = (torch.from_numpy(x) for x in hermegauss(NODES))
        self.nodes = nodes.repeat(n)[None, :, None]
        self.log_weights = (weights / weights.sum()).log() - log_normal(nodes)

    # --- globals ------------------------------------------------------------------------------

    def _centre(self, u: Tensor) -> tuple[Centre, Tensor]:
        """The centre, and its log prior (sets, chains); u (sets, chains, n_globals or more)."""
        x = self.middle[:, None] + self.unit[:, None] * u[..., self.n_cluster : self.n_placed]
        tangent = torch.cat([x[..., :2], torch.ones_like(x[..., :1])], -1)
        direction = F.normalize((tangent @ self.tangent), dim=-1)
        east = torch.stack([-direction[..., 1], direction[..., 0], 0 * direction[..., 2]], -1)
        east = F.normalize(east, dim=-1)
        north = torch.linalg.cross(direction, east)
        speed = KMS * x[..., 2:3] * x[..., 3:5]
        velocity = speed[..., :1] * east + speed[..., 1:] * north + x[..., 5:6] * direction
        prior = u[..., self.n_cluster + 2].square()  # of the distance, and of an unknown velocity
        if self.stars.rv is None:
            prior = prior + u[..., self.n_cluster + 5].square()
        flat = [v.flatten(0, 1)[:, None] for v in (direction, velocity, x[..., 3:5])]
        return Centre(x[..., 2].reshape(-1, 1), *flat), -0.5 * prior

    def _field(self, u: Tensor) -> dict[str, Tensor]:
        """Share of the field, means and widths of what is measured, each (sets, chains)."""
        named = {"field_share": torch.sigmoid(2 * u[..., self.n_placed])}
        for i, (name, (x, _)) in enumerate(self.measured.items()):
            at, log_width = u[..., self.n_placed + 1 + 2 * i], u[..., self.n_placed + 2 + 2 * i]
            mean = x.nanmean(1, keepdim=True)
            width = (x - mean).square().nanmean(1, keepdim=True).sqrt()
            named[f"field_{name}"] = mean + width * at
            named[f"field_{name}_width"] = width * log_width.exp()
        return named

    def _log_field(self, named: dict[str, Tensor]) -> Tensor:
        """ln p(data of a star | field), (sets * chains, stars)."""
        log_p = torch.tensor(-self._log_sky(), dtype=torch.float64)
        for name, (x, e) in self.measured.items():
            mean, width = (named[f"field_{name}{more}"][..., None] for more in ("", "_width"))
            seen = x.isfinite()[:, None]
            x, e = (torch.where(x.isfinite(), v, fill)[:, None] for v, fill in ((x, 0), (e, 1)))
            total = (e**2 + width**2).sqrt()
            log_p = log_p + torch.where(seen, log_normal((x - mean) / total) - total.log(), 0.0)
        return log_p.flatten(0, 1)

    # --- the selection ------------------------------------------------------------------------

    def _rings(self) -> tuple[Tensor, Tensor]:
        """Radii, rad, of a quadrature over the selected sky, and weights, rad^2."""
        assert self.selection is not None
        knots = self.selection.radius * ARCMIN
        x, w = (torch.from_numpy(v) for v in leggauss(RINGS))
        # equal steps of asinh(radius), for the cluster is concentrated
        scale = 0.3 * float((self.typical_r / self.middle[:, 2:3]).mean())
        low, high = (torch.asinh(v / scale) for v in (knots[0], knots[-1]))
        y = 0.5 * (low + high) + 0.5 * (high - low) * x
        rho = scale * torch.sinh(y)
        weight = 0.5 * (high - low) * w * scale * torch.cosh(y) * 2 * math.pi * rho
        right = torch.searchsorted(knots, rho).clamp(1, len(knots) - 1)
        share = (rho - knots[right - 1]) / (knots[right] - knots[right - 1])
        complete = torch.lerp(
            self.selection.completeness[right - 1], self.selection.completeness[right], share
        )
        return rho, weight * complete

    def _log_sky(self) -> float:
        """ln of the solid angle that is selected, rad^2."""
        return float(self._rings()[1].sum().log())

    def _log_inside(self, cluster: Cluster, centre: Centre, mass: Tensor) -> Tensor:
        """ln of the share of the cluster that is selected, (chains, 1)."""
        if self.selection is None:
            return torch.zeros_like(mass)
        rho, weight = self._rings()
        out = self.selection.direction
        east, north, _ = axes(torch.atan2(out[1], out[0]), out[2].asin())
        angle = torch.arange(RAYS, dtype=torch.float64) * (2 * math.pi / RAYS)
        ray = angle.cos()[:, None] * east + angle.sin()[:, None] * north
        places = (out + rho.tan()[:, None, None] * ray).flatten(0, 1)
        places = F.normalize(places, dim=-1)[None]
        across = torch.linalg.cross(*torch.broadcast_tensors(places, centre.direction))
        R2 = centre.distance**2 * across.square().sum(-1)
        density = cluster.projected(R2).surface_density * centre.distance**2  # Msun / rad^2
        inside = (density.unflatten(1, (RINGS, RAYS)).mean(2) * weight).sum(1, keepdim=True)
        return (inside / mass).clamp(1e-30, 1.0).log()

    # --- the posterior ------------------------------------------------------------------------

    def _parts(self, u: Tensor, marginal: bool) -> tuple[Tensor, Tensor, Tensor]:
        """ln p of stars as members and as of the field, (sets * chains, n), and the log prior."""
        sets, chains = u.shape[:2]
        cluster, log_prior = cluster_of(self.emulator, u)
        centre, log_centre = self._centre(u)
        log_prior = (
            log_prior + log_centre - 0.5 * u[..., self.n_placed : self.n_globals].square().sum(-1)
        )
        typical = self.typical_pm.repeat_interleave(chains, 0)
        if marginal:
            s = self._spread(chains, NODES)
            wide = self.emulator.lowered(cluster, 0.5)
            members = log_members_without_errors(s, wide, cluster, centre, self.nodes)
            members = (members.unflatten(1, (-1, NODES)) + self.log_weights).logsumexp(2)
            of_n: Tensor | float = 0.0
        else:
            n = u[..., self.n_globals :].reshape(sets * chains, -1, self.per_star)
            members = log_members(self._spread(chains, 1), typical, cluster, centre, n)
            of_n = log_normal(n).sum(-1)
        mass = (10 ** physical(u[..., : self.n_cluster])[2]).reshape(-1, 1)
        members = members - self._log_inside(cluster, centre, mass)
        if not self.field:
            return members, torch.full_like(members, -torch.inf), log_prior
        named = self._field(u)
        share = named["field_share"].reshape(-1, 1)
        field = self._log_field(named) + of_n
        return members + torch.log1p(-share), field + share.log(), log_prior

    def _spread(self, chains: int, times: int) -> SkyStars:
        """The stars for each chain of each set, each ``times`` over."""
        sets = len(self.stars.pm)

        def spread(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            x = x.repeat_interleave(times, 1) if times > 1 else x
            return x.repeat_interleave(chains, 0) if sets > 1 else x

        return SkyStars(*(spread(x) for x in self.stars))  # type: ignore[arg-type]

    def _log_p(self, u: Tensor, marginal: bool) -> Tensor:
        members, field, log_prior = self._parts(u, marginal)
        log_p = torch.logaddexp(members, field) if self.field else members
        return log_prior + log_p.sum(1).view(u.shape[:2])

    def log_prob(self, u: Tensor) -> Tensor:
        return self._log_p(u, marginal=False)

    def marginal(self, u: Tensor) -> Tensor:
        """Quadrature over the depths; velocities are taken as they are measured."""
        return self._log_p(u, marginal=True)

    def candidates(self) -> Iterator[Tensor]:
        v2 = 3 * (KMS * self.middle[:, 2:3] * self.typical_pm) ** 2
        yield from grid(self.typical_r, v2, self.n_globals)

    @torch.no_grad()
    def membership(self, u: Tensor) -> Tensor:
        """Probability of each star to be of the cluster, (sets, chains, n), at sampled points."""
        members, field, _ = self._parts(u, marginal=False)
        return torch.sigmoid(members - field).view(*u.shape[:2], -1)

    def named(self, u: Tensor) -> dict[str, Tensor]:
        flat = u.reshape(len(u), -1, u.shape[-1])
        centre, _ = self._centre(flat)
        phase = torch.cat([centre.distance * centre.direction[:, 0], centre.velocity[:, 0]], -1)
        sky = to_sky(phase).view(*u.shape[:-1], 6)
        sky = torch.cat([sky[..., :2].rad2deg(), 1e-3 * sky[..., 2:3], sky[..., 3:]], -1)
        names = [*self.names, *(f"centre_{name}" for name in CENTRE)]
        found = dict(
            zip(names, [*physical(u[..., : self.n_cluster]), *sky.unbind(-1)], strict=True)
        )
        if self.field:
            named = self._field(flat)
            found |= {name: value.view(u.shape[:-1]) for name, value in named.items()}
        return found


def sky_stars(stars: Mapping[str, Tensor]) -> SkyStars:
    """From columns by role, each (sets, n): deg, mas, mas/yr and km/s."""
    zero = torch.zeros_like(stars["ra"])

    def pair(a: str, b: str) -> Tensor:
        return torch.stack([stars.get(a, zero), stars.get(b, zero)], -1)

    def column(name: str) -> Tensor | None:
        return stars[name] if name in stars and bool(stars[name].isfinite().any()) else None

    _, _, out = axes(stars["ra"].deg2rad(), stars["dec"].deg2rad())
    return SkyStars(
        direction=out,
        direction_error=pair("ra_error", "dec_error").nan_to_num(),
        pm=pair("pm_ra", "pm_dec"),
        pm_error=pair("pm_ra_error", "pm_dec_error"),
        parallax=column("parallax"),
        parallax_error=column("parallax_error"),
        rv=column("rv"),
        rv_error=column("rv_error"),
    )


def select(centre: tuple[float, float], radius: np.ndarray, completeness: np.ndarray) -> Selection:
    """About ``centre``, right ascension and declination in deg."""
    ra, dec = (torch.tensor(math.radians(x), dtype=torch.float64) for x in centre)
    return Selection(axes(ra, dec)[2], torch.from_numpy(radius), torch.from_numpy(completeness))
