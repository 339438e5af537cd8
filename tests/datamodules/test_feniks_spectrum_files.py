"""Spectra in the files of telescopes and SED codes: read as uJy in vacuum, or refused."""

import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from orrery.datamodules.feniks.spectrum_columns import SpectrumSettings, find, read_settings
from orrery.datamodules.feniks.spectrum_files import (
    noise_of_scatter,
    read_spectra,
)
from orrery.physics.sps.population import in_vacuum


def read_spectrum(path, settings, say=warnings.warn):
    """The one spectrum of a file."""
    (spectrum,) = read_spectra(path, settings, say).values()
    return spectrum


N = 200
WAVE = np.linspace(19_500.0, 23_800.0, N)  # Angstrom
FLUX = 2 + np.sin(np.arange(N) / 9)  # uJy
ERROR = np.linspace(0.1, 0.3, N)
FLAM = u.Unit("erg / (s cm2 AA)")
PER_FREQUENCY = u.spectral_density(WAVE * u.AA)
VACUUM = {"air": False}
KNOWN = {"resolution": 3600.0}


def settings(**given) -> SpectrumSettings:
    others = KNOWN | {
        k: given.pop(k) for k in ("resolution", "wavelength_range", "sentinels") if k in given
    }
    return read_settings({**VACUUM, **given}, **others)


def table(**columns) -> Table:
    """A spectrum with units; a column that is None is left out."""
    every = {"wavelength": WAVE * u.AA, "flux": FLUX * u.uJy, "error": ERROR * u.uJy, **columns}
    return Table({name: values for name, values in every.items() if values is not None})


def read(tmp_path, columns: Table, name: str = "a.fits", say=None, **given):
    path = tmp_path / name
    kinds = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "txt": "ascii.commented_header"}
    ending = path.suffix[1:]
    if ending == "hdf5":
        columns.write(path, path="spectrum", overwrite=True, serialize_meta=True)
    else:
        columns.write(path, format=kinds.get(ending, "fits"), overwrite=True)
    said = [] if say is None else say
    return read_spectrum(path, settings(**given), said.append)


def same(spectrum, flux=FLUX, error=ERROR, wave=WAVE) -> None:
    np.testing.assert_allclose(spectrum.wavelength, wave, rtol=1e-7)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-6)
    np.testing.assert_allclose(spectrum.error, error, rtol=1e-6)
    assert spectrum.good.all()


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.fits", "a.ecsv", "a.hdf5"])
def test_formats_with_units_are_read_as_they_are_and_nothing_is_said(tmp_path, name):
    say = []
    same(read(tmp_path, table(), name, say))
    assert not say


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.spec", "a.dat"])
def test_text_has_no_units_which_are_asked_or_guessed_and_said(tmp_path, name):
    path, say = tmp_path / name, []
    Table({"wave": WAVE, "flux": FLUX, "err": ERROR}).write(
        path, format="ascii.csv" if name == "a.csv" else "ascii.commented_header"
    )
    with pytest.raises(ValueError, match=rf"{name}: column 'flux' has no unit; is it a flux "
                       r"density per wavelength or per frequency.*units\.flux='1e-19"):  # fmt: skip
        read_spectrum(path, settings())
    same(read_spectrum(path, settings(units={"flux": "uJy"}), say.append))
    assert say == [
        "wavelengths have no unit, and are taken as AA; data.spectrum.units.wavelength=AA says so"
    ]


def test_a_table_with_one_row_of_arrays_is_one_spectrum(tmp_path):
    row = Table({n: [table()[n]] for n in table().colnames})
    for name in row.colnames:
        row[name].unit = table()[name].unit
    same(read(tmp_path, row))


def test_of_several_tables_of_a_file_one_is_chosen(tmp_path):
    path = tmp_path / "a.fits"
    profile = fits.BinTableHDU(Table({"y": np.arange(9.0)}), name="PROFILE")
    spectrum = fits.BinTableHDU(table(), name="EXTRACT1D")
    fits.HDUList([fits.PrimaryHDU(), profile, spectrum]).writeto(path)
    with pytest.raises(ValueError, match=r"a\.fits.*EXTRACT1D.*data\.spectrum\.group"):
        read_spectrum(path, settings())
    same(read_spectrum(path, settings(group="EXTRACT1D")))


