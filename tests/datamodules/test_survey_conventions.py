"""Catalogues in the conventions of surveys: what would be a wrong number is said, or refused."""

import warnings

import numpy as np
import pytest
import torch
from astropy.table import Table

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.band_names import suggested_settings
from orrery.datamodules.feniks import FeniksData
from orrery.datamodules.feniks.spectrum_columns import read_settings
from orrery.datamodules.feniks.spectrum_files import read_spectra
from orrery.datamodules.gems import GemsData
from orrery.datamodules.gyro import GyroData
from orrery.datamodules.mass_net import WideBinaryData
from orrery.datamodules.reddening import extinction_columns
from orrery.datamodules.values import repeated_sentinels
from orrery.datamodules.zephyr import ZephyrData

N = 24
IRON = np.linspace(-2.5, -1.5, N)
BANDS = {"r": "hsc_r", "y": "hsc_y", "J": "ukirt_wfcam_J", "vista_J": "vista_vircam_J"}
RANDOM = np.random.default_rng(0)


def abundances(columns, **settings) -> dict[str, torch.Tensor]:
    data = AbundanceData(elements=["Fe", "Mg", "Ti"], solar="asplund2009", **settings)
    data.table = Table(columns)
    return next(data.prediction_batches())


def apogee(**changed) -> dict[str, np.ndarray]:
    """[Mg/Fe] 0.3, and a blank C I, so that the table has two species of carbon."""
    error, blank, good = np.full(N, 0.05), np.full(N, np.nan), np.zeros(N, int)
    stars = {"FE_H": IRON, "FE_H_ERR": error, "FE_H_FLAG": good}
    for name, value in (("MG", 0.3), ("C", 0.1)):
        stars |= {f"{name}_FE": np.full(N, value), f"{name}_FE_ERR": error}
    stars |= {"CI_FE": blank, "CI_FE_ERR": blank, "MG_FE_FLAG": good}
    return stars | changed


def photometry(table, **settings) -> dict[str, torch.Tensor]:
    data = FeniksData(bands=BANDS, **settings)
    data.table, data.split = Table(table), "all"
    return next(data.prediction_batches())


def fluxes(*bands: str, value="flux_{}", error="flux_err_{}", scale=1.0) -> dict[str, np.ndarray]:
    flux = RANDOM.lognormal(1, 0.5, N) * scale
    return {value.format(b): flux for b in bands} | {error.format(b): flux / 20 for b in bands}


def stars(**changed) -> dict[str, np.ndarray]:
    return {
        "ra": RANDOM.uniform(0, 360, N), "dec": RANDOM.uniform(-80, 80, N),
        "distance": np.full(N, 8.0), "distance_error": np.full(N, 0.5),
        "pmra": RANDOM.normal(0, 2, N), "pmra_error": np.full(N, 0.05),
        "pmdec": RANDOM.normal(0, 2, N), "pmdec_error": np.full(N, 0.05),
        "radial_velocity": RANDOM.normal(0, 100, N), "radial_velocity_error": np.full(N, 1.0),
    } | changed  # fmt: skip


def hosts(columns) -> dict[str, torch.Tensor]:
    data = GemsData(clusters=["NGC 104", "Pal 5"])
    data.table, data.split = Table(columns), "all"
    return next(data.prediction_batches())


# --- abundances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["MG_FE_FLAG", "flag_mg_fe"])
def test_an_abundance_that_its_survey_flags_is_left_out(flag):
    bad = np.arange(N) % 2
    table = apogee(**{flag: bad})
    rows = abundances({n: x for n, x in table.items() if n in (flag, "FE_H") or "FLAG" not in n})
    torch.testing.assert_close(rows["value"][:, 1].isnan(), torch.from_numpy(bad == 1))
    assert rows["value"][:, 0].isfinite().all()


def test_flagged_abundances_are_taken_if_the_user_says_so():
    rows = abundances(apogee(MG_FE_FLAG=np.ones(N, int)), quality_flags=False)
    assert rows["value"][:, 1].isfinite().all()


def test_flags_of_quality_in_a_table_that_streams_leave_out_as_many(capsys):
    table = {n: x for n, x in apogee(MG_FE_FLAG=np.ones(N, int)).items() if "C" not in n}
    assert abundances(table)["value"][:, 1].isnan().all()
    assert f"{N} of {2 * N}" in capsys.readouterr().out


def test_a_masked_flag_is_no_flag():
    masked = np.ma.masked_array(np.ones(N, int), mask=True)
    assert abundances(apogee(MG_FE_FLAG=masked))["value"][:, 1].isfinite().all()


def test_a_flag_in_words_is_asked_about():
    with pytest.raises(ValueError, match=r"MG_FE_FLAG.*data\.quality_flags=false"):
        abundances(apogee(MG_FE_FLAG=np.full(N, "<")))


