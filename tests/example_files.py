"""The files that README and docs name, small."""

import gzip
from pathlib import Path

import h5py
import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.dust import DustData
from orrery.datamodules.feniks import FeniksData
from orrery.datamodules.feniks.defaults import BANDS as DISTANT_BANDS
from orrery.datamodules.feniks.spectra import FeniksSpectra
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.datamodules.gems import GemsData
from orrery.datamodules.scatter_vae.convert import convert
from orrery.datamodules.scatter_vae.export import as_archived
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.physics.ejections.clusters import cluster_table
from orrery.physics.gaia_xp import xp_mock
from orrery.physics.rotation import gyrochrones
from orrery.physics.wide_binaries import population
from orrery.physics.wide_binaries.population import Population
from orrery.tables import Writer

CLUSTERS = "Pleiades NGC3532 M37 NGC2281 Praesepe NGC6811 NGC6819 Ruprecht147 M67 APer NGC2516 M34"
TRUTH = {"W0": 5.0, "g": 1.8, "log10_mass": 5.0, "log10_rh": 0.5}
PLACE = {"ra": 57.3, "dec": 28.6, "distance": 1.0, "pm_ra": 5.0, "pm_dec": -3.0, "rv": 20.0}

EAZY_NUMBERS = {  # of filters, by the bands of feniks
    "B": 78, "V": 79, "rp": 81, "ip": 82, "zp": 83, "f125w": 203, "f160w": 205, "vista_J": 257,
    "vista_H": 258, "vista_Ks": 259,
}  # fmt: skip
ABUNDANCES = {"Fe": "Fe I", "Mg": "Mg I", "Ca": "Ca I", "Ni": "Ni I", "Ba": "Ba II", "Eu": "Eu II"}
CLUSTER_TABLE = """\
Star  Source  Age         [Fe/H]       [Mg/Fe]      [Ca/Fe]      Comments
----  ------  ----------  -----------  -----------  -----------  --------
AB05:
M08   RGB     -     -     -0.66  1.00  +0.22  -     +0.02  0.11  -
M11   RGB     -     -     -      -     +0.24  0.05  -0.04  0.10  -
CD06:
M08   RGB     -     -     -0.70  1.00  +0.30  0.05  -      -     -
              =====       =====        =====        =====
WMean:        12.95       -0.74        0.42         0.23
WSigma:       0.19        0.08         0.01         0.00
"""


def write(path: Path, columns: dict) -> None:
    with Writer(path) as writer:
        writer.write({name: np.asarray(values) for name, values in columns.items()})


def write_all(folder: Path) -> None:
    galaxy_files(folder)
    star_files(folder)
    cluster_file(folder / "cluster.hdf")
    write(folder / "models.csv", {"W0": [5.0, 7.0, 20.0], "g": [1.0, 1.2, 0.5]})
    xp_files(folder)
    rotation_files(folder)
    dust_files(folder)
    pair_files(folder)
    sed_files(folder)
    ejection_files(folder)
    abundance_files(folder)
    feniks_files(folder)


def ejection_files(folder: Path) -> None:
    """Stars in phase space, in Gaia's columns and in another's, and a table of clusters."""
    data = GemsData(clusters=["M13"], n_test_per_cluster=10, field_ratio=20, duration=0.05)
    stars = data.simulate("test")
    del stars["host"]
    stars["source_id"] = np.arange(len(stars["ra"]))
    distance = {name: stars.pop(name) for name in ("distance", "distance_error")}
    parallax = {"parallax": 1 / distance["distance"] - 0.04}
    parallax["parallax_error"] = 0.1 / distance["distance"]
    write(folder / "gaia_6d.fits", stars | parallax)
    other = {"r_med": 1e3 * distance["distance"], "r_error": 1e3 * distance["distance_error"]}
    other["RV"] = stars.pop("radial_velocity")
    write(folder / "halo_stars.fits", stars | other)
    table = cluster_table()
    chosen = [str(name) in ("NGC 6205", "NGC 6341") for name in table["name"]]
    new = table[chosen]
    new["name"] = [f"new {name}" for name in new["name"]]
    new.write(folder / "my.ecsv", format="ascii.ecsv")


def write_machine_readable(path: Path, table: Table) -> None:
    """As the AAS does, with two decimals, and blanks for NaN."""
    table = table.copy()
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            blank = np.isnan(table[name])
            table[name] = MaskedColumn(table[name].round(2), mask=blank, format=".2f")
    table.write(path, format="ascii.mrt")


