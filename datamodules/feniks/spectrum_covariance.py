"""The covariance of a spectrum's errors, of neighbouring pixels that were resampled together."""

import numpy as np
from astropy import units as u

from orrery.datamodules.feniks.spectrum_columns import SpectrumSettings, read_unit
from orrery.datamodules.feniks.spectrum_formats import Columns

ASYMMETRY = 1e-3  # of the errors' product, that rounding may leave


def covariance_of(
    columns: Columns,
    settings: SpectrumSettings,
    rows: np.ndarray,
    factor: np.ndarray,
    flux_unit: u.UnitBase | None,
    path: str,
) -> tuple[str, np.ndarray] | None:
    """The name of a spectrum's covariance, and its values (m, m) in uJy^2; None if it has none.

    ``rows`` (m,): of its pixels in the order that is wanted; ``factor`` (m,): from the flux's unit
    to uJy. The covariance is in that unit squared.
    """
    name = columns.find("covariance", settings, path)
    if name is None or settings.error_from == "scatter":
        return None
    values = columns.values[name]
    size = len(next(values for values in columns.values.values() if values.ndim == 1))
    if values.shape != (size, size):
        raise ValueError(
            f"{path}: the covariance '{name}' has the shape {values.shape}; expected a row and a "
            f"column for each of the {size} pixels"
        )
    unit = None if "flux" in settings.units else read_unit(columns.units.get(name))
    if unit is not None and flux_unit is not None and unit != flux_unit**2:
        raise ValueError(
            f"{path}: the covariance '{name}' is in '{unit}', and the flux in '{flux_unit}'; "
            f"expected its square: convert one of them"
        )
    chosen = np.asarray(values, float)[np.ix_(rows, rows)]
    return name, chosen * factor[:, None] * factor


def with_good_pixels(covariance: np.ndarray, good: np.ndarray, path: str) -> np.ndarray:
    """(m, m), with unit variances where pixels are not ``good`` (m,).

    Raises ``ValueError`` for what is no covariance.
    """
    both = good[:, None] & good
    found = np.where(both, covariance, np.diag(np.ones(len(good))))
    error = np.sqrt(np.diag(found))
    correlation = found / error[:, None] / error
    if not (np.abs(correlation - correlation.T) < ASYMMETRY).all():  # NaN is none of these
        row, column = np.argwhere(~(np.abs(correlation - correlation.T) < ASYMMETRY))[0]
        raise ValueError(
            f"{path}: the covariance of pixels {row} and {column}, counted from 0, is "
            f"{covariance[row, column]:g} uJy^2, and {covariance[column, row]:g} the other way "
            f"round; expected one number"
        )
    symmetric = 0.5 * (found + found.T)
    smallest = np.linalg.eigvalsh(0.5 * (correlation + correlation.T))[0]
    if smallest <= 0:
        raise ValueError(
            f"{path}: the covariance of its pixels is not positive definite (the smallest "
            f"eigenvalue of the correlations is {smallest:.2g}): it has fewer independent pixels "
            f"than pixels; give one in the pixels of the detector, or errors: remove it, or name "
            f"another by data.spectrum.covariance"
        )
    return symmetric
