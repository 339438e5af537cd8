"""The network of gems for other programs: from actions to the densities of hosts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input, Output
from orrery.models.gems.density import coordinates, log_jacobian, monomials

if TYPE_CHECKING:
    from orrery.models.gems import Gems


class ActionDensity(nn.Module):
    """ln p(J | host) of the clusters and of the field, and the probabilities of the hosts."""

    def __init__(self, model: "Gems") -> None:
        super().__init__()
        hosts = model.hosts_table()
        self.clusters: Tensor
        self.field: Tensor
        self.log_prior: Tensor
        self.register_buffer("clusters", hosts.clusters)
        self.register_buffer("field", hosts.field)
        self.register_buffer("log_prior", model.log_prior())

    def forward(self, J: Tensor) -> tuple[Tensor, ...]:
        """(rows, 3); returns (rows, hosts) twice."""
        y = coordinates(J)
        powers = monomials(y)
        log_p = [
            (powers @ table.flatten(0, 1).T).unflatten(1, table.shape[:2]).logsumexp(2)
            for table in (self.clusters, self.field)
        ]
        of_hosts = torch.cat(log_p, 1) + log_jacobian(y)[:, None]
        return of_hosts, (of_hosts + self.log_prior).softmax(1)


def exported(model: "Gems") -> Exported:
    example = torch.tensor(
        [[50.0, 800.0, 120.0], [300.0, -150.0, 400.0], [900.0, 20.0, 30.0]], dtype=torch.float64
    )
    inputs = {
        "J": Input(
            "kpc km / s",
            f"actions J_R, L_z and J_z of a star in the potential {model.potential}",
            example,
            axes=("action",),
        )
    }
    outputs = {
        "log_p": Output("", "ln p(J | host), per (kpc km/s)^3", axes=("host",)),
        "p": Output(
            "", "probability of the host, with its prior, for exact actions", axes=("host",)
        ),
    }
    return Exported(
        ActionDensity(model),
        inputs,
        outputs,
        {"action": ["J_R", "L_z", "J_z"], "host": [*model.names, "field"]},
        [
            *model.domain_of_validity(),
            "actions from positions and velocities, the average over their errors, and the test "
            "for recent ejections are computed by Orrery alone",
        ],
    )