def abundance_files(folder: Path) -> None:
    """Stars with abundances: wide and long tables, of streams, and of a cluster by two authors."""
    data = AbundanceData(elements=list(ABUNDANCES), n_test=150, missing=0.2)
    stars = data.simulate("test")
    iron, system = stars["fe_h"], np.char.replace(stars["structure"], "dwarf ", "Leo ")
    kirby = {"System": system, "Name": stars["name"], "FeH": iron, "e_FeH": stars["fe_h_error"]}
    mine = {"star": stars["name"], "fe_h": iron, "fe_h_error": stars["fe_h_error"]}
    for x in ("mg", "ca", "ni"):
        ratio, error = stars[f"{x}_h"] - iron, stars[f"{x}_h_error"]
        kirby |= {f"{x.title()}Fe": ratio, f"e_{x.title()}Fe": error}
        names = ("magnesium", "sigma_magnesium") if x == "mg" else (f"{x}_fe", f"{x}_fe_error")
        mine |= dict(zip(names, (ratio, error), strict=True))
    write_machine_readable(folder / "kirby18.txt", Table(kirby))
    few = {name: values[:20] for name, values in mine.items()}
    few["c_fe"] = np.where(np.arange(20) % 2, 0.5, np.nan)  # upper limits
    few |= {"c_fe_error": np.full(20, np.nan), "c_limit": np.isfinite(few["c_fe"]).astype(int)}
    write(folder / "my_stars.csv", few)
    write(folder / "stream.ecsv", {name: values[:12] for name, values in stars.items()})
    rows = []
    for i in range(24):
        star = f"{('Indus', 'Jhelum', 'Elqui')[i // 8]}_{i % 8}"
        for element, species in ABUNDANCES.items():
            x = element.lower()
            value, error = stars[f"{x}_h"][i], stars[f"{x}_h_error"][i]
            if np.isfinite(value):
                flag = "<" if stars[f"{x}_limit"][i] else "-"
                rows.append((star, species, flag, value, error, value - iron[i], error))
    names = ("Star", "Species", "ul", "[X/H]", "e_[X/H]", "[X/Fe]", "e_[X/Fe]")
    long = Table(rows=rows, names=names)
    long["ul"].description = "Formal 5{sigma} upper limit flag"
    for name in ("t6.txt", "ajabacb6t6_mrt.txt"):
        write_machine_readable(folder / name, long)
    (folder / "NGC0104.tbl").write_text(CLUSTER_TABLE)


def sed_files(folder: Path) -> None:
    """Photometry of mock galaxies, also as in catalogues of EAZY, and exact magnitudes."""
    data = SedEmulatorData(n_test=40)
    mocks = data.simulate("test")
    photometry = {name: v for name, v in mocks.items() if name.startswith("flux_")}
    known = {"ZSPEC": mocks["true_zred"], "EBV": np.full(40, 0.02)}
    write(folder / "galaxies.fits", {"id": np.arange(40), **photometry, **known})
    eazy = {
        name.replace("flux_err_", "e_").replace("flux_", "f_"): values / 0.3631
        for name, values in photometry.items()
    }
    write(folder / "eazy.fits", {"id": np.arange(40), **eazy})
    bands = {"g": "hsc_g", "r": "hsc_r", "Ks": "vista_vircam_Ks"}
    write(folder / "seds.fits", SedEmulatorData(bands=bands, n_train=300).simulate("fit"))


def feniks_files(folder: Path) -> None:
    """Distant galaxies, also as for EAZY, and the spectrum of one, also as for FAST++."""
    bands = {band: DISTANT_BANDS[band] for band in (*"ugrizyJHK", *EAZY_NUMBERS)}
    data = FeniksSpectra(
        bands=bands, n_test=4, depth=26.0, mock_z_range=[3.2, 3.9], mock_interlopers=0.0,
        mock_pixels=[19500, 23800, 20], signal_to_noise=10.0,
    )  # fmt: skip
    mocks = data.simulate("test")
    ids = np.arange(11, 15)
    photometry = {name: v for name, v in mocks.items() if name.startswith("flux_")}
    known = {"ZSPEC": mocks["true_zred"], "EBV": np.full(4, 0.02)}
    files = {"file": np.array(["spec/K_11.fits", "", "", ""])}
    write(folder / "distant.fits", {"id": ids, **photometry, **known, **files})
    nircam = {f"f{n}w": f"jwst_f{n}w" for n in ("090", "115", "150", "200", "277", "356", "444")}
    in_space = FeniksData(bands=nircam, n_test=4, depth=28.0).simulate("test")
    in_space = {name: v for name, v in in_space.items() if name.startswith("flux_")}
    write(folder / "jwst.fits", {"id": ids} | in_space)
    for_eazy: dict = {"id": ids}
    for band, number in EAZY_NUMBERS.items():
        for_eazy[f"F{number}"] = photometry[f"flux_{band}"] / 0.3631
        for_eazy[f"E{number}"] = photometry[f"flux_err_{band}"] / 0.3631
    Table(for_eazy).write(folder / "field.cat", format="ascii.commented_header")
    wavelength = mocks["spectrum_wavelength"]
    flux, error = (mocks[f"spectrum_{name}"] for name in ("flux", "error"))
    (folder / "spec").mkdir()
    table = Table({"wave_vac": wavelength[0] * 1e-4, "flux": flux[0], "err": error[0]})
    table["wave_vac"].unit, table["flux"].unit, table["err"].unit = "um", "uJy", "uJy"
    table.write(folder / f"spec/K_{ids[0]}.fits")
    per_angstrom = 2.99792458e-11 / wavelength[0] ** 2 / 1e-19  # 1 uJy, in 1e-19 erg/s/cm2/AA
    fast = {"wl_low": wavelength[0] - 10, "wl_up": wavelength[0] + 10}
    fast |= {"F11": flux[0] * per_angstrom, "E11": error[0] * per_angstrom}
    Table(fast).write(folder / "field.spec", format="ascii.commented_header")


