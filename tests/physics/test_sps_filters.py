"""Filters: what files hold, means through them, pivot wavelengths, the Milky Way's dust."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from orrery.physics.galaxies.photometry import EXTINCTION_LSST, EXTINCTION_SDSS
from orrery.physics.sps import filters
from orrery.physics.sps.filters import (
    Filter,
    filter_matrix,
    fitzpatrick,
    galactic_extinction,
    load_filter,
    pivot_wavelength,
)

GRID = torch.arange(np.log(900.0), np.log(6e4), 2e-3, dtype=torch.float64)


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "band.dat") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def mean_by_quadrature(band: Filter, f_nu) -> float:
    x = np.geomspace(band.wavelength[0], band.wavelength[-1], 400_001)
    t = np.interp(x, band.wavelength, band.transmission)
    return float(np.sum(f_nu(x) * t) / np.sum(t))  # of equal steps in ln(lambda)


@pytest.fixture
def eazy(tmp_path, monkeypatch):
    """A collection of two filters where the package ppxf has EAZY's."""
    folder = tmp_path / "ppxf/examples"
    folder.mkdir(parents=True)
    (tmp_path / "ppxf/__init__.py").write_text("raise RuntimeError('it is not to be imported')")
    (folder / "FILTER.RES.txt").write_text(
        "# of the 1st of May\n#\n   3 a/first.dat  lambda_c= 4.0e+03\n1 3.9e+03 0.0\n"
        "2 4.0e+03 1.0\n3 4.1e+03 0.0\n 2 second, 2 rows\n1   5000.0 0.5\n2   5100.0 1.0\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    filters._eazy_curves.cache_clear()
    yield folder
    filters._eazy_curves.cache_clear()


@pytest.mark.parametrize("name", ["lsst_baseline_u", "jwst_f444w", "spitzer_irac_ch1"])
def test_the_mean_through_a_filter_is_that_of_its_photons(name):
    band = load_filter(name)
    matrix = filter_matrix([band], GRID)
    pixels = GRID.exp().numpy()
    for f_nu in (np.ones_like, lambda x: (x / 5e3) ** 1.7, lambda x: 1 + np.sin(x / 900)):
        found = float(torch.from_numpy(f_nu(pixels)) @ matrix[:, 0])
        assert found == pytest.approx(mean_by_quadrature(band, f_nu), rel=1e-4)
    assert float(matrix.sum()) == pytest.approx(1, abs=1e-12)


def test_a_filter_narrower_than_a_pixel_takes_the_pixel_that_it_is_in():
    coarse = torch.arange(np.log(1e3), np.log(1e4), 0.05, dtype=torch.float64)
    inside = float(coarse[20].exp())
    band = load_filter(f"tophat:{inside * 0.995}:{inside * 1.005}")
    matrix = filter_matrix([band], coarse)
    assert float(matrix[20, 0]) == pytest.approx(1, abs=1e-12)
    edge = float((coarse[20] + 0.025).exp())  # two thirds of this one are in the next pixel
    matrix = filter_matrix([load_filter(f"tophat:{edge * 0.99}:{edge * 1.0203}")], coarse)
    assert float(matrix[21, 0]) == pytest.approx(2 / 3, abs=3e-3)


def test_triangles_between_samples_are_integrated_exactly():
    band = Filter("triangle", np.array([4000.0, 5000.0, 6000.0]), np.array([0.0, 1.0, 0.0]))
    low = 5 * np.log(5 / 4) * -0.8 + 1  # integral of (x / 1000 - 4) dlnx from 4000 to 5000
    high = 6 * np.log(6 / 5) - 1
    step = np.log(1.25)
    centres = torch.log(torch.tensor([4000.0, 5000.0], dtype=torch.float64)) + step / 2
    matrix = filter_matrix([band], torch.cat([centres, centres[-1:] + step]))
    assert float(matrix[0, 0]) == pytest.approx(low / (low + high), rel=1e-9)


def test_a_filter_beyond_the_spectra_is_refused():
    with pytest.raises(ValueError, match=r"'wise_w4' lies at .* leave it out"):
        filter_matrix([load_filter("wise_w4")], GRID)
    with pytest.raises(ValueError, match="equally spaced"):
        filter_matrix([load_filter("sdss_g0")], GRID.exp())


@pytest.mark.parametrize(
    ("name", "pivot"),  # of the instruments' documentation, Angstrom
    [("acs_wfc_f814w", 8045), ("wfc3_ir_f160w", 15369), ("jwst_f444w", 44040), ("galex_NUV", 2316)],
)
def test_pivot_wavelengths_are_the_published_ones(name, pivot):
    assert pivot_wavelength(load_filter(name)) == pytest.approx(pivot, rel=0.01)
    assert pivot_wavelength(load_filter("tophat:4000:9000")) == pytest.approx(
        np.sqrt((9000**2 - 4000**2) / 2 / np.log(9 / 4)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("pattern", "table"), [("lsst_baseline_{}", EXTINCTION_LSST), ("sdss_{}0", EXTINCTION_SDSS)]
)
def test_galactic_extinction_is_that_of_schlafly_and_finkbeiner(pattern, table):
    bands = [load_filter(pattern.format(band)) for band in table]
    np.testing.assert_allclose(galactic_extinction(bands), list(table.values()), rtol=0.012)


def test_the_extinction_law_is_continuous_and_has_its_bump_and_its_normalisation():
    at = fitzpatrick(np.array([5470.0, 2175.0, 2699.9, 2700.1]))
    assert at[0] == pytest.approx(3.1, rel=0.03)
    assert at[1] == pytest.approx(3.08 * 3.1, rel=0.01)
    assert at[2] == pytest.approx(at[3], rel=2e-3)
    with pytest.raises(ValueError, match="begins at 850"):
        galactic_extinction([Filter("far", np.array([850.0, 2000.0]), np.ones(2))])


def test_noise_at_the_edges_of_a_measured_curve_is_not_transmission():
    band = load_filter("vista_vircam_Z")  # with noise from 8060 to 35290
    assert band.wavelength[-1] < 9600
    assert (band.transmission >= 0).all()
    assert band.transmission[0] == band.transmission[-1] == 0


def test_zero_edges_are_trimmed_to_one_zero(file):
    band = load_filter(file("1000 0\n2000 0\n3000 0\n3100 .5\n3200 .4\n3300 0\n4000 0\n"))
    assert band.wavelength.tolist() == [3000, 3100, 3200, 3300]


def test_an_unknown_filter_has_near_matches_and_their_count():
    with pytest.raises(ValueError, match=r"'lsst_u' is neither one of the 2\d\d .*lsst_baseline_u"):
        load_filter("lsst_u")
    with pytest.raises(ValueError, match=r"similar: .*subaru_suprimecam_ia427"):
        load_filter("Subaru_suprimecam_IA428")


def test_without_astro_sedpy_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    filters._collection.cache_clear()
    try:
        with pytest.raises(ValueError, match="pip install astro-sedpy"):
            load_filter("sdss_g0")
    finally:
        filters._collection.cache_clear()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (".30 0\n.35 1\n.40 0\n", "nm or micron; expected wavelengths in Angstrom"),
        ("300 0\n350 1\n400 0\n", "nm or micron"),
        ("7e14 0\n8e14 1\n9e14 0\n", "looks like a frequency"),
        ("5000 0\n4000 1\n3000 0\n", "line 2: the wavelength 4000 follows 5000"),
        ("3000 0\n3000 1\n3100 0\n", "line 2: the wavelength 3000 follows 3000"),
        ("# a curve\n3000 0\n3500 1\n4000 -.5\n", r"line 4: the transmission -0.5 is negative"),
        ("3000 1\n", "has 1 rows"),
        ("3000 0\n4000 0\n", "no transmission above 0"),
        ("", "has 0 rows"),
        ("wavelength transmission\n3000 1\n4000 1\n", r"line 1: .*'#' before other lines"),
        ("1 3000 0\n2 3500 1\n3 4000 0\n", "3 columns.*counts the rows"),
        ("3000 0\n3500 nan\n4000 0\n", "line 2: .*no wavelength and transmission"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(file, text, match):
    with pytest.raises(ValueError, match=match):
        load_filter(file(text))


@pytest.mark.parametrize("text", ["tophat:3000", "tophat:a:b", "tophat:4000:3000", "tophat:2:3"])
def test_a_tophat_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"expected (tophat:<from>|wavelengths in Angstrom)"):
        load_filter(text)


def test_a_file_with_commas_is_read(file):
    assert load_filter(file("3000, 0\n3500, 1\n4000, 0\n")).wavelength.tolist() == [
        3000,
        3500,
        4000,
    ]


def test_filters_of_eazy_are_taken_by_their_number(eazy):
    first, second = load_filter("eazy:1"), load_filter("eazy:2")
    assert first.wavelength.tolist() == [3900, 4000, 4100]
    assert second.wavelength.tolist() == [5000, 5100] and second.transmission.tolist() == [0.5, 1]
    for wrong in ("eazy:0", "eazy:3", "eazy:u", "eazy:"):
        with pytest.raises(ValueError, match=rf"'{wrong}': expected eazy:<number>, .* 1 to 2 "):
            load_filter(wrong)


def test_without_eazys_filters_it_is_said_what_to_install(eazy):
    (eazy / "FILTER.RES.txt").unlink()
    with pytest.raises(ValueError, match=r"FILTER\.RES.* is not installed: pip install ppxf"):
        load_filter("eazy:1")
