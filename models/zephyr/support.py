"""Out-of-distribution score: how far an object lies from the training objects."""

import torch
from torch import Tensor, nn

N_QUANTILES = 1001  # of the training distances, that are stored


class Support(nn.Module):
    """Fraction of the training objects that are nearer to their mean than this object, 0 to 1.

    The distance is Mahalanobis's per observed feature; features that are not observed take the
    values that make it least. A fraction above 0.999 marks an object unlike nearly all of the
    training set.

    In: features (batch, n_features), NaN where not observed. Out: the fraction (batch,), 1 where
    nothing is observed.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.precision: Tensor
        self.levels: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("precision", torch.eye(n_features))
        self.register_buffer("levels", torch.zeros(N_QUANTILES))  # quantiles of the distance

    def fit(self, features: Tensor) -> None:
        """Take mean, covariance and distances from training ``features`` (n, n_features)."""
        self.mean = features.nanmean(0).nan_to_num(0.0)
        centred = (features - self.mean).nan_to_num(0.0)
        covariance = centred.T @ centred / len(features)
        ridge = 1e-3 * covariance.diagonal().mean().clamp_min(1e-6)
        self.precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)))
        probabilities = torch.linspace(0, 1, N_QUANTILES, device=features.device)
        self.levels = torch.quantile(self.distance(features)[:1_000_000], probabilities)

    def distance(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distance per observed feature, (n,)."""
        observed = features.isfinite()
        residual = (features - self.mean).nan_to_num(0.0)
        gradient = residual @ self.precision
        squared = (gradient * residual).sum(-1)
        # minimised over the missing features: minus b A^-1 b, A the block of the missing ones
        missing = (~observed).float()
        block = self.precision * missing[:, :, None] * missing[:, None, :] + torch.diag_embed(
            observed.float()
        )
        b = (gradient * missing)[..., None]
        squared = squared - (b * torch.linalg.solve(block, b)).sum((-1, -2))
        return squared / observed.sum(-1).clamp_min(1)

    def forward(self, features: Tensor) -> Tensor:
        rank = torch.searchsorted(self.levels, self.distance(features).contiguous())
        return torch.where(features.isfinite().any(1), rank / N_QUANTILES, 1.0)
