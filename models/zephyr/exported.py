"""The network of zephyr for other programs: from fluxes to p(z)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input
from orrery.models.layers import grid
from orrery.models.layers.flows import LEAST_MASS

if TYPE_CHECKING:
    from orrery.models.zephyr import Zephyr


class RedshiftNetwork(nn.Module):
    """p(z) in the cells of the grid, and the weights of the sources.

    `Zephyr` evaluates each flow only where it has mass, which is another number of points for each
    object; here every flow is evaluated on all of the grid.
    """

    def __init__(self, model: "Zephyr") -> None:
        super().__init__()
        self.model = model

    def forward(self, flux: Tensor, flux_err: Tensor, detected: Tensor) -> tuple[Tensor, ...]:
        """Each (rows, bands), as in a batch; returns (rows, cells) and (rows, sources)."""
        model = self.model
        batch = {"flux": flux, "flux_err": flux_err, "detected": detected}
        parameters, weight, gate = model._flow_parameters(batch)
        nodes = model._standardised(model.edges)
        cdf = model.flow.cdf_on_grid(parameters, nodes)  # (members, rows, sources, n_grid + 1)
        first, last = cdf[..., :1], cdf[..., -1:]
        inside = (cdf - first) / (last - first).clamp_min(LEAST_MASS)
        cdf = (inside * weight[..., None]).sum(0)
        outside = weight.sum(0)[..., None] - cdf[..., -1:]
        cdf = cdf + outside * torch.linspace(0, 1, len(nodes))
        cdf = model._recalibrated((cdf.sum(1) / model.members).clamp(0, 1))
        written = model.written_edges
        return grid.density(grid.at(cdf, model.edges, written), written), gate.mean(0)


def exported(model: "Zephyr") -> Exported:
    n = len(model.bands)
    flux = torch.tensor([[1.0], [3.0], [0.2]]).expand(3, n) * torch.linspace(0.5, 1.5, n)
    error = 0.03 * flux + 0.02
    observed = "NaN where a band was not observed"
    inputs = {
        "flux": Input("uJy", f"flux in each band; {observed}", flux, axes=("band",)),
        "flux_err": Input("uJy", f"its error; {observed}", error, low=0.0, axes=("band",)),
        "detected": Input(
            "",
            "1 where an object is detected in the band, 0 where it is not, or was not observed",
            torch.ones(3, n),
            low=0.0,
            high=1.0,
            axes=("band",),
        ),
    }
    centres = grid.centres(model.written_edges)
    outputs = {
        "pz": model.columns["pz"]._replace(axes=("z_grid",)),
        "responsibility": model.columns[f"responsibility_{model.sources[0]}"]._replace(
            description="weight of each source of labels in p(z), 0 to 1", axes=("source",)
        ),
    }
    return Exported(
        RedshiftNetwork(model),
        inputs,
        outputs,
        {"z_grid": centres, "band": model.bands, "source": model.sources},
        [
            *model.domain_of_validity()[:2],
            "pz is the mean density in cells of equal width about z_grid; quantiles, scores and "
            "flags of an object are computed by Orrery alone",
            "the graph needs memory for members x sources x cells x rows: some hundred at once",
        ],
    )
