"""The network of sed_emulator for other programs: from parameters to magnitudes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input, Output
from orrery.models.sed_emulator.outputs import parameter_text
from orrery.models.sed_emulator.spectra import SpectrumNetwork

if TYPE_CHECKING:
    from orrery.models.sed_emulator import SedEmulator

PLACES = (0.3, 0.5, 0.6)  # of the examples within the box of the priors


class Magnitudes(nn.Module):
    """AB magnitudes of galaxies, and the errors of the emulator."""

    def __init__(self, model: "SedEmulator") -> None:
        super().__init__()
        self.model = model

    def forward(self, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Parameters (rows,) in the order of the model's names; returns (rows, bands) twice."""
        x = torch.stack(parameters, 1)
        network = self.model.network
        if isinstance(network, SpectrumNetwork):
            return network._magnitudes(x, network.own_layer()), self.model.errors(x).total().sqrt()
        return self.model.emulate(x), self.model.errors(x).total().sqrt()


def exported(model: "SedEmulator") -> Exported:
    low, high = model.priors.low, model.priors.high
    examples = low + torch.tensor(PLACES)[:, None] * (high - low)
    inputs = {
        name: Input(
            "dex(Msun)" if name == "logmass" else "",
            parameter_text(name),
            examples[:, i].float().contiguous(),
            float(low[i]),
            float(high[i]),
        )
        for i, name in enumerate(model.names)
    }
    outputs = {
        "magnitude": Output("mag", "AB magnitude", axes=("band",)),
        "error": Output("mag", "error of the emulator, 68%", axes=("band",)),
    }
    return Exported(
        Magnitudes(model),
        inputs,
        outputs,
        {"band": model.bands},
        [
            "outside the ranges of the inputs nothing was learned, and the network does not say so",
            "the fit of galaxies, which searches and samples, is computed by Orrery alone",
        ],
    )
