"""Spectra at any wavelengths from coefficients, with their errors, as products of matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from orrery.physics.gaia_xp import xp

FLUX_UNIT = 1e-18  # W m^-2 nm^-1, of the matrices: float32 would underflow
STARS_AT_ONCE = 256  # their covariances fit the cache
MIN_SINGULAR_VALUE = 1e-7  # of the largest one, in the errors' matrix


class Spectra(nn.Module):
    """Flux of coefficients (batch, n) of the bands of DR3, end to end, at ``wavelengths`` (k,), nm.

    The variance at a wavelength is a linear function of a band's covariances; products of two
    functions of the pseudo-wavelength span few dimensions, so that correlated errors take little
    longer than uncorrelated ones.
    """

    def __init__(self, wavelengths: Sequence[float] | np.ndarray) -> None:
        super().__init__()
        wavelengths = np.asarray(wavelengths, float)
        matrices = [xp.sampling(b, wavelengths) * xp.overlap(b, wavelengths) for b in xp.BANDS]
        self.matrix: Tensor
        self.squares: Tensor
        self.sizes = [len(matrix) for matrix in matrices]
        matrix_of_bands = np.concatenate(matrices) / FLUX_UNIT
        self.register_buffer("matrix", torch.tensor(matrix_of_bands).float(), persistent=False)
        self.register_buffer("squares", torch.tensor(matrix_of_bands**2).float(), persistent=False)
        for band, matrix in zip(xp.BANDS, matrices, strict=True):
            for name, values in _covariance_matrices(matrix / FLUX_UNIT).items():
                self.register_buffer(f"{band}_{name}", values, persistent=False)

    def flux(self, coefficients: Tensor) -> Tensor:
        """(batch, k), W m^-2 nm^-1."""
        return (coefficients @ self.matrix) * FLUX_UNIT

    def error(self, errors: Tensor, correlations: Mapping[str, Tensor] | None = None) -> Tensor:
        """Standard deviation (batch, k) of the flux; ``errors`` (batch, n) of the coefficients.

        ``correlations``: by band, packed as the archive does, (batch, n (n - 1) / 2).
        """
        if correlations is None:
            return (errors.square() @ self.squares).clamp_min(0).sqrt() * FLUX_UNIT
        parts = []
        for i in range(0, len(errors), STARS_AT_ONCE):
            part = slice(i, i + STARS_AT_ONCE)
            bands = zip(xp.BANDS, errors[part].split(self.sizes, 1), strict=True)
            bp, rp = (self._variance(b, e, correlations[b][part]) for b, e in bands)
            parts.append(bp + rp)
        return torch.cat(parts).clamp_min(0).sqrt() * FLUX_UNIT

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

    def model_error(self, factor: Tensor, scatter: Tensor) -> Tensor:
        """Standard deviation (batch, k) of coefficients with the covariance F F^T + diag(s^2).

        ``factor`` F (batch, n, rank), ``scatter`` s (batch, n).
        """
        by_factor = torch.einsum("bnr,nk->brk", factor, self.matrix).square().sum(1)
        return (by_factor + scatter.square() @ self.squares).sqrt() * FLUX_UNIT


def _covariance_matrices(matrix: np.ndarray) -> dict[str, Tensor]:
    """Matrices from variances, then covariances in the archive's order, to the variance of flux.

    Their product is a singular value decomposition in two factors, ``into`` (numbers, rank) and
    ``out`` (rank, k), for which wavelengths are scaled to equal size: errors at the ends of a band
    are far greater.
    """
    unit = (matrix**2).sum(0)
    unit[unit == 0] = 1
    matrix = matrix / np.sqrt(unit)
    n = len(matrix)
    columns, rows = np.tril_indices(n, -1)
    products = np.concatenate([matrix**2, 2 * matrix[rows] * matrix[columns]])
    # singular vectors of the small side: (k, k) in place of (1540, k)
    size, v = np.linalg.eigh(products.T @ products)
    kept = size > (MIN_SINGULAR_VALUE**2) * size[-1]
    return {
        "rows": torch.tensor(rows),
        "columns": torch.tensor(columns),
        "into": torch.tensor(products @ v[:, kept]).float(),
        "out": torch.tensor(v[:, kept].T * unit).float(),
    }
