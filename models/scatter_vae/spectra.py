"""Spectra at any wavelengths from coefficients, with their errors, as products of matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from orrery.physics.gaia_xp import xp

UNIT = 1e-18  # W m^-2 nm^-1: what the matrices count in, lest float32 underflow
AT_ONCE = 256  # stars, whose covariances fit the cache
EXACT = 1e-7  # of the largest singular value: what is left out of the errors' matrix


class Spectra(nn.Module):
    """Flux of coefficients (batch, n) of the bands of DR3, end to end, at ``wavelengths`` (k,), nm.

    The variance at a wavelength is a linear function of a band's covariances; products of two
    functions of the pseudo-wavelength span few dimensions, so that all correlations cost little
    more than none.
    """

    def __init__(self, wavelengths: Sequence[float] | np.ndarray) -> None:
        super().__init__()
        wavelengths = np.asarray(wavelengths, float)
        matrices = [xp.sampling(b, wavelengths) * xp.overlap(b, wavelengths) for b in xp.BANDS]
        self.matrix: Tensor
        self.squares: Tensor
        whole = np.concatenate(matrices) / UNIT
        self.register_buffer("matrix", torch.tensor(whole).float(), persistent=False)
        self.register_buffer("squares", torch.tensor(whole**2).float(), persistent=False)
        for band, matrix in zip(xp.BANDS, matrices, strict=True):
            for name, values in _of_covariance(matrix / UNIT).items():
                self.register_buffer(f"{band}_{name}", values, persistent=False)

    def flux(self, coefficients: Tensor) -> Tensor:
        """(batch, k), W m^-2 nm^-1."""
        return (coefficients @ self.matrix) * UNIT

    def error(self, errors: Tensor, correlations: Mapping[str, Tensor] | None = None) -> Tensor:
        """Standard deviation (batch, k) of the flux; ``errors`` (batch, n) of the coefficients.

        ``correlations``: by band, packed as the archive does, (batch, n (n - 1) / 2).
        """
        if correlations is None:
            return (errors.square() @ self.squares).clamp_min(0).sqrt() * UNIT
        parts = []
        for i in range(0, len(errors), AT_ONCE):
            part = slice(i, i + AT_ONCE)
            bands = zip(xp.BANDS, errors[part].split(errors.shape[1] // 2, 1), strict=True)
            of_bands = [self._variance(b, e, correlations[b][part]) for b, e in bands]
            parts.append(of_bands[0] + of_bands[1])
        return torch.cat(parts).clamp_min(0).sqrt() * UNIT

    def _variance(self, band: str, errors: Tensor, packed: Tensor) -> Tensor:
        rows, columns, into, out = (
            getattr(self, f"{band}_{name}") for name in ("rows", "columns", "into", "out")
        )
        n = errors.shape[1]
        covariance = errors.new_empty(len(errors), n + packed.shape[1])
        torch.square(errors, out=covariance[:, :n])
        off = covariance[:, n:]
        torch.mul(errors.index_select(1, rows), errors.index_select(1, columns), out=off)
        off *= packed.float()
        return covariance @ into @ out

    def error_of(self, factor: Tensor, scatter: Tensor) -> Tensor:
        """Standard deviation (batch, k) of coefficients with the covariance F F^T + diag(s^2).

        ``factor`` F (batch, n, rank), ``scatter`` s (batch, n).
        """
        along = torch.einsum("bnr,nk->brk", factor, self.matrix).square().sum(1)
        return (along + scatter.square() @ self.squares).sqrt() * UNIT


def _of_covariance(matrix: np.ndarray) -> dict[str, Tensor]:
    """From variances, then covariances in the archive's order, to the variance of the flux.

    In two steps ``into`` (numbers, rank) and ``out`` (rank, k), of a singular value decomposition,
    for which wavelengths are made alike: errors at the ends of a band are far greater.
    """
    unit = (matrix**2).sum(0)
    unit[unit == 0] = 1
    matrix = matrix / np.sqrt(unit)
    n = len(matrix)
    columns, rows = np.tril_indices(n, -1)
    products = np.concatenate([matrix**2, 2 * matrix[rows] * matrix[columns]])
    # singular vectors of the small side: (k, k) in place of (1540, k)
    size, v = np.linalg.eigh(products.T @ products)
    kept = size > (EXACT**2) * size[-1]
    return {
        "rows": torch.tensor(rows),
        "columns": torch.tensor(columns),
        "into": torch.tensor(products @ v[:, kept]).float(),
        "out": torch.tensor(v[:, kept].T * unit).float(),
    }
