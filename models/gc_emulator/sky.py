"""The posterior of stars on the sky, with measurement errors, about an unknown centre.

The cluster's parameters are joined by those of its centre, by the true coordinates of every star
(see `models.gc_emulator.members`), and by a population of field stars if there is one. A star of
the field knows nothing of its numbers n, which are then unit normal, so that the mixture

    p(data, n) = (1 - f) p(data, n | cluster) / F + f p(data | field) N(n)

is the exact posterior of the mixture of marginal densities. F is the share of the cluster inside
the selection: p(S | theta). Stars without any velocity have no numbers: their density on the sky
is a closed form. The others' can be summed over by quadrature instead of being sampled.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.models.gc_emulator.emulator import Cluster, IsothermalEmulator
from orrery.models.gc_emulator.members import KMS, Centre, SkyStars, log_members, nodes
from orrery.models.gc_emulator.posterior import (
    LOG_MASS,
    UNITS,
    cluster_of,
    grid,
    parameters,
    physical,
)
from orrery.models.gc_emulator.selection import Selection, on_sky
from orrery.physics.clusters.cluster_stars import axes, to_sky
from orrery.physics.clusters.lowered_isothermal import G
from orrery.physics.densities import log_standard_normal

CENTRE = {"ra": "deg", "dec": "deg", "distance": "kpc", "pm_ra": "mas/yr", "pm_dec": "mas/yr",
          "rv": "km/s"}  # fmt: skip
FIELD = {"pm_ra": "mas/yr", "pm_dec": "mas/yr", "parallax": "mas", "rv": "km/s"}
RV_PRIOR, PM_PRIOR = 200.0, 10.0  # km/s and mas/yr, of a centre's motion that nothing measures
Nodes = tuple[Tensor, Tensor]  # of `nodes`


class Sky:
    """Data sets, each with a posterior of its own; see `models.gc_emulator.start.Posterior`.

    Globals: `parameters`; of the centre the offsets east and north of ``middle``, the distance,
    proper motions and velocity along the line of sight; of the field its share, and mean and
    width of what is measured. ``distance``: mean and error of its normal prior, kpc; without an
    error the prior is flat in its logarithm, for parallaxes to tell. ``marginal``: the stars'
    numbers are summed over, not sampled. Which stars have a velocity at all must be the
    same in all sets.
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
        distance: tuple[float, float | None],
        selection: Selection | None = None,
        field: bool = False,
        marginal: bool = False,
    ) -> None:
        self.emulator, self.stars, self.selection = emulator, stars, selection
        self.field = field
        if field and selection is None:
            raise ValueError("a field needs a selection: how much sky it fills")
        moves = torch.zeros(stars.direction.shape[:2], dtype=torch.bool)
        if stars.pm is not None:
            moves |= stars.pm.isfinite().all(-1)
        if stars.rv is not None:
            moves |= stars.rv.isfinite()
        moves, self.n_stars = moves.any(0), moves.shape[1]
        moving, self.places = stars.each(lambda x: x[:, moves]), stars.direction[:, ~moves]
        moving = moving._replace(all_pm=moving.pm is None or bool(moving.pm.isfinite().all()))
        self.moving = moving
        self.in_order = torch.cat([moves.nonzero(), (~moves).nonzero()])[:, 0].argsort()
        self.per_star = 6 if bool((stars.direction_error > 0).any()) else 4
        self.n_latents = 0 if marginal else self.per_star * int(moves.sum())
        # columns that the field has a normal distribution of
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
        self.names = parameters(emulator)
        self.n_cluster = len(self.names)
        self.n_placed = self.n_cluster + len(CENTRE)  # parameters of the cluster and its centre
        self.n_globals = self.n_placed + (1 + 2 * len(self.measured) if field else 0)
        self.closed = stars.rv is None and self.n_cluster == 4  # see `along` of `log_members`
        known = moving.all_pm and moving.pm is not None
        self.rough = nodes(6, 0 if self.closed else 3, 0 if known else 3)
        self.rule = nodes(8, 0 if self.closed else 5, 6) if marginal else None
        self._look(distance)

    def _look(self, distance: tuple[float, float | None]) -> None:
        """Where the cluster is and how it moves, roughly: coordinates of the centre are offsets."""
        stars, few = self.stars, self.n_stars**-0.5
        out = F.normalize(stars.direction.mean(1), dim=-1)
        ra, dec = torch.atan2(out[:, 1], out[:, 0]), out[:, 2].asin()
        self.tangent = torch.stack(axes(ra, dec), 1)  # (sets, 3, 3): east, north, out
        offset = stars.direction @ self.tangent[:, :2].mT
        offset = offset - offset.median(1, keepdim=True).values
        r = offset.norm(dim=-1)
        mean, prior_error = distance
        self.by_parallax = prior_error is None
        self.distance_index = None if self.by_parallax else self.n_cluster + 2
        d = 1e3 * torch.tensor([mean, prior_error or 0.1 * mean], dtype=torch.float64)
        d = d.expand(len(r), 2)
        self.typical_r = 1.3 * r.median(1, keepdim=True).values * d[:, :1]  # (sets, 1), pc
        angle = few * self.typical_r / d[:, :1]
        # dispersion (sets, 1), km/s: of a cluster from the prior, or what there is of velocities
        speed = (0.4 / 3 * G * 10 ** LOG_MASS[0] / self.typical_r).sqrt()
        rv, rv_unit = 0 * angle, torch.full_like(angle, RV_PRIOR)
        if stars.rv is not None:
            rv = stars.rv.nanmedian(1, keepdim=True).values
            speed = 1.4826 * (stars.rv - rv).abs().nanmedian(1, keepdim=True).values
            rv_unit = speed * few
        pm = torch.zeros_like(d)
        pm_unit = torch.full_like(d, PM_PRIOR)
        if stars.pm is not None and stars.pm_error is not None:
            # the stars of the inner half say how the cluster moves
            measured = torch.where(stars.pm[..., 0].isfinite(), r, torch.nan)
            inner = (measured <= measured.nanmedian(1, keepdim=True).values)[..., None]
            seen = torch.where(inner, stars.pm, torch.nan)
            pm = seen.nanmedian(1).values
            scatter = 1.4826 * (seen - pm[:, None]).abs().nanmedian(1).values.mean(-1, keepdim=True)
            error = stars.pm_error.square().nanmean((1, 2)).sqrt()[:, None]
            width = torch.maximum((scatter**2 - error**2).clamp_min(0).sqrt(), 0.3 * scatter)
            speed = KMS * d[:, :1] * width
            pm_unit = (scatter * few).expand(-1, 2)
            if stars.rv is not None:
                rv_unit = KMS * d[:, :1] * scatter * few
        self.speed = speed
        self.typical_pm = speed / (KMS * d[:, :1])
        self.middle = torch.cat([0 * d, d[:, :1], pm, rv], 1)  # (sets, 6)
        self.unit = torch.cat([angle, angle, d[:, 1:], pm_unit, rv_unit], 1)
        # coordinates of the centre with a prior
        self.unsure = [*([] if self.by_parallax else [2]),
                       *([] if stars.pm is not None else [3, 4]),
                       *([] if stars.rv is not None else [5])]  # fmt: skip

    # --- globals ------------------------------------------------------------------------------

    def _centre(self, u: Tensor) -> tuple[Centre, Tensor]:
        """The centre, and its log prior (sets, chains); u (sets, chains, n_globals or more)."""
        by_unit = self.unit[:, None] * u[..., self.n_cluster : self.n_placed]
        x = self.middle[:, None] + by_unit
        distance = x[..., 2:3]
        if self.by_parallax:
            middle = self.middle[:, None, 2:3]
            distance = middle * (by_unit[..., 2:3] / middle).exp()
        tangent = torch.cat([x[..., :2], torch.ones_like(x[..., :1])], -1)
        direction = F.normalize((tangent @ self.tangent), dim=-1)
        east = torch.stack([-direction[..., 1], direction[..., 0], 0 * direction[..., 2]], -1)
        east = F.normalize(east, dim=-1)
        north = torch.linalg.cross(direction, east)
        speed = KMS * distance * x[..., 3:5]
        velocity = speed[..., :1] * east + speed[..., 1:] * north + x[..., 5:6] * direction
        prior = u[..., [self.n_cluster + i for i in self.unsure]].square().sum(-1)
        flat = [v.flatten(0, 1)[:, None] for v in (direction, velocity, x[..., 3:5])]
        return Centre(distance.reshape(-1, 1), *flat), -0.5 * prior

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
        assert self.selection is not None
        log_sky = self.selection.log_sky()
        log_p = torch.full((1, 1, self.n_stars), -log_sky, dtype=torch.float64)
        for name, (x, e) in self.measured.items():
            mean, width = (named[f"field_{name}{more}"][..., None] for more in ("", "_width"))
            seen = x.isfinite()[:, None]
            x, e = (torch.where(x.isfinite(), v, fill)[:, None] for v, fill in ((x, 0), (e, 1)))
            total = (e**2 + width**2).sqrt()
            log_each = log_standard_normal((x - mean) / total) - total.log()
            log_p = log_p + torch.where(seen, log_each, 0.0)
        return log_p.flatten(0, 1)

    # --- the posterior ------------------------------------------------------------------------

    def _moving(self, u: Tensor, cluster: Cluster, centre: Centre, n: Tensor) -> Tensor:
        """ln p of the stars with velocities as members, with their numbers."""
        chains = u.shape[1]
        s, typical = self._spread(chains, 1), self.typical_pm.repeat_interleave(chains, 0)
        return log_members(s, typical, cluster, centre, n)

    def _summed(self, u: Tensor, cluster: Cluster, centre: Centre, rule: Nodes) -> Tensor:
        """The same summed over the numbers by a quadrature."""
        (n, log_weights), chains = rule, u.shape[1]
        s, typical = self._spread(chains, len(n)), self.typical_pm.repeat_interleave(chains, 0)
        along = self.emulator.lowered(cluster, 0.5) if self.closed else None
        each = n.repeat(self.moving.frame.shape[1], 1)[None]
        log_p = log_members(s, typical, cluster, centre, each, along)
        return (log_p.unflatten(1, (-1, len(n))) + log_weights).logsumexp(2)

    def _parts(self, u: Tensor, rule: Nodes | None) -> tuple[Tensor, Tensor, Tensor]:
        """ln p of stars as members and as of the field, (sets * chains, n), and the log prior.

        With the numbers of the stars in ``u``, or a quadrature over them.
        """
        sets, chains = u.shape[:2]
        cluster, log_prior = cluster_of(self.emulator, u)
        centre, log_centre = self._centre(u)
        log_prior = (
            log_prior + log_centre - 0.5 * u[..., self.n_placed : self.n_globals].square().sum(-1)
        )
        mass = (10 ** physical(u[..., : self.n_cluster])[2]).reshape(-1, 1)
        if rule is None:
            of_stars = u[..., self.n_globals :].flatten(0, 1)
            n = of_stars.view(len(of_stars), self.moving.frame.shape[1], self.per_star)
            members = self._moving(u, cluster, centre, n)
        else:
            members = self._summed(u, cluster, centre, rule)
        if self.places.shape[1]:
            places = self.places.repeat_interleave(chains, 0) if sets > 1 else self.places
            alone = (on_sky(cluster, centre, places) / mass).log()
            members = torch.cat([members, alone], 1)[:, self.in_order]
        if self.selection is not None:
            members = members - self.selection.log_inside(cluster, centre, mass)
        if not self.field:
            return members, torch.full_like(members, -torch.inf), log_prior
        named = self._field(u)
        share = named["field_share"].reshape(-1, 1)
        field = self._log_field(named)
        if rule is None:  # a star of the field has numbers, too
            none = n.new_zeros(len(n), self.places.shape[1])
            of_n = torch.cat([log_standard_normal(n).sum(-1), none], 1)
            field = field + of_n[:, self.in_order]
        return members + torch.log1p(-share), field + share.log(), log_prior

    def _spread(self, chains: int, times: int) -> SkyStars:
        """The stars with velocities for each chain of each set, each ``times`` over."""
        sets = len(self.stars.direction)

        def spread(x: Tensor) -> Tensor:
            x = x.repeat_interleave(times, 1) if times > 1 else x
            return x.repeat_interleave(chains, 0) if sets > 1 else x

        return self.moving.each(spread)

    def _log_p(self, u: Tensor, rule: Nodes | None) -> Tensor:
        members, field, log_prior = self._parts(u, rule)
        log_p = torch.logaddexp(members, field) if self.field else members
        return log_prior + log_p.sum(1).view(u.shape[:2])

    def log_prob(self, u: Tensor) -> Tensor:
        return self._log_p(u, self.rule)

    def marginal(self, u: Tensor) -> Tensor:
        """By a rough quadrature; what is measured is taken as it is, but for velocities."""
        return self._log_p(u, self.rough)

    def candidates(self) -> Iterator[Tensor]:
        yield from grid(self.typical_r, 3 * self.speed**2, self.n_globals)

    @torch.no_grad()
    def membership(self, u: Tensor) -> Tensor:
        """Probability of each star to be of the cluster, (sets, chains, n), at sampled points."""
        members, field, _ = self._parts(u, self.rule)
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

    def column(*names: str) -> Tensor | None:
        """None where no star has it; of several names together."""
        if names[0] not in stars or not bool(stars[names[0]].isfinite().any()):
            return None
        return stars[names[0]] if len(names) == 1 else torch.stack([stars[n] for n in names], -1)

    frame = torch.stack(axes(stars["ra"].deg2rad(), stars["dec"].deg2rad()), -2)
    error = column("ra_error", "dec_error")
    return SkyStars(
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