def test_a_table_with_a_row_for_each_galaxy(tmp_path):
    rows = Table({"id": [7, 20115], "wave": [WAVE, WAVE], "flux": [FLUX, 3 * FLUX],
                  "ivar": [ERROR**-2, ERROR**-2]})  # fmt: skip
    path = tmp_path / "all.hdf5"
    rows.write(path, path="spectra")
    spectra = read_spectra(path, settings(units={"flux": "uJy"}), [].append)
    assert list(spectra) == ["7", "20115"]
    same(spectra["20115"], flux=3 * FLUX)
    rows["id"] = [7, 7]
    rows.write(path, path="spectra", overwrite=True)
    with pytest.raises(ValueError, match="two spectra of '7'"):
        read_spectra(path, settings(units={"flux": "uJy"}), [].append)
    del rows["id"]
    rows.write(path, path="spectra", overwrite=True)
    with pytest.raises(ValueError, match=r"2 rows of arrays needs.*data\.spectrum\.id=<column>"):
        read_spectra(path, settings(units={"flux": "uJy"}), [].append)


def image(path, extensions, **header) -> None:
    hdus = [fits.PrimaryHDU()]
    for name, data in extensions.items():
        hdu = fits.ImageHDU(data, name=name)
        if name != "MASK":
            hdu.header["BUNIT"] = "uJy"
        hdu.header.update(header)
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path, overwrite=True)


LINEAR = {"CRVAL1": WAVE[0], "CDELT1": WAVE[1] - WAVE[0], "CRPIX1": 1.0, "CUNIT1": "Angstrom",
          "CTYPE1": "WAVE"}  # fmt: skip


def test_an_image_has_its_wavelengths_in_the_header(tmp_path):
    path = tmp_path / "a.fits"
    mask = np.zeros(N, int)
    mask[5] = 4
    image(path, {"SCI": FLUX, "ERR": ERROR, "MASK": mask}, **LINEAR)
    spectrum = read_spectrum(path, settings(air=None), pytest.fail)
    assert np.flatnonzero(~spectrum.good).tolist() == [5]
    assert (spectrum.flux[5], spectrum.error[5]) == (0, 1)
    np.testing.assert_allclose(np.delete(spectrum.flux, 5), np.delete(FLUX, 5))
    np.testing.assert_allclose(spectrum.wavelength, WAVE)
    image(path, {"FLUX": FLUX[None], "IVAR": ERROR[None] ** -2.0}, **LINEAR)
    with pytest.raises(ValueError, match=r"column 'IVAR' is in 'uJy', which is no flux density.*"
                       r"to the power of -2.*units\.ivar=.*uJy-2"):  # fmt: skip
        read_spectrum(path, settings())
    same(read_spectrum(path, settings(units={"ivar": "uJy-2"})))
    image(path, {"FLUX": FLUX, "UNKNOWN": ERROR}, **LINEAR)
    same(read_spectrum(path, settings(error="UNKNOWN")))
    with pytest.raises(ValueError, match=r"a.fits: has no errors; name their column"):
        read_spectrum(path, settings())
    with pytest.raises(ValueError, match=r"no column 'ERROR' .*its columns: FLUX, UNKNOWN"):
        read_spectrum(path, settings(error="ERROR"))


def test_logarithmic_axes_of_images(tmp_path):
    path, step = tmp_path / "a.fits", 1e-3
    log = {"CRVAL1": 20_000.0, "CDELT1": 20.0, "CRPIX1": 1, "CUNIT1": "Angstrom"}
    image(path, {"FLUX": FLUX, "ERR": ERROR}, CTYPE1="WAVE-LOG", **log)
    same(read_spectrum(path, settings()), wave=20_000 * np.exp(step * np.arange(N)))
    log = {"CRVAL1": np.log10(20_000), "CDELT1": step / np.log(10), "DC-FLAG": 1}
    image(path, {"FLUX": FLUX, "ERR": ERROR}, **log)
    same(read_spectrum(path, settings()), wave=20_000 * np.exp(step * np.arange(N)))
    image(path, {"FLUX": FLUX, "ERR": ERROR}, **{**LINEAR, "CTYPE1": "FREQ"})
    with pytest.raises(ValueError, match=r"CTYPE1='FREQ'; expected wavelengths"):
        read_spectrum(path, settings())
    image(path, {"FLUX": FLUX, "ERR": ERROR})
    with pytest.raises(ValueError, match=r"header has no CRVAL1 and CDELT1"):
        read_spectrum(path, settings())
    image(path, {"FLUX": np.ones((40, N)), "ERR": np.ones((40, N))}, **LINEAR)
    with pytest.raises(ValueError, match=r"shape \(40, 200\); expected a spectrum of one axis"):
        read_spectrum(path, settings())


