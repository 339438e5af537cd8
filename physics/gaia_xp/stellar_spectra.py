"""An analytic family of stellar spectra, for simulations of BP/RP spectra.

Planck's law under an opacity that mimics, at the resolution of XP spectra (2 to 10 nm), the Balmer
series and jump, the Paschen jump, blanketing by metals towards the blue, the strongest metal lines
and molecular bands, and interstellar extinction. It is not a model atmosphere: strengths were set
by eye to resemble median XP spectra of real stars, and it is not fit for measuring stellar
parameters. It is a smooth manifold of five known dimensions.
"""

from typing import NamedTuple

import numpy as np

HC_PER_K = 1.438776877e7  # h c / k, nm K
RANGES = {"teff": (3500.0, 10_000.0), "logg": (0.5, 5.0), "mh": (-2.5, 0.5), "alpha": (-0.1, 0.5)}


class Line(NamedTuple):
    """An absorption: optical depth = strength x 10^(mh, alpha, g exponents) x its temperatures."""

    centre: float  # nm
    width: float  # nm, standard deviation
    strength: float  # at solar metallicity, log g 4 and ``teff``
    teff: float  # K, where it is strongest
    spread: float  # standard deviation of ln Teff within which it is present
    mh: float = 0.0  # d log10(depth) / d [M/H]
    alpha: float = 0.0  # d log10(depth) / d [alpha/M]
    logg: float = 0.0  # d log10(depth) / d log g


# wavelengths of NIST's Atomic Spectra Database and of Valenti et al. (1998) for TiO's heads
LINES = (
    *(Line(c, 3.6, s, 8800, 0.28, logg=0.06) for c, s in ((656.3, 0.25), (486.1, 0.28))),
    *(Line(c, 3.2, s, 8800, 0.28, logg=0.04) for c, s in ((434.0, 0.28), (410.2, 0.26))),
    *(Line(c, 2.6, s, 8800, 0.28) for c, s in ((397.0, 0.28), (388.9, 0.24), (383.5, 0.22))),
    *(Line(c, 3.0, s, 8800, 0.35) for c, s in ((875.0, 0.05), (901.5, 0.06), (922.9, 0.06))),
    Line(393.4, 3.0, 0.45, 4600, 0.22, mh=0.25, alpha=0.3),  # Ca II K
    Line(396.8, 3.0, 0.35, 4600, 0.22, mh=0.25, alpha=0.3),  # Ca II H
    Line(422.7, 2.6, 0.25, 4000, 0.18, mh=0.3, alpha=0.5, logg=0.1),  # Ca I
    Line(430.5, 4.0, 0.24, 5200, 0.15, mh=0.45, logg=-0.02),  # CH
    Line(388.0, 5.0, 0.25, 4600, 0.16, mh=0.7, logg=-0.12),  # CN
    Line(421.5, 4.0, 0.10, 4600, 0.16, mh=0.8, logg=-0.12),  # CN
    Line(438.3, 3.5, 0.12, 4600, 0.22, mh=0.45),  # Fe I
    Line(517.2, 5.0, 0.16, 4500, 0.18, mh=0.35, alpha=0.6, logg=0.14),  # Mg I b and MgH
    Line(512.0, 8.0, 0.10, 4200, 0.15, mh=0.35, alpha=0.5, logg=0.2),  # MgH
    Line(527.0, 4.0, 0.06, 4500, 0.2, mh=0.5),  # Fe I
    Line(589.2, 3.0, 0.10, 3900, 0.2, mh=0.35, logg=0.12),  # Na I D
    Line(849.8, 3.0, 0.03, 4800, 0.35, mh=0.3, alpha=0.15, logg=-0.06),  # Ca II
    Line(854.2, 3.0, 0.07, 4800, 0.35, mh=0.3, alpha=0.15, logg=-0.06),
    Line(866.2, 3.0, 0.06, 4800, 0.35, mh=0.3, alpha=0.15, logg=-0.06),
    *(  # TiO: to the red of each head
        Line(c, w, s, 3000, 0.14, mh=0.35, alpha=0.4, logg=-0.05)
        for c, w, s in (
            (482, 9, 0.3),
            (502, 9, 1.0),
            (522, 8, 1.2),
            (550, 10, 0.9),
            (594, 12, 1.3),
            (624, 11, 1.3),
            (672, 8, 1.4),
            (713, 8, 1.7),
            (770, 9, 0.3),
            (850, 12, 0.45),
            (938, 13, 0.5),
        )
    ),
)