def pair_files(folder: Path) -> None:
    """Wide binaries in the layout of El-Badry, Rix & Heintz (2021), and single stars."""
    pairs = population.simulate(1500, Population(), 0)
    write(folder / "wide_binaries.fits", pairs | {"ruwe1": np.ones(1500), "ruwe2": np.ones(1500)})
    stars = {"source_id": np.arange(50), "bp_rp": pairs["bp_rp1"][:50]}
    stars |= {"phot_g_mean_mag": pairs["phot_g_mean_mag1"][:50], "ebv": np.full(50, 0.01)}
    stars |= {name: pairs[f"{name}1"][:50] for name in ("parallax", "parallax_error")}
    write(folder / "gaia_stars.fits", stars)


def galaxy_files(folder: Path) -> None:
    """Photometry with redshifts, in columns of our names and of another's."""
    random = np.random.default_rng(0)
    table = {"id": np.arange(300), "ra": random.uniform(0, 360, 300), "dec": np.zeros(300)}
    for i, band in enumerate("ugrizy"):
        table[f"mag_{band}"] = 25 - 0.4 * i + random.normal(0, 1, 300)
        table[f"mag_err_{band}"] = random.uniform(0.02, 0.1, 300)
    table["redshift"] = random.uniform(0.1, 2, 300)
    table["survey"] = random.choice(["spec", "grism"], 300)
    table["secure"] = random.integers(0, 2, 300)
    table["tomographic_bin"] = random.integers(0, 3, 300)
    table["w"] = random.uniform(0.5, 2, 300)
    mine = {f"MAG_{band}": table[f"mag_{band}"] for band in "ugrizy"}
    mine |= {f"ERR_{band}": table[f"mag_err_{band}"] for band in "ugrizy"}
    mine |= {"ZSPEC": table["redshift"]}
    write(folder / "table.ecsv", {k: v for k, v in table.items() if k.startswith(("id", "mag_"))})
    for name in (
        "cat.fits",
        "cat_2.fits",
        "train.fits",
        "cat.parquet",
        "zcosmos_train.hdf5",
        "cosmos_train.hdf5",
    ):
        write(folder / name, table | (mine if name in ("cat.fits", "train.fits") else {}))


def star_files(folder: Path) -> None:
    """Stars of a cluster: in phase space, and on the sky among those of a field."""
    write(folder / "stars.fits", GCStars(n_stars=40, truth=TRUTH).simulate("test"))
    sky = GCStars(n_stars=45, truth=TRUTH | PLACE, field=True, radius=[1.0, 20.0])
    write(folder / "gaia.fits", sky.simulate("test"))


