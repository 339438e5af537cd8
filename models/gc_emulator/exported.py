"""The network of gc_emulator for other programs: from parameters and a radius to profiles."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input, Output
from orrery.physics.clusters.lowered_isothermal import W0_MAX, W0_MIN

if TYPE_CHECKING:
    from orrery.models.gc_emulator import GCEmulator


class Profiles(nn.Module):
    """A model and a projected radius per row: potential there, and profiles on the sky."""

    def __init__(self, model: "GCEmulator") -> None:
        super().__init__()
        self.emulator = model.emulator

    def forward(
        self, W0: Tensor, g: Tensor, mass: Tensor, rh: Tensor, R: Tensor, *rh_ra: Tensor
    ) -> tuple[Tensor, ...]:
        """Each (rows,), and so are the outputs; ``rh_ra`` of an anisotropic emulator alone."""
        cluster = self.emulator.cluster(W0, g, mass, rh, *(rh / x for x in rh_ra))
        profiles = cluster.projected(R.square()[:, None])
        dispersions = (v2[:, 0].sqrt() for v2 in profiles[1:])
        return cluster.rt[:, 0], profiles.surface_density[:, 0], *dispersions


def exported(model: "GCEmulator") -> Exported:
    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    inputs = {
        "W0": Input("", "central potential in units of s^2", column(3.0, 5.0, 7.0), W0_MIN, W0_MAX),
        "g": Input(
            "",
            "truncation index; its largest value falls with W0, see docs",
            column(1.5, 1, 0.5),
            0.0,
        ),
        "mass": Input("Msun", "mass of the cluster", column(1e5, 3e5, 1e6), 0.0),
        "rh": Input("pc", "half-mass radius", column(4.0, 5.0, 7.0), 0.0),
        "R": Input("pc", "projected radius, below r_t", column(0.5, 3.0, 10.0), 0.0),
    }
    if model.emulator.shape[0] > 1:
        inputs["rh_ra"] = Input(
            "", "half-mass over anisotropy radius, above 0", column(0.1, 0.3, 0.2), 0.0, 1.0
        )
    velocity = "velocity dispersion on the sky at R,"
    outputs = {
        "rt": Output("pc", "truncation radius"),
        "surface_density": Output("Msun / pc2", "surface density at R"),
        "sigma_los": Output("km/s", f"{velocity} along the line of sight"),
        "sigma_radial": Output("km/s", f"{velocity} away from the centre"),
        "sigma_tangential": Output("km/s", f"{velocity} about it"),
    }
    return Exported(
        Profiles(model),
        inputs,
        outputs,
        without_onnx="it is in float64, of which onnxruntime has no arc cosine",
        remarks=[
            "a row is a model and a radius: repeat the model for a profile",
            "the posterior of a cluster, by HMC, is computed by Orrery alone",
        ],
    )
