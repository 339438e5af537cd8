"""The Sun and eleven Kepler stars of asteroseismic age: benchmarks of gyrochronology.

Periods, colours and ages as listed by van Saders et al. (2016, Nature 529, 181) and the stardate
package of R. Angus; colours are (BP - RP)_0 of Gaia DR2, dereddened where A_V is known.
"""

from typing import NamedTuple


class Star(NamedTuple):
    name: str
    period: float  # d
    period_error: float
    colour: float  # (BP - RP)_0, mag
    colour_error: float
    age: float  # Gyr
    age_error: float


SUN = Star("Sun", 25.4, 1.0, 0.82, 0.01, 4.57, 0.02)
STARS = (
    Star("KIC 3427720", 13.9, 2.1, 0.7423, 0.02, 2.23, 0.17),
    Star("KIC 5184732", 19.8, 2.4, 0.8290, 0.02, 4.17, 0.40),
    Star("KIC 6521045", 25.3, 2.8, 0.7756, 0.02, 6.24, 0.37),
    Star("KIC 8006161", 29.8, 3.1, 0.9812, 0.02, 5.04, 0.17),
    Star("KIC 9098294", 19.8, 1.3, 0.7862, 0.02, 7.28, 0.51),
    Star("KIC 9955598", 34.7, 6.3, 0.9584, 0.02, 6.43, 0.47),
    Star("KIC 10963065", 12.4, 1.2, 0.7053, 0.02, 4.36, 0.46),
    Star("KIC 12069424", 23.8, 1.7, 0.8201, 0.02, 7.07, 0.46),
    Star("KIC 6196457", 16.4, 1.2, 0.7634, 0.02, 5.51, 0.71),
    Star("KIC 10454113", 14.6, 1.1, 0.7092, 0.02, 2.03, 0.29),
    Star("KIC 11401755", 17.2, 1.4, 0.6803, 0.02, 5.85, 0.93),
)