def test_several_galaxies_in_a_spec_of_fastpp(tmp_path):
    path, step = tmp_path / "a.spec", WAVE[1] - WAVE[0]
    flam = (FLUX * u.uJy).to(1e-19 * FLAM, PER_FREQUENCY).value
    error = (ERROR * u.uJy).to(1e-19 * FLAM, PER_FREQUENCY).value
    columns = np.stack([WAVE - step / 2, WAVE + step / 2, flam, error, 2 * flam, error], 1)
    np.savetxt(path, columns, "%.9g", header="wl_low wl_up F1 E1 F20115 E20115\n")
    with pytest.raises(ValueError, match=r"a.spec, spectrum of 1: column 'F1' has no unit"):
        read_spectra(path, settings())
    spectra = read_spectra(path, settings(units={"flux": "1e-19 erg/s/cm2/AA"}), [].append)
    assert list(spectra) == ["1", "20115"]
    same(spectra["1"])
    same(spectra["20115"], flux=2 * FLUX)


def test_rows_of_one_bin_of_fast_are_one_pixel(tmp_path):
    path = tmp_path / "a.spec"
    transmission = np.ones(N, int)
    transmission[3] = 0
    columns = [np.arange(N) // 4, WAVE, transmission, FLUX, ERROR]
    np.savetxt(path, np.stack(columns, 1), "%.9g", header="bin wl tr F1 E1")
    spectrum = read_spectra(path, settings(units={"flux": "uJy"}), [].append)["1"]
    assert len(spectrum.flux) == N // 4
    weight = ERROR[:3] ** -2
    assert spectrum.flux[0] == pytest.approx((weight * FLUX[:3]).sum() / weight.sum())
    assert spectrum.error[0] == pytest.approx(weight.sum() ** -0.5)
    assert spectrum.wavelength[1] == pytest.approx(WAVE[4:8].mean())


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "names"),
    [("wavelength", ["WAVE", "lambda", "wave_um", "Wavelength[AA]", "wave_vac", "loglam"]),
     ("flux", ["FLUX", "flam", "f_nu", "Spec"]),
     ("error", ["err", "FLUX_ERR", "e_flux", "fluxerr", "sigma", "fnu_unc"]),
     ("ivar", ["IVAR", "flux_ivar"]), ("low", ["wl_low"]), ("high", ["wl_up"])],
)  # fmt: skip
def test_columns_are_known_by_many_names(role, names):
    for name in names:
        for others in NAMES_OF_A_TABLE[role]:
            assert find(role, [*others, name], SpectrumSettings(), "a") == name


NAMES_OF_A_TABLE = {
    role: [["x", "sky", "continuum"], [n for n in ("wave", "flux", "err") if n != same_as]]
    for role, same_as in (("wavelength", "wave"), ("flux", "flux"), ("error", "err"),
                          ("ivar", ""), ("low", ""), ("high", ""))
}  # fmt: skip


def test_a_column_that_is_not_there_or_could_be_two(tmp_path):
    with pytest.raises(ValueError, match=r"no column of the wavelength; near matches: wavelenth"):
        read(tmp_path, table(wavelength=None, wavelenth=WAVE * u.AA))
    with pytest.raises(ValueError, match=r"'flux' and 'fnu' could each be the flux; choose one"):
        read(tmp_path, table(fnu=FLUX * u.uJy))
    same(read(tmp_path, table(fnu=FLUX * u.uJy), flux="fnu"))
    with pytest.raises(ValueError, match=r"no column 'fluxx' \(data.spectrum.flux\); near matches: "
                       "flux;"):  # fmt: skip
        read(tmp_path, table(), flux="fluxx")
    with pytest.raises(ValueError, match=r"data.spectrum.fluxx is no setting; near: flux"):
        settings(fluxx="a")
    with pytest.raises(ValueError, match=r"data.spectrum.units.wave is no setting"):
        settings(units={"wave": "um"})
    for name, value in (("air", "perhaps"), ("error_from", "noise")):
        with pytest.raises(ValueError, match=f"data.spectrum.{name}={value}; expected"):
            settings(**{name: value})
    with pytest.raises(ValueError, match=r"data.wavelength_range=\[3,2\]"):
        settings(wavelength_range=(3, 2))
    with pytest.raises(ValueError, match=r"data\.resolution=0; expected"):
        settings(resolution=0)


