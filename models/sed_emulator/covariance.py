"""The emulator's own error: a covariance of its residuals over bands that depends on the galaxy."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

WIDTH = 64
STEPS = 1500
BATCH = 1024
LEARNING_RATE = 3e-3
HELD_OUT = 0.2  # of the rows, which say when to stop
OUTLIER = 8.0  # errors beyond which a residual no longer counts more
LEAST_ERROR = 1e-4  # mag


class Errors(NamedTuple):
    """Covariance of magnitudes: diag(``variance``) + ``factor`` ``factor``^T, mag^2.

    ``variance``: (n, bands); ``factor``: (n, bands, rank).
    """

    variance: Tensor
    factor: Tensor

    def total(self) -> Tensor:
        """Variance of each band, (n, bands)."""
        return self.variance + self.factor.square().sum(2)

    def colour_variance(self) -> Tensor:
        """Variance of the differences of neighbouring bands, (n, bands - 1)."""
        own = self.variance[:, 1:] + self.variance[:, :-1]
        return own + (self.factor[:, 1:] - self.factor[:, :-1]).square().sum(2)


class ErrorNetwork(nn.Module):
    """Covariance of the emulator's residuals as a function of its inputs (n, k).

    One small perceptron gives the scale per band and the factors of the ``rank`` directions in
    which the errors of bands go together. The published emulators have the scale alone.
    """

    scale: Tensor

    def __init__(self, n_in: int, n_bands: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("scale", torch.ones(n_bands))  # typical residual, mag
        self.body = nn.Sequential(
            nn.Linear(n_in, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU()
        )
        self.out = nn.Linear(WIDTH, n_bands * (1 + rank))
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, inputs: Tensor) -> Errors:
        n_bands = len(self.scale)
        log_scale, factor = self.out(self.body(inputs)).split([n_bands, n_bands * self.rank], 1)
        scale = self.scale * log_scale.clamp(-4, 6).exp()
        variance = 0.5 * scale.square() + LEAST_ERROR**2
        return Errors(variance, scale[:, :, None] * factor.unflatten(1, (n_bands, self.rank)))

    def log_prob(self, inputs: Tensor, residuals: Tensor) -> Tensor:
        """ln density of residuals (n, bands), mag, (n,)."""
        errors = self(inputs)
        return woodbury(residuals, errors.variance, errors.factor)

    @torch.enable_grad()
    def fit(self, inputs: Tensor, residuals: Tensor, seed: int) -> None:
        """Fit to residuals (n, bands), mag, of held-out galaxies with ``inputs`` (n, k)."""
        self.scale.copy_(residuals.abs().quantile(0.68, 0).clamp_min(LEAST_ERROR))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        held = order[: int(HELD_OUT * len(order))]
        rest = order[len(held) :]
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        best, state = math.inf, None
        for step in range(STEPS):
            rows = rest[torch.randint(len(rest), (min(BATCH, len(rest)),), generator=generator)]
            optimizer.zero_grad()
            (-self._bounded(inputs[rows], residuals[rows]).mean()).backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 99:
                with torch.no_grad():
                    value = -float(self._bounded(inputs[held], residuals[held]).mean())
                if value < best:
                    best = value
                    state = {k: v.clone() for k, v in self.state_dict().items()}
        if state is not None:
            self.load_state_dict(state)

    def _bounded(self, inputs: Tensor, residuals: Tensor) -> Tensor:
        """`log_prob` of residuals that are no larger than some of today's errors."""
        limit = OUTLIER * self(inputs).total().sqrt().detach()
        return self.log_prob(inputs, residuals.clamp(-limit, limit))


def cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factors (n, p, p), NaN where a matrix is not positive definite: no fit raises."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed > 0)[..., None, None], torch.nan, root)


def woodbury(residual: Tensor, variance: Tensor, factor: Tensor) -> Tensor:
    """ln density (...) of a residual (..., b) that is normal with a low-rank covariance.

    The covariance is diag(``variance``) + ``factor`` ``factor``^T, (..., b) and (..., b, rank).
    Bands of infinite variance do not count. (Woodbury's identity.)
    """
    weight = 1 / variance
    scaled = factor * weight[..., None]
    inner = torch.eye(factor.shape[-1]).to(factor) + factor.mT @ scaled
    root = cholesky(inner)
    y = (scaled.mT @ residual[..., None]).squeeze(-1)
    solved = torch.linalg.solve_triangular(root, y[..., None], upper=False).squeeze(-1)
    square = (residual.square() * weight).sum(-1) - solved.square().sum(-1)
    counted = torch.isfinite(variance)
    log_det = torch.where(counted, variance, 1.0).log().sum(-1)
    log_det = log_det + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (square + log_det + counted.sum(-1) * math.log(2 * math.pi))
