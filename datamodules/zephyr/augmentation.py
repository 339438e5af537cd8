"""Training objects as shallower and incomplete photometry would have them."""

import torch

from orrery.datamodules.base import Rows

# Scatter of ln flux that all bands of a training object share, against overfitting: brightness
# identifies each of ten thousand objects, and constrains redshift less than colours do.
BRIGHTNESS_SCATTER = 0.2


def augmented(
    batch: Rows, generator: torch.Generator, noise: float, noise_share: float, drop_share: float
) -> Rows:
    """A batch with random brightness, added noise and dropped bands.

    ``flux``, ``flux_err`` (batch, bands), uJy, and ``detected`` (batch, bands) change, the other
    tensors do not. A fraction ``noise_share`` of the objects gets noise of up to ``noise`` times
    its own error, which grows accordingly; in a fraction ``drop_share`` bands become not observed.
    """
    flux, error = batch["flux"], batch["flux_err"]
    n, bands = flux.shape
    factor = torch.exp(BRIGHTNESS_SCATTER * torch.randn(n, 1, generator=generator))
    flux, error = flux * factor, error * factor.sqrt()
    noisy = torch.rand(n, 1, generator=generator) < noise_share
    extra = noise * torch.rand(n, 1, generator=generator) * noisy * batch["detected"]
    flux = flux + extra * error * torch.randn(n, bands, generator=generator)
    error = error * torch.sqrt(1 + extra**2)
    drop = torch.rand(n, 1, generator=generator) < drop_share
    dropped = drop & (
        torch.rand(n, bands, generator=generator) < torch.rand(n, 1, generator=generator)
    )
    flux, error = (values.masked_fill(dropped, torch.nan) for values in (flux, error))
    detected = batch["detected"].masked_fill(dropped, 0.0)
    return {**batch, "flux": flux, "flux_err": error, "detected": detected}
