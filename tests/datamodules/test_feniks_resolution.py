"""The resolution of a spectrum: of its grating, its pixels, or as it is stated."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from orrery.datamodules.feniks.spectrum_columns import read_settings
from orrery.datamodules.feniks.spectrum_files import read_spectra
from orrery.datamodules.feniks.spectrum_resolution import with_pixels

N = 200
WAVE = np.linspace(19_500.0, 23_800.0, N)  # Angstrom
FLUX = 2 + np.sin(np.arange(N) / 9)  # uJy


def read_file(folder, grating=None, said=None, resolution=None):
    columns = {"wavelength": WAVE * u.AA, "flux": FLUX * u.uJy, "error": 0.1 * np.ones(N) * u.uJy}
    hdu = fits.table_to_hdu(Table(columns))
    if grating:
        hdu.header["GRATING"] = grating
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(folder / "a.fits", overwrite=True)
    settings = read_settings({"air": False}, resolution=resolution)
    said = [] if said is None else said
    (spectrum,) = read_spectra(folder / "a.fits", settings, said.append).values()
    return spectrum


@pytest.mark.parametrize(
    "grating, given, expected, words",
    [("G235M", None, 1000, ""), ("G235H", None, 2700, ""), ("G235M", 1300.0, 1300, ""),
     ("PRISM", 70.0, 70, ""), (None, None, 3600, "nothing states the resolution")],
)  # fmt: skip
def test_a_resolution_is_that_stated_or_of_the_grating_or_is_said(
    tmp_path, grating, given, expected, words
):
    said = []
    spectrum = read_file(tmp_path, grating, said, given)
    step = WAVE[1] - WAVE[0]
    assert spectrum.resolution == pytest.approx(with_pixels(expected, 21_650, step), rel=1e-3)
    assert [text.startswith(words) for text in said] == [True] * bool(words)


def test_a_spectrum_of_a_prism_is_refused_without_its_resolution(tmp_path):
    with pytest.raises(ValueError, match=r"a\.fits: a spectrum of a prism, .* data\.resolution=70"):
        read_file(tmp_path, "PRISM")


def test_wide_pixels_lower_the_resolution(tmp_path):
    step = WAVE[1] - WAVE[0]
    spectrum = read_file(tmp_path, resolution=3600.0)
    assert spectrum.resolution == pytest.approx(with_pixels(3600, 21_650, step), rel=1e-3)
    assert with_pixels(3600, 21_600, 1e-3) == pytest.approx(3600)
    fwhm = np.hypot(6, 2.3548 * 24 / 12**0.5)  # of the spectrograph and of pixels of 24 Angstrom
    assert with_pixels(3600, 21_600, 24) == pytest.approx(21_600 / fwhm, rel=1e-4)
