"""The leading eigenvectors of a matrix that is known by its products."""

from collections.abc import Callable

import torch
from torch import Tensor

MORE = 20  # vectors beyond those that are asked for
AT_ONCE = 16


def leading(
    product: Callable[[Tensor], Tensor], n: int, k: int, like: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, falling, and their vectors (n, k), of a semi-definite matrix.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011), one power. ``product`` maps
    (vectors, n) to the same.
    """

    def all_of(v: Tensor) -> Tensor:
        """The products of columns."""
        return torch.cat([product(part) for part in v.T.split(AT_ONCE)]).T

    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, min(n, k + MORE), generator=generator).to(like)
    for _ in range(2):
        v = torch.linalg.qr(all_of(v)).Q
    small = v.T @ all_of(v)
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    return values.flip(0)[:k].clamp_min(0), (v @ vectors.flip(1))[:, :k]