def test_sentinels_hold_for_a_table_of_several_species():
    unknown = np.where(np.arange(N) < 5, -9999.99, 0.3).astype("f4")
    table = apogee(MG_FE=unknown)
    rows = abundances(table, sentinels=[-9999.99])
    assert rows["value"][:, 1].isnan().sum() == 5


def test_nine_is_no_abundance():
    with pytest.raises(ValueError, match=r"'MG_H': -9\.0"):
        abundances({"FE_H": IRON, "FE_H_ERR": np.full(N, 0.1),
                    "MG_H": np.full(N, -9.0), "MG_H_ERR": np.full(N, 0.1)})  # fmt: skip


def test_columns_named_by_a_species_alone_are_said_to_be_unread(capsys):
    abundances({"FE_H": IRON, "FE_H_ERR": np.full(N, 0.1),
                "MG1": IRON + 7.9, "E_MG1": np.full(N, 0.1)})  # fmt: skip
    assert "data.columns.mg_logeps=MG1" in capsys.readouterr().out


# --- photometry ---------------------------------------------------------------------------------


def test_a_column_of_another_instrument_is_said():
    table = fluxes("Y", "J", value="UVISTA_{}_FLUX", error="UVISTA_{}_FLUXERR")
    names = {"flux": "UVISTA_{band}_FLUX", "flux_err": "UVISTA_{band}_FLUXERR"}
    with pytest.warns(UserWarning, match=r"'UVISTA_J_FLUX' as J .*'UVISTA_Y_FLUX' as y \(hsc_y\)|"
                      r"'UVISTA_Y_FLUX' as y \(hsc_y\), 'UVISTA_J_FLUX' as J"):  # fmt: skip
        rows = photometry(table, columns=names, flux_zero_point=23.9)
    assert rows["observed"][0].tolist() == [False, True, True, False]


def test_a_capital_letter_that_is_another_filter_is_said():
    with pytest.warns(UserWarning, match=r"'flux_R' as r \(hsc_r\)"):
        photometry(fluxes("R", "J"), flux_zero_point=23.9)


def test_columns_of_the_right_names_raise_no_question_of_filters():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        photometry(fluxes("r", "vista_J"), flux_zero_point=23.9)
    assert not [w for w in said if "other filters" in str(w.message)]


@pytest.mark.filterwarnings("ignore")
def test_bands_in_different_units_are_asked_about():
    table = fluxes("r") | fluxes("J", scale=1000)
    with pytest.raises(ValueError, match=r"'flux_r' and 'flux_J' have no unit.*different units"):
        photometry(table)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("f_J", "e_J", "w_J", "f_F160W", "e_F160W"), "flux='f_{band}' .*flux_err='e_{band}'"),
        (("J_mag", "J_magerr", "F160W_mag", "F160W_magerr"), "mag='{band}_mag' .*_magerr'"),
        (("f160w_tot_1", "f160w_etot_1", "j_tot_1", "j_etot_1"), "flux='{band}_tot_1' .*_etot_1'"),
        (("J", "eJ", "f160w", "ef160w", "x", "y"), "flux='{band}' .*flux_err='e{band}'"),
    ],
)
def test_names_of_surveys_are_answered_with_their_pattern(names, settings):
    found = suggested_settings(names, ["J", "f160w"])
    assert all(part in found for part in settings.split(" .*"))


def test_no_pattern_is_made_up():
    assert suggested_settings(["ra", "dec", "J", "id"], ["J", "f160w"]) == ""


# --- stars --------------------------------------------------------------------------------------


def test_a_velocity_that_stands_for_unknown_is_asked_about():
    table = stars()
    table["radial_velocity"][:5] = -999.0
    with pytest.warns(UserWarning, match=r"'radial_velocity' holds -999 .*sentinels=\[-999\]"):
        hosts(table)


def test_a_velocity_of_exactly_zero_without_error_is_refused():
    table = stars()
    table["radial_velocity"][3] = table["radial_velocity_error"][3] = 0.0
    with pytest.raises(ValueError, match="radial velocity of exactly 0"):
        hosts(table)


@pytest.mark.parametrize(("factor", "unit"), [(1 / 15, "hourangle"), (np.pi / 180, "rad")])
def test_angles_that_are_no_degrees_are_asked_about(factor, unit):
    table = stars()
    table["ra"] = table["ra"] * factor
    if unit == "rad":
        table["dec"] = table["dec"] * factor
    with pytest.warns(UserWarning, match=rf"data\.units\.ra={unit}"):
        hosts(table)


