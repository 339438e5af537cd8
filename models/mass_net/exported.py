"""The network of mass_net for other programs: from colour and absolute magnitude to mass."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input, Output
from orrery.models.mass_net import diagram
from orrery.models.mass_net.outputs import MIN_INFORMATION, OUTPUTS

if TYPE_CHECKING:
    from orrery.models.mass_net import MassNet


class StarMass(nn.Module):
    """ln m of single stars, and whether training pairs say little of stars like them."""

    def __init__(self, model: "MassNet") -> None:
        super().__init__()
        self.model = model

    def forward(
        self, bp_rp: Tensor, abs_g: Tensor, bp_rp_error: Tensor, abs_g_error: Tensor
    ) -> tuple[Tensor, ...]:
        """Each (rows,), and so are the outputs."""
        errors = {"bp_rp_error": bp_rp_error, "abs_g_error": abs_g_error}
        mean, std = self.model.log_mass(bp_rp, abs_g, errors)
        information = diagram.at(self.model.hr_information, bp_rp, abs_g)
        return mean.exp(), std, information < MIN_INFORMATION


def exported(model: "MassNet") -> Exported:
    x0, x1 = diagram.BP_RP_START, diagram.BP_RP_START + diagram.BP_RP_CELL * diagram.N_BP_RP
    y0, y1 = diagram.ABS_G_START, diagram.ABS_G_START + diagram.ABS_G_CELL * diagram.N_ABS_G
    inputs = {
        "bp_rp": Input("mag", "BP - RP, dereddened", torch.tensor([0.82, 1.5, 2.7]), x0, x1),
        "abs_g": Input(
            "mag", "absolute magnitude M_G, dereddened", torch.tensor([4.67, 7.5, 10.0]), y0, y1
        ),
        "bp_rp_error": Input("mag", "error of bp_rp", torch.tensor([0.0, 0.02, 0.1]), 0.0),
        "abs_g_error": Input("mag", "error of abs_g", torch.tensor([0.0, 0.05, 0.1]), 0.0),
    }
    outputs = {
        "mass": OUTPUTS["mass"],
        "lnm_std": OUTPUTS["lnm_std"],
        "extrapolated": Output("", "whether training pairs tell little of stars at this place"),
    }
    return Exported(
        StarMass(model),
        inputs,
        outputs,
        remarks=[
            *model.domain_of_validity()[:3],
            "the motion of pairs is not an input: their statistics are computed by Orrery alone",
        ],
    )
