"""The network of scatter_vae for other programs: encoder and decoder."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input, Output
from orrery.models.scatter_vae.outputs import LATENT

if TYPE_CHECKING:
    from orrery.models.scatter_vae import ScatterVAE


class EncoderDecoder(nn.Module):
    """Latent numbers of a star by the encoder, and the coefficients that they decode to."""

    def __init__(self, model: "ScatterVAE") -> None:
        super().__init__()
        self.model = model

    def forward(
        self, coefficients: Tensor, errors: Tensor, flux: Tensor, observed: Tensor
    ) -> tuple[Tensor, ...]:
        """As in a batch; returns z and its ln variance, the decoded coefficients, their scatter."""
        model = self.model
        batch = {
            "coefficients": coefficients, "errors": errors, "flux": flux, "observed": observed
        }  # fmt: skip
        mean, log_variance = model._encode(*model.standardised(batch), observed)
        decoded = (model.decode(mean) * model.scale + model.center) * flux[:, None]
        scatter = model.network.intrinsic_scatter(mean) * model.scale * flux[:, None]
        return mean, log_variance, decoded, scatter


def exported(model: "ScatterVAE") -> Exported:
    n, bands = sum(model.bands.values()), list(model.bands)
    columns = model.columns
    unit = columns["reconstruction"].unit
    flux = torch.tensor([100.0, 1000.0, 5000.0])
    with torch.no_grad():  # stars like the training set's
        coefficients = (model.decode(model.population[:3]) * model.scale + model.center) * flux[
            :, None
        ]
    names = [f"{band}_{i}" for band, size in model.bands.items() for i in range(size)]
    axes = ("coefficient",)
    inputs = {
        "coefficients": Input(
            unit, f"of {' and '.join(bands)}, end to end; any number where missing", coefficients,
            axes=axes,
        ),
        "errors": Input(
            unit, "their errors, above 0; any number where missing", model.scale * flux[:, None],
            axes=axes,
        ),
        "flux": Input(unit, f"what coefficients are divided by: {model.normalised_by}", flux, 0.0),
        "observed": Input(
            "", "1 where a band is observed, 0 where it is missing", torch.ones(3, len(bands)),
            0.0, 1.0, ("band",),
        ),
    }  # fmt: skip
    outputs = {
        "latent_mean": Output("", "latent numbers z by the encoder", axes=("latent",)),
        "latent_log_variance": LATENT["latent_log_variance"]._replace(axes=("latent",)),
        "reconstruction": columns["reconstruction"]._replace(axes=axes),
        "scatter": columns["scatter"]._replace(axes=axes),
    }
    latent = [f"z_{i}" for i in range(model.latent)]
    assert n == len(names)
    return Exported(
        EncoderDecoder(model),
        inputs,
        outputs,
        {"coefficient": names, "band": bands, "latent": latent},
        [
            *model.domain_of_validity()[:1],
            f"z is the encoder's; Orrery takes {model.refine} Gauss-Newton steps from there by the "
            f"correlations of the errors, and computes probabilities and spectra",
        ],
    )
