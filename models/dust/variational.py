"""An outer iteration of the variational fit: what is held, samples about a mean, the next mean."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.prior import HYPER
from orrery.models.inference import meanfield, mgvi

BENT = ("curved", "hmc")  # guides whose samples are bent; others have mirrored pairs
COARSE, STIFF = 2**15, 150  # latents, of coarse grids first, and directions that they make up
MOST = 300  # steps of conjugate gradients
BENDS = 2  # steps by which a sample is bent
TOGETHER = 8  # samples that are bent at once


class Here(NamedTuple):
    """The extinctions of stars about a mean, as one of `models.dust.GUIDES` sees them."""

    guide: str
    model: mgvi.Model
    data: mgvi.Data
    mean: Tensor  # (1, latents)
    inverse: mgvi.Product  # about that of the metric
    std: Tensor | None = None  # (1, latents): `mgvi.deviations`, if latents are independent

    @property
    def bends(self) -> bool:
        return self.guide in BENT

    def residuals(self, noise: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """From the mean: straight ones, (pairs, latents), and those of samples of both signs.

        ``noise`` (pairs, data + latents): unit normal.
        """
        e1, e2 = noise.split([len(self.data.value), self.mean.shape[1]], 1)
        if self.std is not None:
            half = self.std * e2
            return half, torch.cat([half, -half])
        about = self.model, self.data, self.mean
        solve = self._solver(tolerance)
        half = mgvi.residuals(*about, e1, e2, solve)
        e1, e2, both = (torch.cat([x, -x]).split(TOGETHER) for x in (e1, e2, half))
        if not self.bends:
            return half, torch.cat(both)
        free = torch.ones_like(self.mean)
        free[:, -HYPER:] = 0
        parts = zip(e1, e2, both, strict=True)
        return half, torch.cat([mgvi.bend(*about, *part, free, BENDS, solve) for part in parts])

    def newton(self, both: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        """The next mean, for samples ``both`` from this one, and the energy there."""
        solve = self._solver(tolerance)
        return mgvi.newton(self.model, self.data, self.mean, both, steps, solve)

    def evidence_bound(self, half: Tensor, both: Tensor) -> float:
        """Of `residuals`."""
        about = self.model, self.data, self.mean
        if self.std is not None:
            return meanfield.evidence_bound(*about, self.std, both)
        return mgvi.evidence_bound(*about, half, both if self.bends else None)

    def _solver(self, tolerance: float) -> mgvi.Solver:
        return mgvi.Solver(tolerance, MOST, self.inverse)


def inverse(model: mgvi.Model, data: mgvi.Data, mean: Tensor) -> mgvi.Product:
    """About that of the metric, which directions of hyperparameters and coarse grids make up."""
    place = torch.arange(mean.shape[1], device=mean.device)
    among = torch.cat([place[:-HYPER][:COARSE], place[-HYPER:]])
    return mgvi.inverse(model, data, mean, among, STIFF)