def test_capitals_beside_galactic_coordinates_are_named():
    table = stars(l=np.zeros(N), b=np.zeros(N))
    table = {{"ra": "RA", "dec": "DEC"}.get(n, n): x for n, x in table.items()}
    with pytest.raises(ValueError, match=r"data\.columns\.ra=RA"):
        hosts(table)


def test_a_radial_velocity_by_another_name_is_pointed_out():
    table = stars()
    table["dr2_radial_velocity"] = table.pop("radial_velocity")
    table.pop("radial_velocity_error")
    with pytest.warns(UserWarning, match="near: dr2_radial_velocity"):
        hosts(table)


def test_repeated_sentinels_are_those_that_no_rounding_explains():
    velocities = np.round(RANDOM.normal(0, 50, 200), 1)
    assert repeated_sentinels(np.where(np.arange(200) < 9, -999.0, velocities)) == "-999"
    assert repeated_sentinels(np.where(np.arange(200) < 9, 999.99, velocities).astype("f4"))
    assert repeated_sentinels(np.where(np.arange(200) < 9, -999.0, velocities), [-999.0]) == ""
    assert repeated_sentinels(np.round(RANDOM.uniform(990, 1010, 4000))) == ""


# --- spectra ------------------------------------------------------------------------------------


def spectrum(tmp_path, first=19_600.0, **changed):
    """The spectrum read from a file of 80 pixels of 1 uJy +- 0.2, and the messages, joined."""
    columns = {"wave_vac": first + 10 * np.arange(80), "flux": np.ones(80), "err": np.full(80, 0.2)}
    table = Table(columns | changed, units={"wave_vac": "AA", "flux": "uJy"})
    table.write(tmp_path / "1.ecsv", overwrite=True)
    said, settings = [], read_settings({}, resolution=3600.0)
    (read,) = read_spectra(tmp_path / "1.ecsv", settings, said.append).values()
    return read, " ".join(said)


def test_a_usual_spectrum_raises_no_question(tmp_path):
    read, said = spectrum(tmp_path)
    assert read.good.all() and not said


def test_the_mask_of_esos_spectra_is_read(tmp_path):
    read, _ = spectrum(tmp_path, QUAL=np.where(np.arange(80) < 7, 16, 0))
    assert read.good.sum() == 73


def test_pixels_of_exactly_zero_are_gaps(tmp_path):
    read, said = spectrum(tmp_path, flux=np.where(np.arange(80) < 9, 0.0, 1.0))
    assert read.good.sum() == 71 and "9 pixels whose 'flux' is exactly 0" in said


def test_a_flux_that_stands_for_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'flux' holds -99 .*sentinels=\[-99\]"):
        spectrum(tmp_path, flux=np.where(np.arange(80) < 9, -99.0, RANDOM.normal(1, 0.2, 80)))


def test_errors_in_another_unit_are_asked_about(tmp_path):
    assert "data.spectrum.units.error" in spectrum(tmp_path, err=np.full(80, 200.0))[1]


# --- extinction, and units of errors ------------------------------------------------------------


@pytest.mark.parametrize("name", ["ag_gspphot", "ebpminrp_gspphot", "E(B-V)", "EBV", "A_V", "av50"])
def test_an_extinction_that_is_not_used_is_said(name):
    data = WideBinaryData()
    data.split = "all"
    data.table = Table({"bp_rp": [1.0], "abs_g": [5.5], name: [0.3]})
    with pytest.warns(UserWarning, match=r"not used, and colours .* dereddened"):
        next(data.prediction_batches())


def test_names_of_other_quantities_are_no_extinction():
    names = ["ag_x", "a", "parallax", "g0", "age", "ra", "dec", "flag", "av_n", "bp_rp", "vbroad"]
    assert extinction_columns(names) == []


def test_a_colour_that_may_be_reddened_is_asked_about():
    data = GyroData(columns={"bp_rp0": "bp_rp"})
    data.split = "all"
    data.table = Table({"prot_d": [10.0], "bp_rp": [1.0], "ag_gspphot": [0.3]})
    with pytest.warns(UserWarning, match=r"ag_gspphot not used, and 'bp_rp' is taken as"):
        next(data.prediction_batches())


@pytest.mark.filterwarnings("ignore")
def test_an_error_without_a_unit_has_that_of_its_flux():
    flux = RANDOM.lognormal(8, 0.3, N)
    table = {"flux_g": flux, "flux_err_g": flux / 20, "flux_r": flux, "flux_err_r": flux / 20}
    rows = []
    for units in ({"flux": "nJy"}, {"flux": "nJy", "flux_err": "nJy"}):
        data = ZephyrData(bands=["g", "r"], units=units)
        data.table, data.split = Table(table), "all"
        rows.append(next(data.prediction_batches()))
    torch.testing.assert_close(rows[0], rows[1])
