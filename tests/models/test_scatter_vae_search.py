"""Search by example with scatter_vae: the most similar stars, and outliers with their reasons."""

import numpy as np
import pytest
from astropy.table import Table

from orrery import load
from orrery.physics.gaia_xp import xp, xp_mock
from orrery.physics.gaia_xp.xp_noise import unpack
from orrery.tables import Writer

HALPHA = 656.3  # nm


@pytest.fixture(scope="module")
def model():
    return load("scatter_vae")


@pytest.fixture
def catalogue(stars):
    return Table({name: np.array(values[:120]) for name, values in stars.items()})


def noisier(table, row, factor, seed=0):
    """A row of a table with ``factor`` times its errors, as noise and as errors."""
    random = np.random.default_rng(seed)
    twin = table[row : row + 1].copy()
    for band in xp.BANDS:
        error = np.asarray(twin[f"{band}_coefficient_errors"][0])
        packed = np.asarray(twin[f"{band}_coefficient_correlations"], float)
        root = np.linalg.cholesky(unpack(packed, len(error))[0])
        added = np.sqrt(factor**2 - 1) * error * (root @ random.normal(size=len(error)))
        twin[f"{band}_coefficients"][0] += added
        twin[f"{band}_coefficient_errors"][0] *= factor
    return twin


def test_a_spectrum_finds_itself_then_its_noisy_twin(model, catalogue):
    bright = int(np.argmax(catalogue["phot_g_mean_flux"]))
    twin = noisier(catalogue, bright, 3.0)
    for name in catalogue.colnames:
        catalogue[name][3] = twin[name][0]  # in the place of another star
    found = model.similar(catalogue[bright], catalogue, n=4, keep=["source_id"])
    assert list(found["row"][:2]) == [bright, 3]
    assert found["source_id"][0] == catalogue["source_id"][bright]
    assert found["p_same"][0] == pytest.approx(1) and found["p_same"][1] > 1e-3
    assert found["share"][1] == 2 / 120 and (np.diff(found["distance"]) > 0).all()


def test_a_very_noisy_twin_is_before_stars_that_are_known_to_be_unlike(model, catalogue):
    blurred = noisier(catalogue, 5, 30)
    for name in catalogue.colnames:
        catalogue[name][7] = blurred[name][0]
    found = model.similar(catalogue[5:6], catalogue, n=120)
    place = list(found["row"]).index(7)
    assert 0 < place < 40
    assert found["p_same"][place] > 0.01, "it may be the same star"
    assert np.median(found["p_same"]) < 1e-6, "most are known to be others"


def test_an_emission_line_is_found_at_its_wavelength(model, catalogue):
    line = np.exp(-0.5 * ((xp_mock.WAVELENGTH - HALPHA) / 2) ** 2)
    at = np.array([HALPHA])
    height = sum(
        catalogue[f"{band}_coefficients"][11] @ xp.sampling(band, at)[:, 0] * xp.overlap(band, at)
        for band in xp.BANDS
    )
    for band in xp.BANDS:
        added = 0.5 * height * line @ xp.projection(band, xp_mock.WAVELENGTH).T
        catalogue[f"{band}_coefficients"][11] += added
    catalogue["rp_coefficients"][40, 10:] *= -1  # no star's
    found = model.outliers(catalogue, n=3, keep=["source_id"])
    assert set(found["row"][:2]) == {11, 40}
    star = found[found["row"] == 11][0]
    assert star["low_1"] <= HALPHA <= star["high_1"] < star["low_1"] + 30
    assert star["residual_1"] > 10, "in emission"
    assert found["score"][1] > 5 * found["score"][2]
    assert found["low_1"].unit == "nm" and found.meta["searched"] == 120


def test_results_do_not_depend_on_the_size_of_chunks(model, catalogue, tmp_path):
    catalogue = catalogue[:30]
    for name in catalogue.colnames:
        if name.startswith("bp"):  # stars without BP, among others
            catalogue[name] = catalogue[name].astype(float)
            catalogue[name][::7] = np.nan
    with Writer(tmp_path / "stars.hdf5") as writer:
        writer.write({name: np.asarray(catalogue[name]) for name in catalogue.colnames})
    for search in (lambda *a, **k: model.similar(catalogue[2], *a, **k), model.outliers):
        whole = search(catalogue, n=6)
        parts = search(str(tmp_path / "stars.hdf5"), n=6, predict_batch_size=13)
        for name in whole.colnames:
            np.testing.assert_allclose(parts[name], whole[name], rtol=2e-3, atol=1e-6)


def test_what_cannot_be_searched_is_named(model, catalogue):
    with pytest.raises(ValueError, match="compare with: 2 rows; expected one, such as"):
        model.similar(catalogue[:2], catalogue)
    with pytest.raises(ValueError, match="n is 0; expected the number of stars"):
        model.outliers(catalogue, n=0)
    catalogue["score"] = 1.0
    with pytest.raises(ValueError, match="keep: score: a column of the result"):
        model.outliers(catalogue, keep=["score"])
    catalogue["bp_coefficients"][33, 4] = np.nan
    for search in (model.outliers, lambda table: model.similar(table[0], table)):
        with pytest.raises(ValueError, match=r"nan is NaN .*row 33, counted from 0"):
            search(catalogue)
    with pytest.raises(ValueError, match=r"spectrum to compare with: .*nan is NaN"):
        model.similar(catalogue[33], catalogue)
