"""The posterior of stars on the sky, with measurement errors, about an unknown centre.

Parameters are those of the cluster and of its centre, the true coordinates of every star as latent
numbers n (see `models.gc_emulator.members`), those of a population of field stars if there is one,
and an offset that all parallaxes have in common. The numbers of a field star are unit normal, so
that the mixture

    p(data, n) = (1 - f) p(data, n | cluster) / F + f p(data | field) N(n)

is the exact posterior of the mixture of marginal densities. F is the fraction of the cluster inside
the selection. Stars without any velocity have no latent numbers: their density on the sky is a
closed form. Those of the others can be integrated out by quadrature instead of being sampled.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.models.gc_emulator.emulator import Cluster, IsothermalEmulator
from orrery.models.gc_emulator.members import KMS, Centre, StarMeasurements, log_members, nodes
from orrery.models.gc_emulator.posterior import (
    LOG_MASS,
    UNITS,
    candidate_grid,
    cluster_of,
    parameter_names,
    physical,
)
from orrery.models.gc_emulator.selection import selection_of, sky_density
from orrery.physics.clusters.cluster_stars import axes, to_sky
from orrery.physics.clusters.lowered_isothermal import G
from orrery.physics.clusters.observations import SkySelection
from orrery.physics.densities import log_standard_normal

CENTRE = {"ra": "deg", "dec": "deg", "distance": "kpc", "pm_ra": "mas/yr", "pm_dec": "mas/yr",
          "rv": "km/s"}  # fmt: skip
FIELD = {"pm_ra": "mas/yr", "pm_dec": "mas/yr", "parallax": "mas", "rv": "km/s"}
RV_PRIOR, PM_PRIOR = 200.0, 10.0  # km/s and mas/yr, widths for a centre's unmeasured motion
Quadrature = tuple[Tensor, Tensor]  # of `nodes`


class SkyPosterior:
    """Of clusters given stars on the sky; each data set has a posterior of its own.

    A `ClusterPosterior`. Globals: `parameter_names`; of the centre the offsets east and north of
    ``reference``, the distance, proper motions and velocity along the line of sight; of the field
    stars their fraction, and mean and width of every measured column; last the offset of all
    parallaxes, measured minus true, in units of its error. ``distance``: mean and error of its
    normal prior, kpc; without an error the prior is flat in its logarithm, and parallaxes decide.
    ``marginal``: the stars' latent numbers are integrated out, not sampled.
    ``parallax_offset_error``: width of the normal prior of that offset about 0, mas; 0: there is
    none. Which stars have a velocity must be the same in all sets.
    """

    accept = 0.9
    units: ClassVar = {
        **UNITS,
        **{f"centre_{name}": unit for name, unit in CENTRE.items()},
        **{f"field_{name}{end}": unit for name, unit in FIELD.items() for end in ("", "_width")},
        "parallax_offset": "mas",
    }

    def __init__(
        self,
        emulator: IsothermalEmulator,
        stars: StarMeasurements,
        distance: tuple[float, float | None],
        selection: SkySelection | None = None,
        has_field_stars: bool = False,
        marginal: bool = False,
        parallax_offset_error: float = 0.0,
    ) -> None:
        self.emulator, self.stars = emulator, stars
        self.selection = None if selection is None else selection_of(selection)
        self.has_field_stars = has_field_stars
        if has_field_stars and selection is None:
            raise ValueError("field stars need a selection, whose area on the sky they fill")
        has_velocity = torch.zeros(stars.direction.shape[:2], dtype=torch.bool)
        if stars.pm is not None:
            has_velocity |= stars.pm.isfinite().all(-1)
        if stars.rv is not None:
            has_velocity |= stars.rv.isfinite()
        has_velocity, self.n_stars = has_velocity.any(0), has_velocity.shape[1]
        moving = stars.map(lambda x: x[:, has_velocity])
        complete_pm = moving.pm is None or bool(moving.pm.isfinite().all())
        self.moving = moving._replace(complete_pm=complete_pm)
        self.directions_alone = stars.direction[:, ~has_velocity]
        # from stars with velocities followed by those without to their order in the list
        self.list_order = torch.cat([has_velocity.nonzero(), (~has_velocity).nonzero()])[:, 0]
        self.list_order = self.list_order.argsort()
        self.latents_per_star = 6 if bool((stars.direction_error > 0).any()) else 4
        self.n_latents = 0 if marginal else self.latents_per_star * int(has_velocity.sum())
        # columns of which field stars have a normal distribution
        pm, pm_error = (
            (None, None) if x is None else x.unbind(-1) for x in (stars.pm, stars.pm_error)
        )
        pairs = [
            *zip(pm, pm_error, strict=True),
            (stars.parallax, stars.parallax_error),
            (stars.rv, stars.rv_error),
        ]
        self.measured = {
            name: (x, e)
            for name, (x, e) in zip(FIELD, pairs, strict=True)
            if x is not None and e is not None
        }
        self.names = parameter_names(emulator)
        self.n_cluster = len(self.names)
        self.n_with_centre = self.n_cluster + len(CENTRE)
        self.n_globals = self.n_with_centre + (1 + 2 * len(self.measured) if has_field_stars else 0)
        self.parallax_offset_error = 0.0 if stars.parallax is None else parallax_offset_error
        if self.parallax_offset_error:
            self.n_globals += 1
        # whether velocities along the line of sight are integrated in closed form: `log_members`
        self.closed_form = stars.rv is None and self.n_cluster == 4
        every_pm = complete_pm and moving.pm is not None
        self.rough_rule = nodes(6, 0 if self.closed_form else 3, 0 if every_pm else 3)
        self.rule = nodes(8, 0 if self.closed_form else 5, 6) if marginal else None
        self._set_reference(distance)

    def _set_reference(self, distance: tuple[float, float | None]) -> None:
        """Estimates of the centre's position and motion, from which its coordinates are offsets."""
        stars, relative_error = self.stars, self.n_stars**-0.5
        out = F.normalize(stars.direction.mean(1), dim=-1)
        ra, dec = torch.atan2(out[:, 1], out[:, 0]), out[:, 2].asin()
        self.ra = ra.remainder(2 * torch.pi)  # (sets,), of the reference
        self.tangent = torch.stack(axes(ra, dec), 1)  # (sets, 3, 3): east, north, outwards
        offset = stars.direction @ self.tangent[:, :2].mT
        offset = offset - offset.median(1, keepdim=True).values
        r = offset.norm(dim=-1)
        mean, prior_error = distance
        self.by_parallax = prior_error is None
        self.distance_index = None if self.by_parallax else self.n_cluster + 2
        d = 1e3 * torch.tensor([mean, prior_error or 0.1 * mean], dtype=torch.float64)
        d = d.expand(len(r), 2)
        self.typical_r = 1.3 * r.median(1, keepdim=True).values * d[:, :1]  # (sets, 1), pc
        angle = relative_error * self.typical_r / d[:, :1]
        # dispersion (sets, 1), km/s: of a cluster of the prior, or of measured velocities
        speed = (0.4 / 3 * G * 10 ** LOG_MASS[0] / self.typical_r).sqrt()
        rv, rv_unit = 0 * angle, torch.full_like(angle, RV_PRIOR)
        if stars.rv is not None:
            rv = stars.rv.nanmedian(1, keepdim=True).values
            speed = 1.4826 * (stars.rv - rv).abs().nanmedian(1, keepdim=True).values
            rv_unit = speed * relative_error
        pm = torch.zeros_like(d)
        pm_unit = torch.full_like(d, PM_PRIOR)
        if stars.pm is not None and stars.pm_error is not None:
            # the motion of the cluster is that of its inner half
            measured = torch.where(stars.pm[..., 0].isfinite(), r, torch.nan)
            inner = (measured <= measured.nanmedian(1, keepdim=True).values)[..., None]
            inner_pm = torch.where(inner, stars.pm, torch.nan)
            pm = inner_pm.nanmedian(1).values
            scatter = 1.4826 * (inner_pm - pm[:, None]).abs().nanmedian(1).values.mean(
                -1, keepdim=True
            )
            error = stars.pm_error.square().nanmean((1, 2)).sqrt()[:, None]
            width = torch.maximum((scatter**2 - error**2).clamp_min(0).sqrt(), 0.3 * scatter)
            speed = KMS * d[:, :1] * width
            pm_unit = (scatter * relative_error).expand(-1, 2)
            if stars.rv is not None:
                rv_unit = KMS * d[:, :1] * scatter * relative_error
        self.speed = speed
        self.typical_pm = speed / (KMS * d[:, :1])
        self.reference = torch.cat([0 * d, d[:, :1], pm, rv], 1)  # (sets, 6)
        self.unit = torch.cat([angle, angle, d[:, 1:], pm_unit, rv_unit], 1)
        # coordinates of the centre with a normal prior
        self.with_prior = [
            *([] if self.by_parallax else [2]),
            *([] if stars.pm is not None else [3, 4]),
            *([] if stars.rv is not None else [5]),
        ]

    # --- globals ------------------------------------------------------------------------------

    def centre(self, u: Tensor) -> tuple[Centre, Tensor]:
        """The centre of each chain, and its log prior (sets, chains).

        ``u`` (sets, chains, n_globals or more).
        """
        offset = self.unit[:, None] * u[..., self.n_cluster : self.n_with_centre]
        x = self.reference[:, None] + offset
        distance = x[..., 2:3]
        if self.by_parallax:
            reference = self.reference[:, None, 2:3]
            distance = reference * (offset[..., 2:3] / reference).exp()
        tangent = torch.cat([x[..., :2], torch.ones_like(x[..., :1])], -1)
        direction = F.normalize((tangent @ self.tangent), dim=-1)
        east = torch.stack([-direction[..., 1], direction[..., 0], 0 * direction[..., 2]], -1)
        east = F.normalize(east, dim=-1)
        north = torch.linalg.cross(direction, east)
        speed = KMS * distance * x[..., 3:5]
        velocity = speed[..., :1] * east + speed[..., 1:] * north + x[..., 5:6] * direction
        prior = u[..., [self.n_cluster + i for i in self.with_prior]].square().sum(-1)
        flat = [v.flatten(0, 1)[:, None] for v in (direction, velocity, x[..., 3:5])]
        return Centre(distance.reshape(-1, 1), *flat), -0.5 * prior

    def _field(self, u: Tensor) -> dict[str, Tensor]:
        """Fraction of field stars, means and widths of their columns, each (sets, chains)."""
        named = {"field_share": torch.sigmoid(2 * u[..., self.n_with_centre])}
        for i, (name, (x, _)) in enumerate(self.measured.items()):
            k = self.n_with_centre + 1 + 2 * i
            shift, log_width = u[..., k], u[..., k + 1]
            mean = x.nanmean(1, keepdim=True)
            width = (x - mean).square().nanmean(1, keepdim=True).sqrt()
            named[f"field_{name}"] = mean + width * shift
            named[f"field_{name}_width"] = width * log_width.exp()
        return named

    def _log_field(self, named: dict[str, Tensor]) -> Tensor:
        """ln p(data of a star | field), (sets * chains, stars)."""
        assert self.selection is not None
        log_sky = self.selection.log_sky()
        log_p = torch.full((1, 1, self.n_stars), -log_sky, dtype=torch.float64)
        for name, (x, e) in self.measured.items():
            mean, width = (named[f"field_{name}{end}"][..., None] for end in ("", "_width"))
            known = x.isfinite()[:, None]
            x, e = (torch.where(x.isfinite(), v, fill)[:, None] for v, fill in ((x, 0), (e, 1)))
            total = (e**2 + width**2).sqrt()
            log_each = log_standard_normal((x - mean) / total) - total.log()
            log_p = log_p + torch.where(known, log_each, 0.0)
        return log_p.flatten(0, 1)

    # --- the posterior ------------------------------------------------------------------------

    def _log_sampled(self, u: Tensor, cluster: Cluster, centre: Centre, n: Tensor) -> Tensor:
        """ln p(data, n) of the stars with velocities as members, (sets * chains, stars)."""
        chains = u.shape[1]
        s, typical = self._repeated(chains, 1), self.typical_pm.repeat_interleave(chains, 0)
        s = self._without_offset(s, u)
        return log_members(s, typical, cluster, centre, n)

    def _log_integrated(
        self, u: Tensor, cluster: Cluster, centre: Centre, rule: Quadrature
    ) -> Tensor:
        """The same integrated over n by a quadrature."""
        (n, log_weights), chains = rule, u.shape[1]
        s, typical = self._repeated(chains, len(n)), self.typical_pm.repeat_interleave(chains, 0)
        s = self._without_offset(s, u)
        along = self.emulator.with_index_increment(cluster, 0.5) if self.closed_form else None
        per_star = n.repeat(self.moving.frame.shape[1], 1)[None]
        log_p = log_members(s, typical, cluster, centre, per_star, along)
        return (log_p.unflatten(1, (-1, len(n))) + log_weights).logsumexp(2)

    def log_terms(self, u: Tensor, rule: Quadrature | None) -> tuple[Tensor, Tensor, Tensor]:
        """ln p of stars as members and as field stars, (sets * chains, n), and the log prior.

        With the stars' latent numbers in ``u``, or integrated by the quadrature ``rule``.
        """
        sets, chains = u.shape[:2]
        cluster, log_prior = cluster_of(self.emulator, u)
        centre, log_centre = self.centre(u)
        log_prior = (
            log_prior
            + log_centre
            - 0.5 * u[..., self.n_with_centre : self.n_globals].square().sum(-1)
        )
        mass = (10 ** physical(u[..., : self.n_cluster])[2]).reshape(-1, 1)
        if rule is None:
            latents = u[..., self.n_globals :].flatten(0, 1)
            n = latents.view(len(latents), self.moving.frame.shape[1], self.latents_per_star)
            members = self._log_sampled(u, cluster, centre, n)
        else:
            members = self._log_integrated(u, cluster, centre, rule)
        if self.directions_alone.shape[1]:
            directions = self.directions_alone
            directions = directions.repeat_interleave(chains, 0) if sets > 1 else directions
            without_velocity = (sky_density(cluster, centre, directions) / mass).log()
            members = torch.cat([members, without_velocity], 1)[:, self.list_order]
        if self.selection is not None:
            members = members - self.selection.log_inside(cluster, centre, mass)
        if not self.has_field_stars:
            return members, torch.full_like(members, -torch.inf), log_prior
        named = self._field(u)
        fraction = named["field_share"].reshape(-1, 1)
        field = self._log_field(named)
        if rule is None:  # a field star has latent numbers, too
            none = n.new_zeros(len(n), self.directions_alone.shape[1])
            log_n = torch.cat([log_standard_normal(n).sum(-1), none], 1)
            field = field + log_n[:, self.list_order]
        return members + torch.log1p(-fraction), field + fraction.log(), log_prior

    def _repeated(self, chains: int, times: int) -> StarMeasurements:
        """The stars with velocities for each chain of each set, each repeated ``times``."""
        sets = len(self.stars.direction)

        def repeat(x: Tensor) -> Tensor:
            x = x.repeat_interleave(times, 1) if times > 1 else x
            return x.repeat_interleave(chains, 0) if sets > 1 else x

        return self.moving.map(repeat)

    def _without_offset(self, s: StarMeasurements, u: Tensor) -> StarMeasurements:
        """Parallaxes without the offset of each chain, (sets * chains, stars)."""
        if s.parallax is None or not self.parallax_offset_error:
            return s
        return s._replace(parallax=s.parallax - self._parallax_offset(u).reshape(-1, 1))

    def _parallax_offset(self, u: Tensor) -> Tensor:
        """Measured minus true parallax in common, mas; ``u`` without its last axis."""
        return self.parallax_offset_error * u[..., self.n_globals - 1]

    def _log_p(self, u: Tensor, rule: Quadrature | None) -> Tensor:
        members, field, log_prior = self.log_terms(u, rule)
        log_p = torch.logaddexp(members, field) if self.has_field_stars else members
        return log_prior + log_p.sum(1).view(u.shape[:2])

    def log_prob(self, u: Tensor) -> Tensor:
        return self._log_p(u, self.rule)

    def marginal(self, u: Tensor) -> Tensor:
        """By a rough quadrature without errors of directions, and of complete proper motions."""
        return self._log_p(u, self.rough_rule)

    def candidates(self) -> Iterator[Tensor]:
        yield from candidate_grid(self.typical_r, 3 * self.speed**2, self.n_globals)

    @torch.no_grad()
    def membership(self, u: Tensor) -> Tensor:
        """Probability that each star is a member, (sets, chains, n), at sampled points."""
        members, field, _ = self.log_terms(u, self.rule)
        return torch.sigmoid(members - field).view(*u.shape[:2], -1)

    def mean_membership(self, points: Sequence[Tensor]) -> Tensor:
        """Mean of `membership` over points (sets, chains, dim), sets and chains, (n,)."""
        return torch.stack([self.membership(u) for u in points]).mean((0, 1, 2))

    def named(self, u: Tensor) -> dict[str, Tensor]:
        flat = u.reshape(len(u), -1, u.shape[-1])
        centre, _ = self.centre(flat)
        phase = torch.cat([centre.distance * centre.direction[:, 0], centre.velocity[:, 0]], -1)
        sky = to_sky(phase).view(*u.shape[:-1], 6)
        # draws about 0 = 360 deg stay together
        ra = self.ra.view(-1, *[1] * (u.ndim - 1))
        ra = ra + (sky[..., :1] - ra + torch.pi).remainder(2 * torch.pi) - torch.pi
        sky = torch.cat(
            [ra.rad2deg(), sky[..., 1:2].rad2deg(), 1e-3 * sky[..., 2:3], sky[..., 3:]], -1
        )
        names = [*self.names, *(f"centre_{name}" for name in CENTRE)]
        values = [*physical(u[..., : self.n_cluster]), *sky.unbind(-1)]
        named = dict(zip(names, values, strict=True))
        if self.has_field_stars:
            field = self._field(flat)
            named |= {name: value.view(u.shape[:-1]) for name, value in field.items()}
        if self.parallax_offset_error:
            named["parallax_offset"] = self._parallax_offset(u)
        return named


def star_measurements(stars: Mapping[str, Tensor]) -> StarMeasurements:
    """From columns of `physics.clusters.observations.SkyStars`, each (sets, n)."""

    def column(*names: str) -> Tensor | None:
        """One column, or several stacked along the last axis; None where no star has a value."""
        if names[0] not in stars or not bool(stars[names[0]].isfinite().any()):
            return None
        return stars[names[0]] if len(names) == 1 else torch.stack([stars[n] for n in names], -1)

    frame = torch.stack(axes(stars["ra"].deg2rad(), stars["dec"].deg2rad()), -2)
    error = column("ra_error", "dec_error")
    return StarMeasurements(
        frame=frame,
        direction_error=torch.zeros_like(frame[..., 0, :2])
        if error is None
        else error.nan_to_num(),
        pm=column("pm_ra", "pm_dec"),
        pm_error=column("pm_ra_error", "pm_dec_error"),
        parallax=column("parallax"),
        parallax_error=column("parallax_error"),
        rv=column("rv"),
        rv_error=column("rv_error"),
    )
