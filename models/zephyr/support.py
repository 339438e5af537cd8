"""How far an object lies from the training objects."""

import torch
from torch import Tensor, nn

LEVELS = 1001


class Support(nn.Module):
    """Share of the training objects that lie nearer to their centre than this one, in 0..1.

    The distance is Mahalanobis's over the features that are observed (the others take the values
    that make it least), per observed feature. Above 0.999 an object is unlike nearly all of the
    training set.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.precision: Tensor
        self.levels: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("precision", torch.eye(n_features))
        self.register_buffer("levels", torch.zeros(LEVELS))

    def fit(self, x: Tensor) -> None:
        """``x`` (n, features), NaN where not observed."""
        self.mean = x.nanmean(0).nan_to_num(0.0)
        centred = (x - self.mean).nan_to_num(0.0)
        covariance = centred.T @ centred / len(x)
        floor = 1e-3 * covariance.diagonal().mean().clamp_min(1e-6)
        self.precision = torch.linalg.inv(covariance + floor * torch.eye(len(covariance)))
        share = torch.linspace(0, 1, LEVELS, device=x.device)
        self.levels = torch.quantile(self.distance(x)[:1_000_000], share)

    def distance(self, x: Tensor) -> Tensor:
        """Squared distance per observed feature, (n,)."""
        seen = x.isfinite()
        r = (x - self.mean).nan_to_num(0.0)
        pull = r @ self.precision
        squared = (pull * r).sum(-1)
        # the least over unseen features: minus b A^-1 b, with A the block of the unseen ones
        unseen = (~seen).float()
        block = self.precision * unseen[:, :, None] * unseen[:, None, :] + torch.diag_embed(
            seen.float()
        )
        b = (pull * unseen)[..., None]
        squared = squared - (b * torch.linalg.solve(block, b)).sum((-1, -2))
        return squared / seen.sum(-1).clamp_min(1)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.searchsorted(self.levels, self.distance(x).contiguous()) / LEVELS
        return torch.where(x.isfinite().any(1), share, 1.0)