def test_a_column_of_text_or_of_matrices_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'flux' holds what is no number: 'a'"):
        read(tmp_path, table(flux=np.full(N, "a")))
    with pytest.raises(ValueError, match=r"spectrum of 1: column 'wave' has the shape \(200, 2\)"):
        read(
            tmp_path, Table({"id": [1, 2], **{n: [np.ones((N, 2))] * 2 for n in ("wave", "flux")}})
        )


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-4), ("nm", 0.1), ("AA", 1.0), ("m", 1e-10)])
def test_wavelengths_in_any_unit_of_the_file_or_by_size(tmp_path, unit, factor):
    say = []
    same(read(tmp_path, table(wavelength=WAVE * factor * u.Unit(unit)), say=say))
    assert not say
    if unit == "m":
        return
    low, high = (15_000.0, 23_800.0) if unit != "nm" else (12_000.0, 23_800.0)
    wave = np.linspace(low, high, N)
    spectrum = read(tmp_path, table(wavelength=wave * factor), say=say, resolution=3000)
    np.testing.assert_allclose(spectrum.wavelength, wave, rtol=1e-7)
    assert say[0].startswith(f"wavelengths have no unit, and are taken as {unit}")
    say.clear()
    stated = {"units": {"wavelength": unit}, "resolution": 3000}
    read(tmp_path, table(wavelength=wave * factor), say=say, **stated)
    assert not say


def test_wavelengths_that_could_be_in_two_units_are_asked_about(tmp_path):
    wave = np.linspace(3100, 5200, N)  # nm of JWST, or Angstrom of the optical
    with pytest.raises(ValueError, match=r"'wavelength' of wavelengths has no unit and holds "
                       r"3100 to 5200; state it: data.spectrum.units.wavelength=um"):  # fmt: skip
        read(tmp_path, table(wavelength=wave))
    spectrum = read(tmp_path, table(wavelength=wave), units={"wavelength": "nm"})
    np.testing.assert_allclose(spectrum.wavelength, 10 * wave)
    with pytest.raises(ValueError, match=r"is in 'K', which is no length"):
        read(tmp_path, table(wavelength=wave * u.K))


def test_logarithms_of_wavelengths(tmp_path):
    say = []
    columns = table(wavelength=None, loglam=np.log10(WAVE))
    same(read(tmp_path, columns, say=say))
    assert say == ["'loglam' is taken as log10 of wavelengths in Angstrom"]
    columns["loglam"].unit = u.Unit("log(Angstrom)", parse_strict="silent")
    same(read(tmp_path, columns, "a.ecsv"))


@pytest.mark.parametrize(
    ("text", "unit"),
    [("1e-19 erg/s/cm2/AA", 1e-19 * FLAM), ("erg/s/cm2/A", FLAM),
     ("10^-17 ergs/s/cm^2/Ang", 1e-17 * FLAM),
     ("1E-17 erg cm-2 s-1 Angstrom-1", 1e-17 * FLAM), ("W m-2 um-1", u.Unit("W m-2 um-1")),
     ("mJy", u.mJy), ("erg/s/cm2/Hz", u.Unit("erg / (s cm2 Hz)")), ("nanomaggies", 3.631 * u.uJy),
     ("erg s-1 cm-2 micron-1", u.Unit("erg / (s cm2 um)"))],
)  # fmt: skip
def test_flux_densities_in_any_unit(tmp_path, text, unit):
    flux, error = ((x * u.uJy).to(unit, PER_FREQUENCY).value for x in (FLUX, ERROR))
    columns = table(flux=flux, error=error)
    same(read(tmp_path, columns, units={"flux": text}))
    same(read(tmp_path, table(flux=flux, error=None, ivar=error**-2.0), units={"flux": text}))
    columns["flux"].unit = u.Unit(text, parse_strict="silent")
    same(read(tmp_path, columns, "a.ecsv"))


