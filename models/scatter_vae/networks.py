"""Encoders and decoders of `scatter_vae`: one that adds to PCA, and the published one.

Both take standardised coefficients ``y`` (batch, n), ``error`` of the same shape and units, and
``observed`` (batch, bands), 1 or 0, and have the same methods.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 32  # principal components that the encoder takes beyond those of the linear map
INITIAL_LOG_VARIANCE = -5.0  # of z
INITIAL_SCATTER = -4.0  # softplus of it, in units of the median error
INITIAL_WEIGHTS = 0.01  # of their usual size: the last ones of an MLP that adds to a linear map


class Components(NamedTuple):
    """Principal components of the training set."""

    vectors: Tensor  # (n, n), in columns
    std: Tensor  # of stars along them, (n,)


class ResidualVAE(nn.Module):
    """z = W_e y + MLP(y) and y = W_d z + MLP(z), in principal components of the training set.

    The linear maps begin as those of PCA, the identity on the first ``latent`` standardised
    components. The encoder also takes the mean log error of each band and which bands are observed:
    the less is known of a star, the less z moves.

    Args:
        sizes: coefficients of each band.
        latent: latent numbers.
        width, depth: neurons of a hidden layer, and hidden layers.
    """

    fits_amplitude: ClassVar = True  # of each star, in training and prediction

    def __init__(self, sizes: Sequence[int], latent: int, width: int, depth: int) -> None:
        super().__init__()
        self.sizes, self.n, self.latent = list(sizes), sum(sizes), latent
        self.features = min(self.n, FEATURES)
        self.encoder = _mlp(self.features + 2 * len(self.sizes), width, depth, 2 * latent)
        self.decoder = _mlp(latent, width, depth, self.n)
        self.scatter = _mlp(latent, width // 2, 1, self.n)

    def unit(self, x: Tensor, errors: Tensor) -> Tensor:
        """The unit of each coefficient, (n,): the median error."""
        return errors.median(0).values

    def center(self, x: Tensor, weight: Tensor) -> Tensor:
        """Mean of the coefficients ``x`` (stars, n), by ``weight`` (stars,)."""
        return weight @ x

    def encode(
        self, y: Tensor, error: Tensor, observed: Tensor, components: Components
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, (batch, latent) each."""
        log_error = torch.stack([part.log().mean(1) for part in error.split(self.sizes, 1)], 1)
        u = (y @ components.vectors) / components.std
        features = [u[:, : self.features].clamp(-20, 20), log_error, observed]
        shift, log_variance = self.encoder(torch.cat(features, 1)).float().chunk(2, 1)
        return u[:, : self.latent] + shift, (log_variance + INITIAL_LOG_VARIANCE).clamp(-16, 2)

    def decode(self, z: Tensor, components: Components) -> Tensor:
        """Standardised coefficients (batch, n) without noise."""
        u = F.pad(z, (0, self.n - self.latent)) + self.decoder(z).float()
        return (u * components.std) @ components.vectors.T

    def intrinsic_scatter(self, z: Tensor) -> Tensor:
        """Standard deviation of each coefficient, (batch, n), in its unit."""
        return F.softplus(self.scatter(z).float() + INITIAL_SCATTER)


class PaperVAE(nn.Module):
    """The network of arXiv:2307.06378: 110-90-70-50-30-10, batch norm, GELU, sigmoid scatter.

    Args:
        n: coefficients of a star.
        latent: latent numbers.
        widths: neurons of the encoder's hidden layers; the decoder's are in reverse order.
    """

    fits_amplitude: ClassVar = False

    def __init__(self, n: int, latent: int, widths: Sequence[int] = (90, 70, 50, 30, 10)) -> None:
        super().__init__()
        self.n, self.latent = n, latent
        self.encoder = nn.Sequential(*_normed([n, *widths]))
        self.mean = nn.Linear(widths[-1], latent)
        self.log_variance = nn.Linear(widths[-1], latent)
        up = list(widths[::-1])
        self.decoder = nn.Sequential(nn.Linear(latent, up[0]), *_normed(up), nn.Linear(up[-1], n))
        self.scatter = nn.Sequential(
            nn.Linear(latent, up[0]), *_normed(up), nn.Linear(up[-1], n), nn.Sigmoid()
        )

    def unit(self, x: Tensor, errors: Tensor) -> Tensor:
        """The unit of each coefficient, (n,): its standard deviation over stars."""
        return x.std(0)

    def center(self, x: Tensor, weight: Tensor) -> Tensor:
        """Mean of the coefficients ``x`` (stars, n)."""
        return x.mean(0)

    def encode(
        self, y: Tensor, error: Tensor, observed: Tensor, components: Components
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, (batch, latent) each; of ``y`` alone."""
        h = self.encoder(y)
        return self.mean(h).float(), self.log_variance(h).float()

    def decode(self, z: Tensor, components: Components) -> Tensor:
        """Standardised coefficients (batch, n) without noise."""
        return self.decoder(z).float()

    def intrinsic_scatter(self, z: Tensor) -> Tensor:
        """Standard deviation of each coefficient, (batch, n), in its unit."""
        return self.scatter(z).float()


def _mlp(n_in: int, width: int, depth: int, n_out: int) -> nn.Sequential:
    sizes = [n_in, *[width] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.GELU()]
    last = nn.Linear(sizes[-1], n_out)
    with torch.no_grad():
        last.weight *= INITIAL_WEIGHTS
        last.bias.zero_()
    return nn.Sequential(*layers, last)


def _normed(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.GELU()]
    return layers