def cluster_file(path: Path, distance: float | None = 5.0) -> Path:
    """Profiles in the layout of GCfit's."""
    r = np.array([0.1, 0.5, 2.0, 8.0])
    with h5py.File(path, "w") as file:
        file.attrs["RA"] = 6.0
        initials = file.create_group("initials")
        if distance is not None:
            initials.attrs["d"] = distance
        counts = file.create_group("number_density")
        add(counts, "r", 60 * r, "arcsec")
        add(counts, "Σ", np.array([100.0, 80, 20, 1]) / 3600, "1 / arcsec2")
        add(counts, "ΔΣ", np.array([5.0, 4, 1, 0]) / 3600, "1 / arcsec2")
        counts.attrs["background"] = 0.5 / 3600
        file.create_group("proper_motion")
        motion = file.create_group("proper_motion/hubble")
        add(motion, "r", r, "arcmin")
        for name, value in (("PM_R", 0.4), ("PM_T", 0.38), ("PM_tot", 0.39)):
            add(motion, name, np.full(4, 1e-3 * value), "arcsec/yr")
            add(motion, f"Δ{name}", np.full(4, 0.02), "mas / yr")
        speeds = file.create_group("velocity_dispersion/keck")
        add(speeds, "r", r, "arcmin")
        add(speeds, "σ", np.array([9.0, 9, 8, 6]), "km/s")
        add(speeds, "Δσ,up", np.full(4, 0.5), "km / s")
        add(speeds, "Δσ,down", np.full(4, 400.0), "m/s")
        file.create_group("mass_function/hubble")
        file.create_group("pulsar")
    return path


def add(group, name, values, unit):
    if name in group:
        del group[name]
    group[name] = values
    if unit:
        group[name].attrs["unit"] = unit


def xp_files(folder: Path) -> None:
    """BP/RP spectra: a DataLink file, a bulk file and its shards, and sampled ones."""
    table = xp_mock.simulate(120, np.random.default_rng(0))
    table["source_id"] = np.sort(table["source_id"])
    columns = {k: v.astype(float) if v.ndim > 1 else v for k, v in table.items()}
    archived = as_archived(columns)
    with Writer(folder / "XP_CONTINUOUS_RAW.csv") as writer:
        writer.write({name: values[:5] for name, values in archived.items()})
    with Writer(folder / "bulk.csv") as writer:
        writer.write(archived)
    bulk = folder / "XpContinuousMeanSpectrum_000000-003111.csv.gz"
    bulk.write_bytes(gzip.compress((folder / "bulk.csv").read_bytes(), 1))
    convert([bulk], folder / "xp_shards")
    flux = 1 + 0.01 * np.random.default_rng(0).normal(size=(200, 30))
    np.savez(folder / "sampled.npz", flux=flux, flux_error=np.full_like(flux, 0.01))


def rotation_files(folder: Path) -> None:
    """Stars with periods, a training table, one of another's names, and one of the archive's."""
    write(folder / "periods.csv", gyrochrones.simulate(np.random.default_rng(0), 3, 60))
    table = gyrochrones.simulate(np.random.default_rng(0), 12, 700)
    names = np.array(CLUSTERS.split())
    table["cluster"] = names[[int(name[3:]) - 1 for name in table["cluster"]]]
    gaia = dict(zip(("source_id", "best_rotation_period", "best_rotation_period_error", "bp_rp"),
                    (table[k] for k in ("star_id", "prot_d", "e_prot_d", "bp_rp0")),
                    strict=True))  # fmt: skip
    gaia |= {"e_bp_rp": table["e_bp_rp0"], "azero_gspphot": np.full(700, 0.1)}
    gaia |= {"phot_g_mean_mag": table["g0"], "parallax": np.full(700, 2.0)}
    gaia |= {"logg_gspphot": np.full(700, 4.5)}
    mine = {"name" if k == "cluster" else k.replace("_myr", ""): v for k, v in table.items()}
    tables = {"clusters": table, "members": table, "mine": mine, "gaia": gaia}
    for name, columns in tables.items():
        write(folder / f"{name}.csv", {k: v for k, v in columns.items() if k[:4] != "true"})


def dust_files(folder: Path) -> None:
    """Stars as Zhang, Green & Rix give them, in our names and in another's, and places."""
    stars = DustData(8, 12, 69.0, 1250.0, n_stars=600).simulate("fit")
    rest = np.full((len(stars["l"]), 3), 7.0)
    with h5py.File(folder / "zgr23.h5", "w") as file:
        for name, more in (("stellar_params_est", ""), ("stellar_params_err", "_error")):
            file[name] = np.c_[rest, stars[f"extinction{more}"], stars[f"parallax{more}"]]
        place = SkyCoord(stars["l"] * u.deg, stars["b"] * u.deg, frame="galactic").icrs
        file["ra"], file["dec"] = place.ra.deg, place.dec.deg
        file["quality_flags"] = np.arange(len(rest)) % 3 * 7
    names = {"extinction": "av", "extinction_error": "e_av"}
    write(folder / "extinctions.fits", stars)
    write(folder / "mine_dust.csv", {names.get(k, k): v for k, v in stars.items()})
    places = {"l": [10.0, 200.0], "b": [0.0, -30.0], "distance": [300.0, 900.0]}
    write(folder / "sightlines.csv", places)