def test_an_error_may_have_a_unit_of_its_own(tmp_path):
    same(read(tmp_path, table(error=ERROR * 1e3 * u.nJy)))
    same(read(tmp_path, table(error=ERROR * 1e3), units={"error": "nJy"}))
    same(read(tmp_path, table(error=None, ivar=ERROR**-2 * u.uJy**-2)))
    same(read(tmp_path, table(error=None, ivar=ERROR**-2 * 1e6 * u.mJy**-2)))


@pytest.mark.parametrize("unit", ["adu", "electron / s", "erg / (s cm2)", "mag", "counts/sec"])
def test_what_is_no_flux_density_is_refused(tmp_path, unit):
    columns = table(flux=FLUX)
    columns["flux"].unit = u.Unit(unit, parse_strict="silent")
    with pytest.raises(ValueError, match=r"column 'flux' is in .*no flux density per wavelength"):
        read(tmp_path, columns, "a.ecsv")


def test_a_forgotten_scale_is_noticed(tmp_path):
    with pytest.raises(ValueError, match=r"mag \(AB\); expected 8 to 33 mag: is a scale.*1e-19"):
        read(tmp_path, table(flux=FLUX * FLAM, error=ERROR * FLAM))


# --- air and vacuum -----------------------------------------------------------------------------


def test_air_or_vacuum_is_said_by_the_user_the_file_or_us(tmp_path):
    path = tmp_path / "a.fits"
    vacuum = in_vacuum(torch.from_numpy(WAVE)).numpy()
    assert vacuum[0] / WAVE[0] - 1 == pytest.approx(2.7e-4, abs=5e-6)
    for kind, expected in (("AWAV", vacuum), ("WAVE", WAVE)):
        image(path, {"FLUX": FLUX, "ERR": ERROR}, **{**LINEAR, "CTYPE1": kind})
        same(read_spectrum(path, read_settings({}, **KNOWN), pytest.fail), wave=expected)
    for name, expected in (("wave_air", vacuum), ("lambda_vac", WAVE)):
        columns = table(wavelength=None, **{name: WAVE * u.AA})
        columns.write(path, overwrite=True)
        same(read_spectrum(path, read_settings({}, **KNOWN), pytest.fail), wave=expected)
    columns.meta["VACUUM"] = False
    columns.rename_column("lambda_vac", "wave")
    columns.write(path, overwrite=True)
    same(read_spectrum(path, read_settings({}, **KNOWN), pytest.fail), wave=vacuum)
    say = []
    same(read_spectrum(path, read_settings({"air": False}, **KNOWN), say.append))
    assert say == ["wavelengths are in air by the file, and taken in vacuum by "
                   "data.spectrum.air=false"]  # fmt: skip
    table().write(path, overwrite=True)
    say.clear()
    same(read_spectrum(path, read_settings({}, **KNOWN), say.append))
    assert len(say) == 1 and "they are taken in vacuum" in say[0] and "82 km/s" in say[0]
    same(read_spectrum(path, read_settings({"air": True}, **KNOWN), pytest.fail), wave=vacuum)


# --- errors, masks and order --------------------------------------------------------------------


def test_a_spectrum_without_errors_is_refused_or_has_them_of_its_scatter(tmp_path):
    with pytest.raises(ValueError, match=r"a\.fits: has no errors; name their column, "
                       r"data\.spectrum\.error=.*data\.spectrum\.error_from=scatter"):  # fmt: skip
        read(tmp_path, table(error=None))
    noise = np.random.default_rng(0).normal(0, 0.2, N)
    say = []
    columns = table(error=None, flux=(FLUX + noise) * u.uJy)
    spectrum = read(tmp_path, columns, say=say, error_from="scatter")
    assert say == ["errors are estimated from the scatter of neighbouring pixels"]
    assert np.median(spectrum.error) == pytest.approx(0.2, rel=0.15)
    read(tmp_path, table(), say=say, error_from="scatter")
    assert "'error' is not used" in say[1]
    with pytest.raises(ValueError, match=r"has 0 good pixels"):
        read(tmp_path, table(error=None, flux=np.ones(N) * u.uJy), error_from="scatter")


