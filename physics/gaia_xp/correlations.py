"""Correlations of a spectrum's errors as the Gaia archive packs them.

The matrix R of a band, (n, n), is its strict upper triangle column by column: (0, 1), (0, 2),
(1, 2), (0, 3), ...; (batch, n (n - 1) / 2), float16 or float32. Rounding R to float16 moves a
normal log likelihood by 0.02 nats at a condition number of 1e3, by 0.2 at 1e4, and leaves few
matrices positive definite at 1e5.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

STARS_AT_ONCE = 64  # their matrices fit the cache of a core: 12 kB each at n = 55
MIN_UNIQUENESS = 1e-3  # least variance, of 1, that a low-rank factor leaves to the diagonal


def check_positive_definite(packed: Tensor, n: int) -> None:
    """A ValueError that names the rows of ``packed`` whose R is not positive definite."""
    (info,) = in_tiles(lambda p: (torch.linalg.cholesky_ex(unpack(p, n)).info,), packed)
    if (info > 0).sum() > 0.5 * len(info):
        raise ValueError(
            f"the correlation matrix R of {int((info > 0).sum())} of {len(info)} stars is not "
            f"positive definite: are the correlations ordered by rows? Expected are the columns of "
            f"the upper triangle: (0, 1), (0, 2), (1, 2), (0, 3), ..."
        )
    refuse(info > 0, "the correlation matrix R")


def unpack(packed: Tensor, n: int) -> Tensor:
    """R, (batch, n, n), of the packed triangle; float32, or float64 if that is."""
    if packed.ndim != 2 or packed.shape[1] != n * (n - 1) // 2:
        raise ValueError(
            f"correlations of {n} coefficients should be (batch, {n * (n - 1) // 2}), the strict "
            f"upper triangle column by column; got {tuple(packed.shape)}"
        )
    R = precise(packed).index_select(1, _packed_index(n, packed.device)).view(-1, n, n)
    R.diagonal(dim1=1, dim2=2).fill_(1)
    return R


def low_rank(packed: Tensor, n: int, k: int) -> Tensor:
    """The factor U, (batch, n, k), of R ~ U U^T + diag(1 - sum U^2): principal-factor analysis.

    Three iterations: more lower the divergence from R by less than 1 %, for k up to 10.
    """

    def factor(packed: Tensor) -> tuple[Tensor]:
        R = unpack(packed, n)
        for _ in range(3):
            values, vectors = torch.linalg.eigh(R)
            U = vectors[:, :, n - k :] * values[:, None, n - k :].clamp_min(0).sqrt()
            common = U.square().sum(2, keepdim=True)
            U = U * ((1 - MIN_UNIQUENESS) / common.clamp_min(1 - MIN_UNIQUENESS)).sqrt()
            R.diagonal(dim1=1, dim2=2).copy_(U.square().sum(2))
        return (U,)

    return in_tiles(factor, packed)[0]


def in_tiles(f: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
    """f(*batch) for a function of independent rows; on a CPU in tiles, shared by threads.

    Tiles do not depend on the number of threads, so results are the same to the last bit.
    """

    @torch.no_grad()
    def run(tile: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # here, because a new thread starts with the defaults of grad mode and autocast
        with torch.autocast(tile[0].device.type, enabled=False):
            return f(*tile)

    if batch[0].device.type != "cpu":
        return run(batch)
    tiles = zip(*(array.split(STARS_AT_ONCE) for array in batch), strict=True)
    with _single_threaded() as threads, ThreadPoolExecutor(threads) as pool:
        return tuple(torch.cat(parts) for parts in zip(*pool.map(run, tiles), strict=True))


@contextmanager
def _single_threaded() -> Iterator[int]:
    """Within, each operation takes one thread; yields the number before.

    LAPACK is serial over a batch, but MKL divides each small matrix among threads, most of whose
    time is spent waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@cache
def _packed_index(n: int, device: torch.device) -> Tensor:
    """Index in the packed triangle of each element of the matrix, (n n,); 0 for the diagonal."""
    i = torch.arange(n, device=device)
    low, high = torch.minimum(i, i[:, None]), torch.maximum(i, i[:, None])
    return (high * (high - 1) // 2 + low).fill_diagonal_(0).flatten()


def precise(x: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def refuse(bad: Tensor, matrix: str) -> None:
    """A ``ValueError`` with the rows where the mask ``bad`` is true, if there are any."""
    rows = bad.nonzero()[:, 0].tolist()
    if rows:
        numbers = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise ValueError(
            f"{matrix} of {len(rows)} stars is not positive definite: rows {numbers}; leave them "
            "out, or shrink their correlations"
        )
