"""Broad-band photometry as the input of a network."""

import torch
from torch import Tensor, nn

from orrery.models.base import Batch
from orrery.models.zephyr.support import Support
from orrery.physics.galaxies.photometry import luptitude, luptitude_err

UNUSUAL_OOD = 0.999  # of `Support`, above which an object is flagged
FLAGS = {
    "missing_band": "a band was not observed",
    "not_detected": "nothing was detected",
    "unusual": "unlike 99.9% of the training objects",
    "large_error": "an error larger than in training",
    "wide": "the central 68% of p(z) is wider than 0.3 (1 + z)",
    "faint": "fainter than 99% of the training objects in the band of mag_ref",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}


class Photometry(nn.Module):
    """Asinh magnitudes, colours of neighbouring bands and log errors, standardised; and flags.

    In: a batch with ``flux`` and ``flux_err`` (batch, bands), uJy, NaN where a band was not
    observed, and ``detected`` (batch, bands), 0 or 1. Out: see `forward`. `fit` takes the scaling
    from training data.
    """

    def __init__(self, bands: list[str]) -> None:
        super().__init__()
        n = len(bands)
        self.bands = bands
        self.n_features, self.n_masks = 3 * n - 1, 2 * n
        self.softening: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.reference: Tensor
        self.register_buffer("softening", torch.ones(n))  # uJy, of the asinh magnitudes
        self.register_buffer("mean", torch.zeros(self.n_features))
        self.register_buffer("std", torch.ones(self.n_features))
        self.register_buffer("mag_range", torch.zeros(2, n))  # of 98% of the training objects
        self.register_buffer("error_limit", torch.zeros(n))  # largest of training, standardised
        self.register_buffer("reference", torch.zeros((), dtype=torch.long))  # index of the band
        self.support = Support(2 * n)

    def fit(self, batch: Batch) -> None:
        """Take scaling, ranges, reference band and `Support` from training objects."""
        n = len(self.bands)
        self.softening = batch["flux_err"].nanmedian(0).values
        features = self._features(batch)
        self.mean = features.nanmean(0)
        self.std = (features - self.mean).square().nanmean(0).sqrt().clamp_min(1e-3)
        ends = torch.tensor([0.01, 0.99], device=features.device)
        self.mag_range = torch.nanquantile(features[:100_000, :n], ends, 0)
        x = self._standardised(batch)
        self.error_limit = x[:, -n:].nan_to_num(-torch.inf).amax(0)
        signal_to_noise = (batch["flux"] / batch["flux_err"]).nanmedian(0).values
        self.reference = signal_to_noise.nan_to_num(0).argmax()
        self.support.fit(torch.cat([x[:, :n], x[:, -n:]], 1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (batch, n_features), 0 where not observed, and masks (batch, n_masks): which
        bands are observed, and which detected."""
        x = self._standardised(batch).nan_to_num(0.0).clamp(-6, 6)
        return x, torch.cat([batch["flux"].isfinite(), batch["detected"]], 1)

    def reference_magnitude(self, batch: Batch) -> Tensor:
        """Asinh magnitude (batch,), AB, in the band of the highest signal to noise in training."""
        return self._features(batch).index_select(1, self.reference[None])[:, 0]

    def quality(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Out-of-distribution score (`Support`), and the bits of `FLAGS` that inputs decide, int16;
        each (batch,)."""
        n = len(self.bands)
        x = self._standardised(batch)
        ood = self.support(torch.cat([x[:, :n], x[:, -n:]], 1))
        masks = {
            "missing_band": ~batch["flux"].isfinite().all(1),
            "not_detected": ~(batch["detected"] > 0).any(1),
            "unusual": ood > UNUSUAL_OOD,
            "large_error": (x[:, -n:].nan_to_num(-torch.inf) > self.error_limit).any(1),
            "faint": self.reference_magnitude(batch) > self.faintest(),
        }
        flags = torch.zeros(len(x), dtype=torch.short, device=x.device)
        for name, mask in masks.items():
            flags += BIT[name] * mask.short()
        return ood, flags

    def faintest(self) -> Tensor:
        """The magnitude in the reference band that 99% of the training objects do not exceed."""
        return self.mag_range[1].index_select(0, self.reference[None])[0]

    def describe(self) -> str:
        """Magnitude range of the training objects in each band, for the model card."""
        ranges = zip(self.bands, self.mag_range.T.tolist(), strict=True)
        return "AB magnitudes (1% to 99% of the training objects): " + ", ".join(
            f"{band} {low:.1f} to {high:.1f}" for band, (low, high) in ranges
        )

    def _features(self, batch: Batch) -> Tensor:
        mag = luptitude(batch["flux"], self.softening)
        error = luptitude_err(batch["flux"], batch["flux_err"], self.softening)
        return torch.cat([mag, mag[:, :-1] - mag[:, 1:], error.log()], 1)

    def _standardised(self, batch: Batch) -> Tensor:
        return (self._features(batch) - self.mean) / self.std