def test_noise_of_scatter_is_that_of_white_noise_despite_lines_and_gaps():
    random = np.random.default_rng(1)
    flux = random.normal(0, 0.5, 3000)
    flux[::97] += 30
    flux[500:520] = np.nan
    noise = noise_of_scatter(flux)
    assert np.nanmedian(noise) == pytest.approx(0.5, rel=0.08)
    assert (np.isnan(noise) == np.isnan(flux)).all()


def test_bad_pixels_are_left_out_whatever_marks_them(tmp_path):
    flux, error = FLUX.copy(), ERROR.copy()
    flux[[2, 3]], error[[5, 7, 9]] = [np.nan, np.inf], [0, np.inf, np.nan]
    mask, good = np.zeros(N, bool), np.ones(N, int)
    mask[11], good[13] = True, 0
    columns = table(flux=flux * u.uJy, error=error * u.uJy, mask=mask, good=good)
    spectrum = read(tmp_path, columns)
    assert np.flatnonzero(~spectrum.good).tolist() == [2, 3, 5, 7, 9, 11, 13]
    assert np.isfinite(spectrum.flux).all() and (spectrum.error > 0).all()
    ivar = ERROR**-2.0
    ivar[4] = 0
    spectrum = read(tmp_path, table(error=None, ivar=ivar * u.uJy**-2))
    assert np.flatnonzero(~spectrum.good).tolist() == [4]
    np.testing.assert_allclose(np.delete(spectrum.error, 4), np.delete(ERROR, 4))
    flux = FLUX.copy()
    flux[6] = -99
    spectrum = read(tmp_path, table(flux=flux * u.uJy), sentinels=(-99.0,))
    assert np.flatnonzero(~spectrum.good).tolist() == [6]
    say, error = [], ERROR.copy()
    error[8] = -1
    spectrum = read(tmp_path, table(error=error * u.uJy), say=say)
    assert np.flatnonzero(~spectrum.good).tolist() == [8]
    assert say == ["pixels whose 'error' is below 0 are not used"]


def test_a_spectrum_that_is_masked_is_refused(tmp_path):
    mask = np.ones(N, bool)
    with pytest.raises(ValueError, match=r"a\.fits: has 0 good pixels within data\.wavelength"
                       r"_range, and 20 are expected; all its 200 pixels are masked.*row 0, "
                       r"counted from 0.*data\.spectrum\.good=<column>"):  # fmt: skip
        read(tmp_path, table(mask=mask))
    mask[30:45] = False
    with pytest.raises(ValueError, match=r"has 15 good pixels.*185 pixels are masked"):
        read(tmp_path, table(mask=mask))
    mask[30:60] = False
    assert read(tmp_path, table(mask=mask)).good.sum() == 30


def test_a_spectrum_of_another_band_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"covers 3,800 to 9,200 Angstrom, and data\.wavelength"
                       r"_range=10,000 to 55,000 is expected: a spectrum of another"):  # fmt: skip
        read(tmp_path, table(wavelength=np.linspace(3800, 9200, N) * u.AA))
    spectrum = read(tmp_path, table(), wavelength_range=(20_000, 22_000))
    assert spectrum.wavelength.min() >= 20_000 and spectrum.wavelength.max() <= 22_000
    assert len(spectrum.flux) == (np.abs(WAVE - 21_000) <= 1000).sum()


def test_wavelengths_may_fall_and_must_not_jump(tmp_path):
    same(read(tmp_path, table()[::-1]))
    wave = WAVE.copy()
    wave[41] = wave[39]
    with pytest.raises(ValueError, match=r"wavelengths are not in order: 20342.71 Angstrom in "
                       r"row 41, counted from 0, comes after 20364.32; .*combine"):  # fmt: skip
        read(tmp_path, table(wavelength=wave * u.AA))
    wave = np.append(WAVE, [np.nan, 0.0])
    padded = table(wavelength=wave * u.AA, flux=np.append(FLUX, [0, 0]) * u.uJy,
                   error=np.append(ERROR, [0, 0]) * u.uJy)  # fmt: skip
    same(read(tmp_path, padded))
    edges = {"wl_low": WAVE * u.AA, "wl_up": (WAVE - 1) * u.AA}
    with pytest.raises(ValueError, match=r"'wl_low' is not below 'wl_up' in row 0"):
        read(tmp_path, table(wavelength=None, **edges))


