"""A second table for each row of a catalogue."""

import numpy as np
import pytest
from astropy.table import Table

from orrery.tables import KeyedTables, Writer, open_catalogue


@pytest.fixture
def spectra(tmp_path):
    """Three spectra of different lengths, a file each, named by identifiers."""
    (tmp_path / "spec").mkdir()
    for key, n in (("20115", 5), ("20117", 7), ("9000000000000000001", 3)):
        table = Table({"wavelength": np.linspace(2, 2.4, n), "flux": np.arange(n) * 1.0})
        table["wavelength"].unit = "um"
        table.write(tmp_path / f"spec/{key}.fits")
    return KeyedTables(tmp_path / "spec/*.fits")


def test_a_file_per_row_is_found_by_its_name(spectra):
    assert len(spectra) == 3 and set(spectra) == {"20115", "20117", "9000000000000000001"}
    for key in (20115, 20115.0, "20115", b"20115", np.int64(20115)):
        assert key in spectra
        np.testing.assert_array_equal(spectra[key]["flux"], np.arange(5))
    assert len(spectra[np.int64(9000000000000000001)]["wavelength"]) == 3, "all 19 digits count"
    assert str(spectra.units(20117)["wavelength"]) == "um"


def test_one_file_holds_a_row_per_key(tmp_path):
    flux = np.arange(12.0).reshape(3, 4)
    with Writer(tmp_path / "spectra.hdf5", units={"flux": "Jy"}) as writer:
        writer.write({"galaxy": np.array([3, 1, 2]), "flux": flux})
    spectra = KeyedTables(tmp_path / "spectra.hdf5", key="galaxy")
    np.testing.assert_array_equal(spectra[1]["flux"], flux[1])
    assert str(spectra.units(1)["flux"]) == "Jy"


def test_a_key_without_a_table_names_near_ones(spectra):
    assert 20116 not in spectra
    with pytest.raises(KeyError, match=r"no table of '20116'; near: 2011[57]"):
        spectra[20116]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        KeyedTables(tmp_path / "spec/*.fits")
    Table({"name": [1, 1], "flux": [1.0, 2.0]}).write(tmp_path / "two.csv")
    with pytest.raises(ValueError, match="no column 'id' of keys; its columns: name, flux"):
        KeyedTables(tmp_path / "two.csv")
    with pytest.raises(ValueError, match="two tables of the key '1'"):
        KeyedTables(tmp_path / "two.csv", key="name")


@pytest.mark.parametrize("ending", ["fits", "hdf5", "parquet", "ecsv"])
def test_a_posterior_per_row_keeps_its_shape(ending, tmp_path):
    """Draws of several parameters of each object: (objects, draws, parameters)."""
    draws = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    path = tmp_path / f"posteriors.{ending}"
    with Writer(path, constants={"parameter": np.array(["mass", "age", "dust"])}) as writer:
        writer.write({"id": np.arange(3), "draws": draws[:3]})
        writer.write({"id": np.arange(3, 6), "draws": draws[3:]})
    with open_catalogue(path) as catalogue:
        again = np.concatenate([chunk["draws"] for chunk in catalogue.chunks(["draws"])])
    np.testing.assert_array_equal(again, draws)
