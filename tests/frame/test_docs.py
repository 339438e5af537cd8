"""The commands and the Python of the pages in docs/ run as they stand, on small data."""

import gzip
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from conftest import ROOT, command

from orrery.datamodules.dust import DustData
from orrery.datamodules.scatter_vae.convert import convert
from orrery.datamodules.scatter_vae.export import as_archived
from orrery.physics.gaia_xp import xp_mock
from orrery.physics.rotation import gyrochrones
from orrery.tables import Writer

PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
COMMANDS = [
    (page, line.split("  #")[0].strip())
    for page, text in PAGES.items()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
SMALL = {  # what makes a training one of seconds
    "scatter_vae": ["data.n_train=300", "data.n_test=50", "data.batch_size=32", "model.epochs=1"],
    "dust": ["data.n_stars=400", "model.epochs=1", "model.draws=2"],
    "gyro": ["model.epochs=1", "model.members=1", "model.n_grid=60", "model.width=8"],
}
JUDGED = "Pleiades NGC3532 M37 NGC2281 Praesepe NGC6811 NGC6819 Ruprecht147 M67 APer NGC2516 M34"


def xp_files(folder: Path) -> None:
    """What the archive gives of a few stars: a DataLink file, a bulk file, and its shards."""
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


def rotation_files(folder: Path) -> None:
    """A training table, one of another's names, and one as the archive gives it."""
    table = gyrochrones.simulate(np.random.default_rng(0), 12, 700)
    names = np.array(JUDGED.split())
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
        with Writer(folder / f"{name}.csv") as writer:
            writer.write({k: v for k, v in columns.items() if not k.startswith("true")})


def dust_files(folder: Path) -> None:
    """Stars as Zhang, Green & Rix give them, as another gives them, and places."""
    stars = DustData(8, 12, 69.0, 1250.0, n_stars=600).simulate("fit")
    rest = np.full((len(stars["l"]), 3), 7.0)
    with h5py.File(folder / "zgr23.h5", "w") as file:
        for name, more in (("stellar_params_est", ""), ("stellar_params_err", "_error")):
            file[name] = np.c_[rest, stars[f"extinction{more}"], stars[f"parallax{more}"]]
        place = SkyCoord(stars["l"] * u.deg, stars["b"] * u.deg, frame="galactic").icrs
        file["ra"], file["dec"] = place.ra.deg, place.dec.deg
        file["quality_flags"] = np.arange(len(rest)) % 3 * 7
    names = {"extinction": "av", "extinction_error": "e_av"}
    places = {"l": [10.0, 200.0], "b": [0.0, -30.0], "distance": [300.0, 900.0]}
    mine = {names.get(k, k): v for k, v in stars.items()}
    for name, columns in (("mine_dust", mine), ("sightlines", places)):
        with Writer(folder / f"{name}.csv") as writer:
            writer.write({k: np.asarray(v) for k, v in columns.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    xp_files(folder)
    rotation_files(folder)
    dust_files(folder)
    flux = 1 + 0.01 * np.random.default_rng(0).normal(size=(200, 30))
    np.savez(folder / "sampled.npz", flux=flux, flux_error=np.full_like(flux, 0.01))
    return folder


@pytest.mark.parametrize("page, line", COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_a_command_of_the_docs_runs(page, line, folder):
    words = shlex.split(line)[1:]
    if "*" in line and "data.path" not in line:  # the shell's work
        words = [str(f) for w in words for f in (sorted(folder.glob(w)) if "*" in w else [w])]
    if "devices=8" in line:
        words += ["--cfg", "job"]
    elif words[0] == "train.py":
        words += [] if "experiment=" in line else [f"experiment={page}_quick"]
        words += SMALL[page]
        words += ["data.leave_out=Pleiades,M67"] if words[1] == "-m" else []
    if words[0] == "-m":
        done = command(*words, cwd=folder, PYTHONPATH=str(ROOT))
    else:
        done = command(str(ROOT / words[0]), *words[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    for output in re.findall(r"(?:output=|--out )(\S+\.\w+)", line):
        assert (folder / output).stat().st_size > 0


def python_of(page: str) -> dict:
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        exec(code, names)
    return names


def test_the_python_of_dust_runs(in_tmp):
    names = python_of("dust")
    assert 0 < names["std"] < names["mean"]
    assert names["samples"].shape == (64,)


def test_the_python_of_gyro_runs(in_tmp):
    assert 3 < python_of("gyro")["sun"]["age_q50"] < 6


def test_the_python_of_scatter_vae_runs(in_tmp):
    names = python_of("scatter_vae")
    assert names["made"]["spectrum"].shape == (100, 343)
    blue = np.searchsorted([500.0], 336.0)
    ours = names["again"][82 + blue]  # at 500 nm
    assert ours == pytest.approx(1e-15, rel=0.01)