def test_files_that_are_damaged_or_empty_are_named(tmp_path):
    for name in ("a.fits", "a.spec", "a.csv", "a.hdf5"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises((ValueError, OSError), match=name):
            read_spectrum(tmp_path / name, settings())
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  = nothing")
    with pytest.raises((ValueError, OSError), match=r"a\.fits"):
        read_spectrum(tmp_path / "a.fits", settings())
    with pytest.raises(FileNotFoundError, match=r"b\.fits: there is no such file"):
        read_spectrum(tmp_path / "b.fits", settings())
    (tmp_path / "a.spec").write_text("20000 1 0.1\n20010 1 0.1\n")
    with pytest.raises(ValueError, match=r"must begin with a line of 3 column names"):
        read_spectrum(tmp_path / "a.spec", settings())


# --- covariances --------------------------------------------------------------------------------

PLACE = np.arange(N)
COVARIANCE = ERROR[:, None] * ERROR * 0.5 ** np.abs(PLACE[:, None] - PLACE)


@pytest.mark.parametrize("kind", ["images", "column.fits", "column.hdf5", "beside a table"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_covariance_is_read_in_the_order_of_the_pixels(tmp_path, kind, reverse):
    step, path, say = (-1 if reverse else 1), tmp_path / "a.fits", []
    matrix = COVARIANCE[::step, ::step]
    columns = table(error=None)[::step]
    if kind == "images":
        header = fits.Header({"CTYPE1": "WAVE", "CUNIT1": "Angstrom", "CRPIX1": 1.0})
        header["CRVAL1"], header["CDELT1"] = columns["wavelength"][0], step * (WAVE[1] - WAVE[0])
        flux = fits.ImageHDU(FLUX[::step], header, name="FLUX")
        flux.header["BUNIT"] = "uJy"
        fits.HDUList([fits.PrimaryHDU(), flux, fits.ImageHDU(matrix, name="COVAR")]).writeto(path)
        spectrum = read_spectrum(path, settings(), say.append)
    elif kind == "beside a table":
        hdus = [fits.PrimaryHDU(), fits.table_to_hdu(columns), fits.ImageHDU(matrix, name="COVAR")]
        fits.HDUList(hdus).writeto(path)
        spectrum = read_spectrum(path, settings(), say.append)
    else:
        columns["covariance"] = matrix * u.uJy**2
        spectrum = read(tmp_path, columns, kind, say)
    same(spectrum)
    np.testing.assert_allclose(spectrum.covariance, COVARIANCE, rtol=1e-6)
    assert not say


def test_a_covariance_is_converted_with_the_flux_and_bad_pixels_are_no_part_of_it(tmp_path):
    factor = (1 * u.uJy).to_value(FLAM, PER_FREQUENCY)
    columns = table(flux=FLUX * factor * FLAM, error=None)
    columns["covariance"] = COVARIANCE * factor[:, None] * factor
    columns["mask"] = PLACE == 7
    columns["covariance"][7] = np.nan
    spectrum = read(tmp_path, columns)
    assert not spectrum.good[7] and spectrum.good.sum() == N - 1
    expected = np.where((PLACE == 7) | (PLACE == 7)[:, None], np.eye(N), COVARIANCE)
    np.testing.assert_allclose(spectrum.covariance, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:, :-1], r"has the shape \(200, 199\); expected a row and a column for each"),
        (lambda c: c + np.triu(c, 1), "is 0.01[0-9]+ uJy.2, and 0.00[0-9]+ the other way round"),
        (lambda c: np.outer(ERROR, ERROR), "not positive definite .* fewer independent pixels"),
        (lambda c: c * u.Jy**2, "is in 'Jy2', and the flux in 'uJy'; expected its square"),
    ],
)
def test_what_is_no_covariance_is_refused(tmp_path, change, message):
    columns = table(error=None)
    columns["covariance"] = change(COVARIANCE)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, columns)


def test_errors_beside_a_covariance_are_not_used_and_that_is_said(tmp_path):
    columns, say = table(error=9 * ERROR * u.uJy), []
    columns["covariance"] = COVARIANCE
    same(read(tmp_path, columns, say=say))
    assert say == ["errors are those of the covariance 'covariance', and not of 'error'"]
