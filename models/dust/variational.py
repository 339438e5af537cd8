"""An outer iteration of the variational fit: samples about a mean, then the next mean."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.prior import N_HYPER
from orrery.models.inference import meanfield, mgvi
from orrery.models.inference.matrix_free import LinearOperator

NONLINEAR_INFERENCE = ("geovi", "hmc")  # samples follow the data; others have mirrored pairs
# latents, those of coarse grids first, among which the preconditioner looks for eigenvectors
PRECONDITIONED_LATENTS, PRECONDITIONER_EIGENVECTORS = 2**15, 150
MAX_CG_STEPS = 300  # of conjugate gradients
NONLINEAR_STEPS = 2  # Gauss-Newton steps from a linear sample to a nonlinear one
SAMPLES_AT_ONCE = 8  # that are updated together
SHARES = torch.cat([torch.zeros(1), torch.logspace(-2, 0.5, 200)])  # of `share_within_voxels`


class Linearisation(NamedTuple):
    """The extinctions of stars about a mean, for one kind of ``inference``."""

    inference: str
    model: mgvi.Model
    data: mgvi.Data
    mean: Tensor  # (1, latents)
    preconditioner: LinearOperator
    std: Tensor | None = None  # (1, latents): mean field's; None: latents are correlated

    @property
    def nonlinear(self) -> bool:
        return self.inference in NONLINEAR_INFERENCE

    def residuals(self, noise: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Samples minus the mean: linear ones, (pairs, latents), and all, (2 pairs, latents).

        ``noise`` (pairs, data + latents): unit normal, taken with both signs.
        """
        e1, e2 = noise.split([len(self.data.value), self.mean.shape[1]], 1)
        if self.std is not None:
            linear = self.std * e2
            return linear, torch.cat([linear, -linear])
        problem = self.model, self.data, self.mean
        solve = self._solver(tolerance)
        linear = mgvi.residuals(*problem, e1, e2, solve)
        if not self.nonlinear:
            return linear, torch.cat([linear, -linear])
        free = torch.ones_like(self.mean)
        free[:, -N_HYPER:] = 0
        e1, e2, both = (torch.cat([x, -x]).split(SAMPLES_AT_ONCE) for x in (e1, e2, linear))
        residuals = [
            mgvi.nonlinear_update(*problem, *part, free, NONLINEAR_STEPS, solve)
            for part in zip(e1, e2, both, strict=True)
        ]
        return linear, torch.cat(residuals)

    def newton(self, residuals: Tensor, max_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        """The next mean (1, latents) for given ``residuals``, and its energy, nats."""
        solve = self._solver(tolerance)
        return mgvi.newton(self.model, self.data, self.mean, residuals, max_steps, solve)

    def evidence_bound(self, linear: Tensor, residuals: Tensor) -> float:
        """The ELBO, nats, from the two results of `residuals`."""
        problem = self.model, self.data, self.mean
        if self.std is not None:
            return meanfield.evidence_bound(*problem, self.std, residuals)
        return mgvi.evidence_bound(*problem, linear, residuals if self.nonlinear else None)

    def _solver(self, tolerance: float) -> mgvi.Solver:
        return mgvi.Solver(tolerance, MAX_CG_STEPS, self.preconditioner)


def share_within_voxels(
    misfit: Tensor, variance: Tensor, squares: Tensor, dof: float | None
) -> Tensor:
    """The share s, scalar, for which residuals of a variance of ``variance`` + s^2 ``squares`` are
    most probable; ``misfit``: the mean squares of residuals over samples. All (stars,). ``dof``: of
    Student's distribution; None: normal.
    """
    tried = SHARES.to(variance)
    total = variance + tried[:, None].square() * squares
    square = misfit / total
    if dof is not None:
        square = (dof + 1) * torch.log1p(square / dof)
    return tried[(square + total.log()).sum(1).argmin()]


def preconditioner(model: mgvi.Model, data: mgvi.Data, mean: Tensor) -> LinearOperator:
    """Of the metric, from eigenvectors among hyperparameters and coarse grids."""
    index = torch.arange(mean.shape[1], device=mean.device)
    among = torch.cat([index[:-N_HYPER][:PRECONDITIONED_LATENTS], index[-N_HYPER:]])
    return mgvi.preconditioner(model, data, mean, among, PRECONDITIONER_EIGENVECTORS)
