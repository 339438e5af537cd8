"""Mass of a galaxy's halo from its globular clusters and from its metallicity.

The two estimates rest on different physics and disagree by factors for many galaxies; both are
returned with their scatter, so that it can be seen. Masses are log10 of Msun, of the halo before it
fell in.
"""

import math
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.special import digamma, polygamma

# Burkert & Forbes 2020: log10 N = -9.58 + 0.99 log10 M_vir, scatter .3 dex
CLUSTERS_INTERCEPT, CLUSTERS_SLOPE, CLUSTERS_SCATTER = -9.58, 0.99, 0.3
# Kirby et al. 2013: <[Fe/H]> = -1.69 + 0.30 log10(M* / 1e6 Msun), rms .17 dex
METALLICITY_AT_1E6, METALLICITY_SLOPE, METALLICITY_SCATTER = -1.69, 0.30, 0.17
# Moster, Naab & White 2013, table 1 at z = 0; below 1e11 Msun it is an extrapolation
HALO_MASS, RATIO, LOW_SLOPE, HIGH_SLOPE = 11.590, 0.0351, 1.376, 0.608
# dex of stellar mass in a halo. Assumed: twice the .2 dex of bright galaxies, for scatter grows
# towards dwarfs
STELLAR_SCATTER = 0.4


class LogMass(NamedTuple):
    """log10 of a mass in Msun, with the standard deviation of a normal error (dex)."""

    value: float
    error: float


class HaloMasses(NamedTuple):
    from_clusters: LogMass
    from_metallicity: LogMass
    stellar: LogMass  # from the metallicity, on the way

    @property
    def difference(self) -> float:
        """Clusters minus metallicity, dex."""
        return self.from_clusters.value - self.from_metallicity.value

    @property
    def tension(self) -> float:
        """The difference in its standard deviations."""
        return self.difference / math.hypot(self.from_clusters.error, self.from_metallicity.error)


def halo_from_clusters(n: int) -> LogMass:
    """Halo mass of a galaxy with n globular clusters: scatter, and Poisson noise of the count.

    The expected number given n has the posterior of a Jeffreys prior, Gamma(n + 1/2); n = 0 is a
    weak upper limit.
    """
    if n < 0 or n != int(n):
        raise ValueError(f"the number of globular clusters is {n}; a count from 0 on is expected")
    expected, noise = digamma(n + 0.5) / math.log(10), math.sqrt(polygamma(1, n + 0.5))
    value = (expected - CLUSTERS_INTERCEPT) / CLUSTERS_SLOPE
    error = math.hypot(noise / math.log(10) / CLUSTERS_SLOPE, CLUSTERS_SCATTER)
    return LogMass(float(value), error)


def stellar_from_metallicity(fe_h: float, error: float = 0.0) -> LogMass:
    """Stellar mass of a dwarf galaxy with mean [Fe/H], known within ``error`` (dex)."""
    if not (math.isfinite(fe_h) and error >= 0):
        raise ValueError(f"mean [Fe/H] is {fe_h} +- {error}; a number and an error are expected")
    value = 6.0 + (fe_h - METALLICITY_AT_1E6) / METALLICITY_SLOPE
    return LogMass(value, math.hypot(METALLICITY_SCATTER, error) / METALLICITY_SLOPE)


def stellar_of_halo(log_halo: float) -> float:
    """log10 of the stellar mass of a halo of log10 mass, Moster et al. 2013, equation 2."""
    x = log_halo - HALO_MASS
    return log_halo + math.log10(2 * RATIO / (10 ** (-LOW_SLOPE * x) + 10 ** (HIGH_SLOPE * x)))


def halo_of_stellar(stellar: LogMass) -> LogMass:
    """Halo mass of a stellar mass: the inverse of `stellar_of_halo`, with its scatter."""
    if not 0 < stellar.value < 12:
        raise ValueError(f"log10 of the stellar mass is {stellar.value:.2f}; expected 0 to 12")
    value = float(brentq(lambda x: stellar_of_halo(x) - stellar.value, 4.0, 16.0))
    step = 0.01
    slope = (stellar_of_halo(value + step) - stellar_of_halo(value - step)) / (2 * step)
    return LogMass(value, math.hypot(stellar.error, STELLAR_SCATTER) / slope)


def halo_masses(clusters: int, fe_h: float, fe_h_error: float = 0.0) -> HaloMasses:
    """Both estimates for a galaxy with this number of globular clusters and mean [Fe/H]."""
    stellar = stellar_from_metallicity(fe_h, fe_h_error)
    return HaloMasses(halo_from_clusters(clusters), halo_of_stellar(stellar), stellar)
