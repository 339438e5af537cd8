"""Spectra beside a catalogue for feniks: each at its row, or an error that says what to do."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from orrery import command_line
from orrery.checkpoint import build
from orrery.datamodules.feniks.mock_spectra import broad_lines, observed_flux, pixels
from orrery.datamodules.feniks.spectra import FeniksSpectra
from orrery.datamodules.feniks.spectrum_rows import contains, rows_of_spectra, stem
from orrery.models.feniks.joint import spectrum_of
from orrery.models.feniks.observed_spectrum import usable

BANDS = {"H": "tophat:14500:17500", "K": "tophat:19500:23800", "irac1": "tophat:32000:39000"}
WAVE = np.linspace(19_500.0, 23_800.0, 120)
FLUX, ERROR = np.full(120, 2.0), np.full(120, 0.1)
IDS = (7, 20115, 33)
VACUUM = {"air": False}


def module(tmp_path, **given) -> FeniksSpectra:
    pattern = str(tmp_path / "*.spectrum.fits")
    settings = {"bands": BANDS, "spectra": pattern, "spectrum": VACUUM, "split": "all",
                "flux_zero_point": 23.9, **given}  # fmt: skip
    settings = {"resolution": 3600.0} | settings
    return FeniksSpectra(path=str(tmp_path / "cat.csv"), **settings)


def catalogue(tmp_path, ids=IDS, **columns) -> None:
    n = len(ids)
    photometry = {f"flux_{b}": np.full(n, 2.0) for b in BANDS}
    errors = {f"flux_err_{b}": np.full(n, 0.02) for b in BANDS}
    table = Table({"id": list(ids), **photometry, **errors, **columns})
    table.write(tmp_path / "cat.csv", overwrite=True)


def spectrum(tmp_path, name: str, scale: float = 1.0, n: int = 120, **columns) -> str:
    every = {"wave": WAVE * u.AA, "flux": scale * FLUX * u.uJy, "err": ERROR * u.uJy, **columns}
    path = tmp_path / f"{name}.spectrum.fits"
    Table({k: v[:n] for k, v in every.items() if v is not None}).write(path, overwrite=True)
    return str(path)


def predicted(data) -> dict[str, torch.Tensor]:
    return next(data.prediction_batches())


def quietly(data) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return predicted(data)


# --- rows ---------------------------------------------------------------------------------------


def test_every_row_has_the_spectrum_whose_file_contains_its_id(tmp_path, capsys):
    catalogue(tmp_path)
    for scale, name in ((1, "zf_00007_K"), (3, "zf_20115_K"), (4, "zf_33_K")):
        spectrum(tmp_path, name, scale / 2)
    found = quietly(module(tmp_path))
    said = "rows of spectra, by ids in names: 7 of zf_00007_K.spectrum.fits, 20115 of zf_20115_K"
    assert said in capsys.readouterr().out
    assert found["spectrum_flux"][:, 0].tolist() == [1.0, 3.0, 4.0]
    assert found["spectrum_good"].all() and found["spectrum_good"].dtype == torch.bool
    np.testing.assert_allclose(found["spectrum_wavelength"][1], WAVE, rtol=1e-6)
    assert torch.allclose(found["spectrum_error"], torch.tensor(0.1))
    assert {found[f"spectrum_{k}"].shape for k in ("wavelength", "flux", "error", "good")} == {
        (3, 120)
    }
    assert found["spectrum_resolution"].shape == (3,) and found["flux"].shape == (3, 3)


def test_a_row_without_a_spectrum_is_said_and_keeps_its_photometry(tmp_path):
    catalogue(tmp_path)
    spectrum(tmp_path, "20115")
    with pytest.warns(UserWarning, match=r"2 of 3 rows have no spectrum, and are fitted by their "
                      r"photometry alone: 7, 33"):  # fmt: skip
        found = predicted(module(tmp_path))
    assert found["spectrum_good"].any(1).tolist() == [False, True, False]
    assert found["observed"].all()
    assert all(found[f"spectrum_{k}"].isfinite().all() for k in ("wavelength", "flux", "error"))


def test_a_spectrum_without_its_row_is_said_and_refused_where_none_has_one(tmp_path):
    catalogue(tmp_path)
    for name in ("7", "20115", "33"):
        spectrum(tmp_path, name)
    extra = spectrum(tmp_path, "4096")
    with pytest.warns(UserWarning, match=rf"1 spectra have no row, and are not used: {extra}"):
        predicted(module(tmp_path))
    with pytest.raises(ValueError, match=r"no spectrum has its row: '4096.spectrum' contains none "
                       r"of the ids, such as .*20115.*data\.columns\.id=<column>"):  # fmt: skip
        predicted(module(tmp_path, spectra=extra))


def test_two_spectra_of_one_row_or_two_rows_of_one_spectrum_are_refused(tmp_path):
    catalogue(tmp_path)
    spectrum(tmp_path, "20115_H")
    spectrum(tmp_path, "20115_K")
    with pytest.raises(ValueError, match=r"two spectra of '20115', .*20115_H.*and .*20115_K.*; "
                       "expected one: combine them"):  # fmt: skip
        predicted(module(tmp_path))
    both = spectrum(tmp_path, "7_33")
    with pytest.raises(ValueError, match=r"7_33.*fits the rows of 7 and 33; name the file of each "
                       r"row in a column: data\.columns\.spectrum"):  # fmt: skip
        predicted(module(tmp_path, spectra=both))
    catalogue(tmp_path, (7, 20115, 7))
    with pytest.raises(ValueError, match=r"the id '7' is in row 0 and in row 2"):
        predicted(module(tmp_path))


def test_a_column_of_files_names_the_spectrum_of_each_row(tmp_path):
    files = ["b.spectrum.fits", "", "a.spectrum.fits"]
    catalogue(tmp_path, file=files)
    spectrum(tmp_path, "a")
    spectrum(tmp_path, "b", 2.0)
    data = module(tmp_path, spectra=None, columns={"spectrum": "file"})
    with pytest.warns(UserWarning, match="1 of 3 rows have no spectrum"):
        found = predicted(data)
    assert found["spectrum_flux"][:, 0].tolist() == [4.0, 0.0, 2.0]
    assert data.provenance()["spectra"] == 2
    catalogue(tmp_path, file=["b.spectrum.fits", "c.fits", ""])
    data = module(tmp_path, spectra=None, columns={"spectrum": "file"})
    with pytest.raises(FileNotFoundError, match=r"column 'file': there is no file c\.fits \(row 1, "
                       "counted from 0"):  # fmt: skip
        predicted(data)
    catalogue(tmp_path, file=["b.spectrum.fits"] * 2 + [""])
    with pytest.raises(ValueError, match=r"two rows have the spectrum 'b.spectrum.fits' in column"):
        predicted(data)
    with pytest.raises(ValueError, match=r"spectrum: no column 'fil'; near matches: file"):
        predicted(module(tmp_path, columns={"spectrum": "fil"}))


def test_a_catalogue_without_ids_or_with_others_is_asked_for_the_column(tmp_path):
    catalogue(tmp_path)
    spectrum(tmp_path, "20115")
    table = Table.read(tmp_path / "cat.csv")
    table.rename_column("id", "ID")
    table.write(tmp_path / "cat.csv", overwrite=True)
    with pytest.raises(ValueError, match=r"id: no column 'id'; near matches: ID.*columns\.id=ID"):
        predicted(module(tmp_path))
    with pytest.warns(UserWarning, match="2 of 3 rows have no spectrum"):
        predicted(module(tmp_path, columns={"id": "ID"}))


def test_several_galaxies_of_a_spec_of_fastpp_are_found_by_their_ids(tmp_path):
    catalogue(tmp_path)
    half = (WAVE[1] - WAVE[0]) / 2
    columns = [WAVE - half, WAVE + half, FLUX, ERROR, 2 * FLUX, ERROR]
    header = "wl_low wl_up F20115 E20115 F33 E33"
    np.savetxt(tmp_path / "all.spec", np.stack(columns, 1), "%.8g", header=header)
    data = module(tmp_path, spectra=str(tmp_path / "all.spec"),
                  spectrum=VACUUM | {"units": {"flux": "uJy", "wavelength": "AA"}})  # fmt: skip
    with pytest.warns(UserWarning, match="1 of 3 rows have no spectrum"):
        found = predicted(data)
    assert found["spectrum_flux"][:, 5].tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [("zf-20115_K", "20115", True), ("zf20115", "20115", True), ("00020115", "20115", True),
     ("120115", "20115", False), ("20115.5", "20115", False), ("20115b", "20115", False),
     ("0.20115", "20115", False), ("ae1_05.K.20115.1d", "20115", True), ("z3.715", "3", False),
     ("UDS-z3_a", "UDS-z3", True), ("UDS-z33", "UDS-z3", False)],
)  # fmt: skip
def test_an_id_is_in_a_name_as_a_whole(name, key, expected):
    assert contains(name, key) == expected


def test_an_id_that_is_the_whole_name_is_taken_before_those_within_it():
    found, _ = rows_of_spectra({"a/3-4.fits": "3-4"}, ["3", "4", "3-4"], "cat")
    assert found == {"3-4": "a/3-4.fits"}
    assert stem("spec/zf_7.v2.fits.gz") == "zf_7.v2" and stem("a.spec") == "a"


# --- padding ------------------------------------------------------------------------------------


def test_shorter_spectra_are_padded_and_batches_are_as_long_as_the_longest(tmp_path):
    catalogue(tmp_path)
    for n, name in ((120, "7"), (60, "20115"), (90, "33")):
        spectrum(tmp_path, name, n=n)
    data = module(tmp_path, predict_batch_size=1)
    found = list(data.prediction_batches())
    assert {batch["spectrum_flux"].shape for batch in found} == {(1, 120)}
    assert [int(batch["spectrum_good"].sum()) for batch in found] == [120, 60, 90]
    padded = found[1]
    assert padded["spectrum_wavelength"].isfinite().all()
    assert not padded["spectrum_good"][0, 60:].any()
    assert (padded["spectrum_flux"][0, 60:] == 0).all()
    assert (padded["spectrum_error"][0, 60:] == 1).all()


def test_pixels_with_a_covariance_are_correlated_in_the_fit_of_their_row_alone(tmp_path):
    catalogue(tmp_path)
    place = np.arange(60)
    matrix = 0.01 * 0.6 ** np.abs(place[:, None] - place)
    spectrum(tmp_path, "7")
    spectrum(tmp_path, "20115", n=60, err=None, covariance=np.pad(matrix, ((0, 60), (0, 0))))
    spectrum(tmp_path, "33", n=90)
    found = predicted(module(tmp_path))
    assert found["spectrum_covariance"].shape == (3, 120, 120)
    one = spectrum_of(found, 1)
    assert one is not None and one.covariance is not None
    np.testing.assert_allclose(usable(one).covariance, matrix, rtol=1e-6)
    np.testing.assert_allclose(usable(one).error, 0.1, rtol=1e-6)
    independent = usable(spectrum_of(found, 2)).covariance
    np.testing.assert_allclose(independent, 0.01 * np.eye(90), rtol=1e-6)


# --- what is wrong with a spectrum, or asked ----------------------------------------------------

BAD = {
    "no errors": ({"err": None}, r"has no errors; name their column"),
    "no unit": ({"flux": FLUX}, r"column 'flux' has no unit; is it a flux density per wavelength"),
    "masked": ({"mask": np.ones(120)}, r"has 0 good pixels .*all its 120 pixels are masked"),
    "no numbers": ({"flux": np.nan * FLUX * u.uJy}, r"has 0 good pixels .*without a flux \(120\)"),
    "zero errors": ({"err": 0 * ERROR * u.uJy}, r"has 0 good pixels .*an error above 0"),
    "another band": (
        {"wave": np.linspace(3800, 9000, 120) * u.AA}, r"covers 3,800 to 9,000 .* of another band"
    ),
    "ambiguous": ({"wave": np.linspace(3100, 5200, 120)}, r"column 'wave' of wavelengths has no"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_spectrum_is_refused_by_its_file_or_left_out_with_its_row(tmp_path, what):
    columns, message = BAD[what]
    catalogue(tmp_path)
    for name in ("7", "33"):
        spectrum(tmp_path, name)
    spectrum(tmp_path, "20115", **columns)
    with pytest.raises(ValueError, match=rf"20115\.spectrum\.fits: {message}"):
        predicted(module(tmp_path))
    with pytest.warns(
        UserWarning, match=rf"1 rows are left out: .*20115\.spectrum\.fits: {message}"
    ):
        found = list(module(tmp_path, skip_bad=True).prediction_batches())
    assert [int(row) for batch in found for row in batch["row"]] == [0, 2]


def test_air_or_vacuum_is_asked_once_for_all_files(tmp_path):
    catalogue(tmp_path)
    for name in ("7", "20115", "33"):
        spectrum(tmp_path, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vacuum = predicted(module(tmp_path, spectrum=None))
    texts = [str(w.message) for w in caught]
    assert sum("they are taken in vacuum" in text for text in texts) == 1
    air = quietly(module(tmp_path, spectrum={"air": True}))
    shift = air["spectrum_wavelength"] / vacuum["spectrum_wavelength"] - 1
    assert torch.allclose(shift, torch.tensor(2.73e-4), atol=2e-6)


def test_a_spectrum_that_no_redshift_brings_into_the_optical_is_of_another_band(tmp_path):
    catalogue(tmp_path)
    spectrum(tmp_path, "20115")
    with pytest.raises(ValueError, match=r"covers 19,500 to 23,800 Angstrom, where no galaxy at "
                       r"redshift 0\.2 to 1 has its 3,000 to"):  # fmt: skip
        predicted(module(tmp_path, parameters={"zred": ["uniform", 0.2, 1.0]}))


def test_a_spectrum_in_a_wrong_unit_differs_from_the_photometry_which_is_said(tmp_path):
    catalogue(tmp_path, (20115,))
    spectrum(tmp_path, "20115", 2.0)
    quietly(module(tmp_path))  # a factor of 2 is a slit's loss
    spectrum(tmp_path, "20115", 10.0)
    with pytest.warns(UserWarning, match=r"the mean flux of a spectrum is 20 uJy, 10 times the 2 "
                      r"uJy of its galaxy in K: is the unit right\?"):  # fmt: skip
        predicted(module(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"spectrum": {"fluxes": "a"}}, r"data\.spectrum\.fluxes is no setting; near: flux"),
     ({"wavelength_range": [1.0]}, r"data\.wavelength_range=\[1\.0\]; expected two"),
     ({"signal_to_noise": []}, r"data\.signal_to_noise=\[\]"),
     ({"signal_to_noise": [3, 0]}, r"data\.signal_to_noise=\[3, 0\]"),
     ({"mock_pixels": [2, 1, 1]}, r"data\.mock_pixels=\[2, 1, 1\]"),
     ({"broad_share": 2}, r"data\.broad_share=2; expected a share"),
     ({"resolution": 1}, r"data\.resolution=1; expected wavelength over FWHM")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeniksSpectra(bands=BANDS, **settings)


def test_a_catalogue_without_spectra_is_told_where_they_go(tmp_path):
    catalogue(tmp_path)
    with pytest.raises(ValueError, match=r"has no spectra: name their files, data\.spectra='spec/"):
        predicted(module(tmp_path, spectra=None))
    for spectra, message in ((str(tmp_path / "no*.fits"), "there is no such file"),
                             (str(tmp_path), r"is a folder; name its files")):  # fmt: skip
        with pytest.raises(OSError, match=message):
            predicted(module(tmp_path, spectra=spectra))


def test_files_are_read_once_until_they_change_and_recorded(tmp_path, monkeypatch):
    from orrery.datamodules.feniks import spectra

    catalogue(tmp_path, (20115,))
    path, read = spectrum(tmp_path, "20115"), []
    real = spectra.read_spectra
    monkeypatch.setattr(spectra, "read_spectra", lambda *a: read.append(a[0]) or real(*a))
    data = module(tmp_path)
    predicted(data), predicted(data)
    assert read == [path]
    record = data.provenance()
    assert record["spectra"] == 1 and len(record["spectra_sha256"]) == 64
    spectrum(tmp_path, "20115", 1.5)
    assert predicted(data)["spectrum_flux"][0, 0] == 3.0 and read == [path, path]
    assert data.provenance()["spectra_sha256"] != record["spectra_sha256"]


def test_settings_of_the_command_line_reach_the_reader():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        words = ["model=sed_emulator", "data=feniks_spectra", "run_dir=.", "data.spectrum.air=true"]
        words += ["data.spectra='a/*.fits'", "data.spectrum.units.flux=1e-19 erg/s/cm2/AA"]
        config = OmegaConf.to_container(compose("train", words), resolve=True)
    data = build(config["data"])
    assert data.spectra == ["a/*.fits"]
    assert data.reading.units == {"flux": "1e-19 erg/s/cm2/AA"} and data.reading.air is True
    assert data.reading.wavelength is None and data.reading.wavelength_range == (1e4, 5.5e4)
    assert (ROOT / "configs" / "data" / "feniks_spectra.yaml").exists()


# --- mock spectra -------------------------------------------------------------------------------


@cache
def mocks() -> FeniksSpectra:
    return FeniksSpectra(bands=BANDS, depth=26.0, n_test=120, n_train=50, broad_share=0.5,
                         signal_to_noise=[3.0, 8.0])  # fmt: skip


@cache
def mock_batch() -> dict[str, torch.Tensor]:
    return predicted(mocks())


def test_mock_spectra_have_the_pixels_and_the_noise_that_are_asked():
    found = mock_batch()
    wave = found["spectrum_wavelength"][0].numpy()
    np.testing.assert_allclose(wave, 19_504 + 8 * np.arange(537), rtol=1e-6)
    assert found["spectrum_good"].all() and found["true_broad"].shape == (120,)
    table = mocks().simulate("test")
    truth = mocks().mocks()
    exact = observed_flux(
        mocks().synthesis, truth.parameters, truth.history, mocks().mock_wavelength, 3600.0
    ).numpy()
    plain = table["true_broad"] == 0
    residual = ((table["spectrum_flux"] - exact) / table["spectrum_error"])[plain]
    assert abs(residual.mean()) < 0.01 and residual.std() == pytest.approx(1, abs=0.01)
    ratio = np.median(exact, 1) / table["spectrum_error"][:, 0] * (20 / 8) ** 0.5
    assert np.isclose(ratio[:, None], [3, 8], rtol=1e-3).any(1)[plain].all()
    assert np.allclose(table["spectrum_flux"], mocks().simulate("test")["spectrum_flux"])


def test_a_mock_spectrum_agrees_with_its_photometry_and_with_the_network():
    data = mocks()
    truth = data.mocks()
    wave = data.mock_wavelength
    exact = observed_flux(data.synthesis, truth.parameters, truth.history, wave, 3600.0)
    band = list(BANDS).index("K")
    flux = 10 ** (-0.4 * (truth.magnitudes[:, band] - 23.9))
    far = truth.parameters[:, data.priors.names.index("zred")] > 2.2  # within the fine grid
    inside = exact[far]
    weight = torch.from_numpy(1 / wave).float()  # photons, of a top hat
    mean = (inside * weight).sum(1) / weight.sum()
    assert torch.allclose(mean, flux[far], rtol=0.03)
    network, n = data.synthesis.network, int(far.sum())
    expected = network.spectrum(
        truth.parameters[far], torch.from_numpy(wave), torch.full((n,), 250.0), 3600.0,
        history=truth.history.rows(far),
    )  # fmt: skip
    assert ((inside / expected - 1).abs().median(1)[0] < 2e-3).all()


def test_nearer_galaxies_have_spectra_too():
    found = mock_batch()
    near = mocks().simulate("test")["true_zred"] < 2
    assert near.any()
    median = found["spectrum_flux"][torch.from_numpy(near)].median(1)[0]
    assert (median > 0).all()


def test_broad_lines_are_where_h_beta_is_seen_and_have_their_equivalent_widths():
    table = mocks().simulate("test")
    place = 4862.68 * (1 + table["true_zred"])
    seen = (place > 19_500) & (place < 23_800)
    assert not table["true_broad"][~seen].any()
    assert 0.2 < table["true_broad"][seen].mean() < 0.8
    wave = pixels(15_000, 40_000, 2.0)
    zred = np.full(30, 3.7)
    lines = broad_lines(wave, zred, np.random.default_rng(0))
    width = (lines * wave**-2).sum(1) * 2.0 * 4862.68**2 * 4.7  # in f_lambda, over the continuum
    assert (width > 15).all() and (width < 500).all()
    assert (lines.argmax(1) != lines.argmax(1)[0]).any(), "each has a shift of its own"


def test_arrays_of_a_table_are_spectra_as_those_of_files(tmp_path):
    data = mocks()
    table = Table(data.simulate("test"))[:6]
    of_table = FeniksSpectra(bands=BANDS, split="all", flux_zero_point=23.9)
    of_table.table = table
    found = predicted(of_table)
    for name in ("wavelength", "flux", "error", "good", "resolution"):
        assert torch.equal(found[f"spectrum_{name}"], mock_batch()[f"spectrum_{name}"][:6]), name
    table["spectrum_flux"][2] = np.nan
    assert found["spectrum_good"].any(1).all() and not predicted(of_table)["spectrum_good"][2].any()
    table["spectrum_flux"][2, :12] = 1.0
    with pytest.raises(ValueError, match=r"'spectrum_flux': .*\(row 2, counted .*20 good pixels"):
        predicted(of_table)
    table["spectrum_flux"][2] = 1.0
    table["spectrum_wavelength"][4] = table["spectrum_wavelength"][4][::-1]
    with pytest.raises(ValueError, match=r"'spectrum_wavelength': .*row 4.*expected rising"):
        predicted(of_table)
    table["spectrum_wavelength"] = table["spectrum_wavelength"][:, :100]
    with pytest.raises(ValueError, match=r"'spectrum_wavelength' has 100 numbers per row, and "
                       r"'spectrum_flux' has 537"):  # fmt: skip
        predicted(of_table)


def test_training_rows_have_no_spectra():
    data = mocks()
    data.setup("fit")
    batch = data.training_batch()
    assert "rest_magnitudes" in batch and not any(name.startswith("spectrum") for name in batch)
