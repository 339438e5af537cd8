"""From a star's coefficients to latent numbers and back: our recipe, and the published one."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 32  # principal components that the encoder looks at beyond the linear map
SURE = -5.0  # ln variance of z, before anything is learned
WEAK = -4.0  # softplus of it is the scatter then, in units of the median error
FAINT = 0.01  # of their usual size: the last weights of an MLP that adds to a linear map


class Recipe(nn.Module):
    """z = W_e x + MLP(x) and x = W_d z + MLP(z), in principal components of the training set.

    ``u`` (batch, n): the components, standardised; the linear maps begin as those of PCA and are
    the identity on the first ``latent`` components. Errors and missing bands are told to the
    encoder as ``context`` (batch, n_context), for the less is known of a star, the less z moves.
    """

    def __init__(self, n: int, latent: int, n_context: int, width: int, depth: int) -> None:
        super().__init__()
        self.n, self.latent = n, latent
        self.seen = min(n, FEATURES)
        self.encoder = _mlp(self.seen + n_context, width, depth, 2 * latent)
        self.decoder = _mlp(latent, width, depth, n)
        self.scatter = _mlp(latent, width // 2, 1, n)

    def encode(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, (batch, latent) each."""
        h = self.encoder(torch.cat([u[:, : self.seen].clamp(-20, 20), context], 1))
        shift, log_variance = h.float().chunk(2, 1)
        return u[:, : self.latent] + shift, (log_variance + SURE).clamp(-16, 2)

    def decode(self, z: Tensor) -> Tensor:
        """The standardised components (batch, n) of a star without noise."""
        return F.pad(z, (0, self.n - self.latent)) + self.decoder(z).float()

    def spread(self, z: Tensor) -> Tensor:
        """Intrinsic scatter (batch, n), in units of the median error of each coefficient."""
        return F.softplus(self.scatter(z).float() + WEAK)


class Published(nn.Module):
    """The network of arXiv:2307.06378: 110-90-70-50-30-10, batch norm, GELU, sigmoid scatter.

    ``x`` (batch, n): coefficients minus their mean, over their standard deviation.
    """

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

    def encode(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.mean(h).float(), self.log_variance(h).float()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).float()

    def spread(self, z: Tensor) -> Tensor:
        """Intrinsic scatter (batch, n), in units of each coefficient's standard deviation."""
        return self.scatter(z).float()


def _mlp(n_in: int, width: int, depth: int, n_out: int) -> nn.Sequential:
    sizes = [n_in, *[width] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.GELU()]
    last = nn.Linear(sizes[-1], n_out)
    with torch.no_grad():
        last.weight *= FAINT
        last.bias.zero_()
    return nn.Sequential(*layers, last)


def _normed(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.GELU()]
    return layers
