"""What its products tell of a matrix: its leading eigenvectors, its determinant."""

from collections.abc import Callable

import torch
from torch import Tensor

MORE = 20  # vectors beyond those that are asked for
AT_ONCE = 16  # vectors
PROBES, STEPS = 16, 40  # random vectors, and products of each
COUNTED, AT_MOST = 0.05, 500  # share of the eigenvalues, the largest, that are counted one by one
SMALL = 256  # rows of a matrix that is simply written out

Product = Callable[[Tensor], Tensor]


def leading(
    product: Product, n: int, k: int, like: Tensor, seed: int = 0, powers: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, falling, and their vectors (n, k), of a semi-definite matrix.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011) of so many ``powers``; with none
    directions are rough. ``product`` maps (vectors, n) to the same.
    """

    def all_of(v: Tensor) -> Tensor:
        """The products of columns."""
        return torch.cat([product(part) for part in v.T.split(AT_ONCE)]).T

    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, min(n, k + MORE), generator=generator).to(like)
    for _ in range(1 + powers):
        v = torch.linalg.qr(all_of(v)).Q
    small = v.T @ all_of(v)
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    return values.flip(0)[:k].clamp_min(0), (v @ vectors.flip(1))[:, :k]


def log_determinant(product: Product, n: int, like: Tensor, seed: int = 0) -> float:
    """ln det of a positive definite matrix, (n, n): of its leading eigenvalues, and of the rest.

    The rest by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017), whose error, of a mean over
    random vectors, is (2 / PROBES)^(1/2) times the Frobenius norm of its logarithm, or less.
    """
    if n <= SMALL:
        whole = product(torch.eye(n, dtype=like.dtype, device=like.device))
        return float(torch.logdet(whole.double()))
    leaders, vectors = leading(product, n, min(round(COUNTED * n), AT_MOST), like, seed)

    def rest(v: Tensor) -> Tensor:
        return v - (v @ vectors) @ vectors.T

    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (PROBES, n), generator=generator)
    probes = rest((2 * signs - 1).to(like))
    size = probes.norm(dim=1, keepdim=True)
    basis, along, beside = [probes / size], [], []
    for _ in range(STEPS):
        v = rest(product(basis[-1]))
        along.append((v * basis[-1]).sum(1))
        for _ in range(2):  # against all before: rounding would bring them back
            for old in basis:
                v = v - (v * old).sum(1, keepdim=True) * old
        norm = v.norm(dim=1)
        beside.append(norm)
        basis.append(v / norm[:, None].clamp_min(1e-30))
    diagonal, off = torch.stack(along, 1).double(), torch.stack(beside[:-1], 1).double()
    small = diagonal.diag_embed() + off.diag_embed(1) + off.diag_embed(-1)
    values, modes = torch.linalg.eigh(small)
    log = (modes[:, 0].square() * values.clamp_min(1e-30).log()).sum(1)
    return float(leaders.double().log().sum() + (size[:, 0].double().square() * log).mean())
