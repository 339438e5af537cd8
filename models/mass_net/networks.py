"""Mass over the Hertzsprung-Russell diagram, orbits and outliers against separation."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from orrery.models.layers.ensemble import Linear
from orrery.physics.wide_binaries import motion, outliers

BP_RP_CENTRE, BP_RP_SCALE = 1.7, 1.0  # mag
ABS_G_CENTRE, ABS_G_SCALE = 7.5, 2.0  # mag
LOG_MASS_CENTRE = -0.5  # ln Msun, of a network at its start
LOG_SEPARATIONS = (2.0, 2.5, 3.0, 3.5, 4.0)  # log10 AU: nodes, linear between, constant beyond
ALPHA_BEND, OUTLIER_BEND = 0.2, 0.5  # standard deviations of second differences at nodes
ALPHA_RANGE = (motion.ALPHA_NODES[0], motion.ALPHA_NODES[-1])
# Of a tail of outliers, without which the fastest pairs would decide the mass: width of u along
# each axis, and its weight at the start
TAIL_WIDTH, TAIL_LOGIT = 2.5, -3.0


class MassNetwork(nn.Module):
    """ln m, Msun, of each member of an ensemble of small networks, (members, batch).

    In: BP - RP and M_G, mag, (batch,).
    """

    def __init__(self, members: int, width: int, depth: int) -> None:
        super().__init__()
        self.members = members
        sizes = [2, *[width] * depth]
        self.hidden = nn.ModuleList(Linear(members, a, b) for a, b in pairwise(sizes))
        # without it all neurons would turn at the same place, the centre, and leave a kink there
        torch.nn.init.normal_(self.hidden[0].bias)  # type: ignore[arg-type]
        self.head = Linear(members, width, 1, gain=0.3)
        # a plane, which weight decay leaves alone: it would pull all masses to the centre
        self.trend = nn.Parameter(torch.zeros(members, 2, 1))

    def forward(self, bp_rp: Tensor, abs_g: Tensor) -> Tensor:
        x = torch.stack([(bp_rp - BP_RP_CENTRE) / BP_RP_SCALE,
                         (abs_g - ABS_G_CENTRE) / ABS_G_SCALE], -1)  # fmt: skip
        x = x.expand(self.members, *x.shape)
        trend = x @ self.trend
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return LOG_MASS_CENTRE + (trend + self.head(x))[..., 0]


class PairStatistics(nn.Module):
    """Eccentricities, fraction of outliers and their velocities, of each member.

    The exponent of eccentricity and the fraction are linear in log10 of the separation between
    nodes. The velocities of outliers are those of `physics.wide_binaries.outliers`, with a tail of
    learned weight. Like that of bound pairs their density in w has the Jacobian 1 / M.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        n = len(LOG_SEPARATIONS)
        self.alpha_logit = nn.Parameter(torch.full((members, n), 0.5))
        self.outlier_logit = nn.Parameter(torch.full((members, n), -2.0))
        self.tail_logit = nn.Parameter(torch.full((members,), TAIL_LOGIT))
        self.rings: Tensor
        self.log_weights: Tensor
        self.register_buffer("rings", torch.tensor(outliers.RINGS).float(), persistent=False)
        weights = torch.tensor(outliers.ring_weights()).float()
        self.register_buffer("log_weights", weights.log(), persistent=False)

    def alpha(self, log_separation: Tensor) -> Tensor:
        """Exponent of eccentricity, (members, batch)."""
        low, high = ALPHA_RANGE
        return low + (high - low) * _interpolated(self.alpha_logit, log_separation).sigmoid()

    def roughness(self) -> Tensor:
        """-ln of the prior on bends of alpha and of the outliers' logit at nodes, (members,)."""
        low, high = ALPHA_RANGE
        alpha = low + (high - low) * self.alpha_logit.sigmoid()
        bends = alpha.diff(n=2).div(ALPHA_BEND), self.outlier_logit.diff(n=2).div(OUTLIER_BEND)
        return 0.5 * torch.cat(bends, 1).square().sum(1)

    def log_outlier_fractions(self, log_separation: Tensor) -> tuple[Tensor, Tensor]:
        """ln of the fractions of outliers and of bound pairs, each (members, batch)."""
        logit = _interpolated(self.outlier_logit, log_separation)
        return nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit)

    def log_outlier_density(self, w: Tensor, covariance: Tensor, log_mass: Tensor) -> Tensor:
        """ln p(w) of outliers, (members, batch), of pairs of total ``log_mass`` (members, batch).

        ``w`` (batch, 2) and its ``covariance`` (batch, 2, 2), of which the mean of both axes
        counts. A ring of normals is Rice's distribution.
        """
        mass = log_mass.exp()
        noise = 0.5 * covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        r = w.norm(dim=-1)[:, None]
        ring = self.rings * mass.sqrt()[..., None]
        variance = (noise + outliers.RING_WIDTH**2 * mass)[..., None]
        bessel = torch.special.i0e(r * ring / variance).log()
        log_rings = bessel - 0.5 * (r - ring).square() / variance - variance.log()
        law = (self.log_weights + log_rings).logsumexp(-1)
        variance = noise + TAIL_WIDTH**2 * mass
        tail = -0.5 * r[:, 0].square() / variance - variance.log()
        return self._with_tail(law, tail) - math.log(2 * math.pi)

    def log_slower(self, speed: float, log_mass: Tensor) -> Tensor:
        """ln of the fraction of outliers slower than ``speed``, a |w|, (members, batch)."""
        u = speed * (-0.5 * log_mass).exp()
        log_p = torch.special.log_ndtr((u[..., None] - self.rings) / outliers.RING_WIDTH)
        law = (self.log_weights + log_p).logsumexp(-1)
        tail = torch.log(-torch.expm1(-0.5 * (u / TAIL_WIDTH).square()))
        return self._with_tail(law, tail)

    def _with_tail(self, law: Tensor, tail: Tensor) -> Tensor:
        logit = self.tail_logit[:, None]
        return torch.logaddexp(
            nn.functional.logsigmoid(-logit) + law, nn.functional.logsigmoid(logit) + tail
        )


