"""Scores of photometric redshifts by their residuals dz = (z_phot - z_true) / (1 + z_true)."""

import numpy as np

OUTLIER = 0.15  # |dz| beyond which a redshift is an outlier: Hildebrandt et al. (2010)


def nmad(dz: np.ndarray) -> float:
    """1.4826 median|dz - median(dz)|: a normal's standard deviation (Brammer et al. 2008)."""
    return float(1.4826 * np.median(np.abs(dz - np.median(dz))))


def outlier_fraction(dz: np.ndarray) -> float:
    """Fraction of redshifts with |dz| above `OUTLIER`."""
    return float(np.mean(np.abs(dz) > OUTLIER))
