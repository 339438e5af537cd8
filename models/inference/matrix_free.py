"""Leading eigenvectors and the determinant of a matrix that is known by its products only."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERSAMPLING = 20  # vectors beyond those that are asked for
VECTORS_AT_ONCE = 16
LANCZOS_PROBES, LANCZOS_STEPS = 16, 40  # random vectors, and products of each
# of the eigenvalues, the largest, that enter a determinant exactly: a share, and so many at most
EXACT_SHARE, MAX_EXACT = 0.05, 500
MAX_DENSE = 256  # rows of a matrix whose determinant is taken directly

LinearOperator = Callable[[Tensor], Tensor]  # (vectors, n) to the same


def leading_eigenvectors(
    product: LinearOperator, n: int, k: int, like: Tensor, seed: int = 0, powers: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, falling, and their vectors (n, k), of a semi-definite matrix.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011) of so many ``powers``; with none
    they are approximate. ``product`` maps (vectors, n) to the same.
    """

    def products(v: Tensor) -> Tensor:
        """Of the columns of v."""
        return torch.cat([product(part) for part in v.T.split(VECTORS_AT_ONCE)]).T

    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, min(n, k + OVERSAMPLING), generator=generator).to(like)
    for _ in range(1 + powers):
        v = torch.linalg.qr(products(v)).Q
    small = v.T @ products(v)
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    return values.flip(0)[:k].clamp_min(0), (v @ vectors.flip(1))[:, :k]


def log_determinant(product: LinearOperator, n: int, like: Tensor, seed: int = 0) -> float:
    """ln det of a positive definite matrix, (n, n), of its leading eigenvalues and an estimate.

    The others are estimated by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017), whose
    error, of a mean over random vectors, is at most (2 / LANCZOS_PROBES)^(1/2) times the Frobenius
    norm of the logarithm.
    """
    if n <= MAX_DENSE:
        matrix = product(torch.eye(n, dtype=like.dtype, device=like.device))
        return float(torch.logdet(matrix.double()))
    leaders, vectors = leading_eigenvectors(
        product, n, min(round(EXACT_SHARE * n), MAX_EXACT), like, seed
    )

    def complement(v: Tensor) -> Tensor:
        return v - (v @ vectors) @ vectors.T

    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (LANCZOS_PROBES, n), generator=generator)
    probes = complement((2 * signs - 1).to(like))
    size = probes.norm(dim=1, keepdim=True)
    basis, diagonals, off_diagonals = [probes / size], [], []
    for _ in range(LANCZOS_STEPS):
        v = complement(product(basis[-1]))
        diagonals.append((v * basis[-1]).sum(1))
        for _ in range(2):  # against all before: rounding would bring them back
            for old in basis:
                v = v - (v * old).sum(1, keepdim=True) * old
        norm = v.norm(dim=1)
        off_diagonals.append(norm)
        basis.append(v / norm[:, None].clamp_min(1e-30))
    diagonal = torch.stack(diagonals, 1).double()
    off_diagonal = torch.stack(off_diagonals[:-1], 1).double()
    tridiagonal = diagonal.diag_embed() + off_diagonal.diag_embed(1) + off_diagonal.diag_embed(-1)
    values, modes = torch.linalg.eigh(tridiagonal)
    log = (modes[:, 0].square() * values.clamp_min(1e-30).log()).sum(1)
    return float(leaders.double().log().sum() + (size[:, 0].double().square() * log).mean())
