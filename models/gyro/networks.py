"""Networks that leave a cluster out each, and the density of a period that they speak for."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.blocks.ensemble import Linear
from models.blocks.flows import SplineFlow

FLOWS = {"zuko_nsf": "zuko", "nflows_rqs": "nflows", "mixture": None}
AGE, AGE_SPREAD = 2.5, 0.8  # log10 Myr: what ages are standardised by
COLOUR, COLOUR_SPREAD = 1.6, 0.8  # mag
PERIOD, PERIOD_SPREAD = 0.6, 0.6  # log10 d
OUTLIERS = (-1.3, 2.3)  # log10 d, between which outliers are uniform
FEW = -3.0  # logit of the share of outliers among members, before anything is learned


class Rotation(nn.Module):
    """p(log10 P | log10 age, colour) of each member of an ensemble: small, smooth networks."""

    def __init__(
        self, members: int, flow: str, bins: int, components: int, width: int, depth: int
    ) -> None:
        super().__init__()
        backend = FLOWS[flow]
        self.flow = SplineFlow(bins if backend else 0, components, backend=backend or "zuko")
        sizes = [2, *[width] * depth]
        self.hidden = nn.ModuleList(Linear(members, a, b) for a, b in pairwise(sizes))
        self.head = Linear(members, width, self.flow.n_parameters, gain=0.3)
        self.head.bias.data += self.flow.initial_bias()
        self.logit_outliers = nn.Parameter(torch.full((members, 1), FEW))

    def parameters_of(self, log_age: Tensor, colour: Tensor) -> Tensor:
        """Of the flow, (members, batch, n_parameters); ages and colours (batch,)."""
        x = torch.stack([(log_age - AGE) / AGE_SPREAD, (colour - COLOUR) / COLOUR_SPREAD], -1)
        x = x.expand(len(self.logit_outliers), *x.shape)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x).float()

    def log_prob(self, parameters: Tensor, log_period: Tensor) -> Tensor:
        """ln p per dex of a member of the cluster, shaped as ``log_period`` broadcasts."""
        y = (log_period - PERIOD) / PERIOD_SPREAD
        return self.flow.log_prob(parameters, y) - math.log(PERIOD_SPREAD)

    def log_share(self) -> tuple[Tensor, Tensor]:
        """ln of the share of members that the flow describes, and of outliers, (members, 1)."""
        logit = self.logit_outliers
        return nn.functional.logsigmoid(-logit), nn.functional.logsigmoid(logit)


def with_outliers(log_p: Tensor, log_share: Tensor, mem_prob: Tensor) -> Tensor:
    """ln of membership times the flow, and of the rest, uniform in log P."""
    uniform = -math.log(OUTLIERS[1] - OUTLIERS[0])
    inside = log_share + mem_prob.clamp(1e-3, 1).log()
    outside = torch.log1p(-inside.exp().clamp(max=1 - 1e-6)) + uniform
    return torch.logaddexp(inside + log_p, outside)
