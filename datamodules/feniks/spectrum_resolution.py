"""The resolution of a spectrograph, wavelength over FWHM: as it is given, or by the file."""

from collections.abc import Callable, Sequence

import numpy as np
from astropy.io import fits

from orrery.physics.sps.observed import FWHM

# Nominal, of NIRSpec's gratings (Jakobsen et al. 2022, A&A 661, A80)
GRATINGS = {
    f"G{band}{kind}": resolution
    for kind, resolution in (("M", 1000.0), ("H", 2700.0))
    for band in (140, 235, 395)
}
PRISM = "PRISM"
LINE_SPREAD = 3600.0  # of MOSFIRE in K


def grating(headers: Sequence[fits.Header]) -> str | None:
    """The grating by the keyword GRATING of a file's headers, such as G235M; None without it."""
    for header in headers:
        if text := str(header.get("GRATING", "")).strip().upper():
            return text
    return None


def resolution_of(
    name: str | None, given: float | None, path: str, say: Callable[[str], None]
) -> float:
    """``given``, or that of the grating ``name``, or that of MOSFIRE in K, of which it is said.

    The prism's changes tenfold along a spectrum, and is refused unless one is given.
    """
    if given is not None:
        return given
    if name == PRISM:
        raise ValueError(
            f"{path}: a spectrum of a prism, whose resolution changes tenfold from end to end; "
            f"spectra are fitted with one. Take a part in which it changes little, and give its "
            f"resolution, such as data.wavelength_range=[18000,26000] data.resolution=70"
        )
    if name in GRATINGS:
        return GRATINGS[name]
    say(
        f"nothing states the resolution, wavelength over FWHM: {LINE_SPREAD:g} is taken, that of "
        "MOSFIRE in K; data.resolution= states another"
    )
    return LINE_SPREAD


def with_pixels(resolution: float, wavelength: float, width: float) -> float:
    """Wavelength over FWHM, of a spectrograph and of pixels that average over ``width``, Angstrom.

    The variance of a pixel, width^2 / 12, is added to that of the line-spread function.
    """
    fwhm = np.hypot(wavelength / resolution, FWHM * width / np.sqrt(12))
    return float(wavelength / fwhm)