def flux(
    wavelength: np.ndarray,
    teff: np.ndarray,
    logg: np.ndarray,
    mh: np.ndarray,
    alpha: np.ndarray,
    a_v: np.ndarray,
) -> np.ndarray:
    """Flux per nm, (batch, k), of arbitrary scale, at ``wavelength`` (k,), nm.

    ``teff`` K, ``logg`` of cm s^-2, ``mh`` = [M/H], ``alpha`` = [alpha/M], ``a_v`` mag; (batch,).
    """
    t, g, m, a = (np.asarray(x, float)[:, None] for x in (teff, logg, mh, alpha))
    strength = np.concatenate([_depth(line, t, g, m, a) for line in LINES], 1)
    profile = np.stack(
        [np.exp(-0.5 * ((wavelength - line.centre) / line.width) ** 2) for line in LINES]
    )
    depth = strength @ profile + _continuum(wavelength, t, g, m, a)
    planck = wavelength**-5.0 / np.expm1(HC_PER_K / (wavelength * t))
    extinction = np.asarray(a_v, float)[:, None] * extinction_law(wavelength)
    return planck * np.exp(-depth) * 10 ** (-0.4 * extinction)


def _depth(line: Line, t: np.ndarray, g: np.ndarray, m: np.ndarray, a: np.ndarray) -> np.ndarray:
    power = line.mh * m + line.alpha * a + line.logg * (g - 4)
    return line.strength * 10**power * np.exp(-0.5 * (np.log(t / line.teff) / line.spread) ** 2)


def _continuum(
    wavelength: np.ndarray, t: np.ndarray, g: np.ndarray, m: np.ndarray, a: np.ndarray
) -> np.ndarray:
    """Optical depth of what is broad: jumps, blanketing, and the hotter layers seen between."""
    hydrogen = np.exp(-0.5 * (np.log(t / 9300) / 0.36) ** 2)
    below = 1 / (1 + np.exp((wavelength - 376) / 3.0))  # of the Balmer jump at 364.6 nm
    paschen = 1 / (1 + np.exp((wavelength - 825) / 6.0))
    jumps = hydrogen * (10 ** (0.05 * (g - 4)) * 0.95 * below - 0.10 * paschen)
    metals = 10 ** (0.35 * m + 0.1 * a) * np.exp(-0.5 * (np.log(t / 3900) / 0.27) ** 2)
    cool = 1 / (1 + np.exp((t - 4300) / 350))
    towards_blue = 1 / (1 + np.exp((wavelength - 428) / 20))
    broad = np.exp(-0.5 * ((wavelength - 350) / 110) ** 2)
    blanketing = metals * (0.75 * towards_blue + 0.15 * broad * (1 + 0.03 * (g - 4)))
    redward = 0.7 * cool * ((700 / wavelength) ** 1.2 - 1).clip(-0.5)
    warm = np.exp(-0.5 * (np.log(t / 7800) / 0.42) ** 2)
    hotter = -0.6 * warm * np.exp(-0.5 * ((wavelength - 420) / 85) ** 2)
    return jumps + blanketing + redward + hotter


def extinction_law(wavelength: np.ndarray, r_v: float = 3.1) -> np.ndarray:
    """A(lambda) / A_V of Cardelli, Clayton & Mathis (1989, ApJ 345, 245), eqs. 2 and 3; nm."""
    x = 1e3 / np.asarray(wavelength, float)
    y = x - 1.82
    optical_a = np.polyval([0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1], y)
    optical_b = np.polyval([-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0], y)
    infrared = x < 1.1
    a = np.where(infrared, 0.574 * x**1.61, optical_a)
    b = np.where(infrared, -0.527 * x**1.61, optical_b)
    return a + b / r_v


def draw(n: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of n stars as a magnitude-limited sample has them: dwarfs, giants, extinction."""
    hot = random.random(n) < 0.3
    low, high = np.log(RANGES["teff"])
    teff = np.where(hot, random.uniform(low, high, n), random.normal(np.log(5200), 0.16, n))
    teff = np.exp(teff.clip(low, high))
    giant = (random.random(n) < 0.4) & (teff < 5400)
    logg = np.where(giant, 2.6 + (teff - 4700) / 500, 4.7 - (teff - 3500) / 9000)
    logg = (logg + random.normal(0, np.where(giant, 0.4, 0.15), n)).clip(*RANGES["logg"])
    mh = (-0.1 - random.gumbel(0, 0.3, n)).clip(*RANGES["mh"])
    alpha = 0.06 - 0.2 * mh.clip(-1, 0) + random.normal(0, 0.06, n)
    a_v = random.exponential(0.5, n).clip(0, 4)
    return {
        "teff": teff,
        "logg": logg,
        "mh": mh,
        "alpha": alpha.clip(*RANGES["alpha"]),
        "a_v": a_v,
    }