def _interpolated(values: Tensor, log_separation: Tensor) -> Tensor:
    """Linear between the nodes: values (members, nodes) at (batch,), (members, batch).

    A product, whose gradient is the same in every run; that of an indexed sum is not.
    """
    start, step = LOG_SEPARATIONS[0], LOG_SEPARATIONS[1] - LOG_SEPARATIONS[0]
    place = ((log_separation - start) / step).clamp(0, len(LOG_SEPARATIONS) - 1)
    nodes = torch.arange(len(LOG_SEPARATIONS), device=place.device)
    return values @ (1 - (place - nodes[:, None]).abs()).clamp_min(0).to(values)


def bound_density(likelihood: Tensor, log_mass: Tensor, alpha: Tensor) -> Tensor:
    """p(w | M, alpha) of bound pairs, (members, batch), from its table.

    ``likelihood`` (batch, n_mass, 4) of `physics.wide_binaries.motion.likelihood`; ``log_mass``, ln
    of the total mass in Msun, and ``alpha`` (members, batch). A cubic between the nodes.
    """
    step = (motion.LOG_MASS_END - motion.LOG_MASS_START) / (motion.N_LOG_MASS - 1)
    place = (log_mass - motion.LOG_MASS_START) / step
    place = place.clamp(1, motion.N_LOG_MASS - 2 - 1e-3)
    low = place.detach().long()
    t = place - low
    # Catmull & Rom's cubic through the two nodes on either side
    weights = torch.stack(
        [
            t * (t * (2 - t) - 1),
            t * t * (3 * t - 5) + 2,
            t * (t * (4 - 3 * t) + 1),
            t * t * (t - 1),
        ],
        -1,
    )
    nodes = low[..., None] + torch.arange(-1, 3, device=low.device)
    rows = torch.arange(len(likelihood), device=low.device)[:, None]
    table = likelihood[rows, nodes]  # (members, batch, 4 masses, 4 alphas)
    at_nodes = torch.einsum("...mk,...k->...m", table, motion.alpha_weights(alpha))
    return (0.5 * weights * at_nodes).sum(-1).clamp_min(0)
