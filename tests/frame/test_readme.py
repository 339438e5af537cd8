"""README's commands and its Python run as they stand, on small data."""

import re
import shlex
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from conftest import ROOT, command, train
from test_docs import xp_files
from test_gc_profile import cluster_file

from orrery import pretrained
from orrery.datamodules.dust import DustData
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.physics.rotation import gyrochrones

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ") and "pip install" not in line
]
TRUTH = {"W0": 5.0, "g": 1.8, "log10_mass": 5.0, "log10_rh": 0.5}
PLACE = {"ra": 57.3, "dec": 28.6, "distance": 1.0, "pm_ra": 5.0, "pm_dec": -3.0, "rv": 20.0}
SMALL = {
    "train.py": ["experiment=zephyr_quick", "model.epochs=1"],
    "evaluate.py": ["data.n_test=100"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    table = Table({"id": np.arange(300), "ra": random.uniform(0, 360, 300), "dec": np.zeros(300)})
    for i, band in enumerate("ugrizy"):
        table[f"mag_{band}"] = 25 - 0.4 * i + random.normal(0, 1, 300)
        table[f"mag_err_{band}"] = random.uniform(0.02, 0.1, 300)
        table[f"MAG_{band}"], table[f"ERR_{band}"] = table[f"mag_{band}"], table[f"mag_err_{band}"]
    table["redshift"] = table["ZSPEC"] = random.uniform(0.1, 2, 300)
    table["survey"] = random.choice(["spec", "grism"], 300)
    table["tomographic_bin"] = random.integers(0, 3, 300)
    Table(GCStars(n_stars=60, truth=TRUTH).simulate("test")).write(folder / "stars.fits")
    seen = GCStars(n_stars=90, truth=TRUTH | PLACE, field=True, radius=[1.0, 20.0])
    Table(seen.simulate("test")).write(folder / "gaia.fits")
    cluster_file(folder / "cluster.hdf")
    dust = DustData(8, 12, 69.0, 1250.0, n_stars=400).simulate("fit")
    Table(dust).write(folder / "extinctions.fits")
    places = {"l": [10.0, 200.0], "b": [0.0, -30.0], "distance": [300.0, 900.0]}
    Table(places).write(folder / "sightlines.csv")
    xp_files(folder)
    stars = gyrochrones.simulate(np.random.default_rng(0), 3, 60)
    Table(stars).write(folder / "periods.csv")
    for name in ("cat.fits", "train.fits", "cat.parquet"):
        if name.endswith("fits"):
            table.write(folder / name)
        else:
            from orrery.tables import Writer

            with Writer(folder / name) as writer:
                writer.write({column: np.asarray(table[column]) for column in table.colnames})
    table[["id", *(c for c in table.colnames if c.startswith("mag_"))]].write(folder / "table.ecsv")
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_readme_runs(line, folder):
    words = shlex.split(line)[1:]
    if "gpu" in line or "submitit" in line or "devices=8" in line:  # not on this machine: compose
        words = [w for w in words if w != "-m" and not w.startswith(("hydra", "seed="))]
        words += ["--cfg", "job"]
    elif "init_from" in line:  # weights fit the settings that they were trained with
        words += ["model.epochs=1", "data.batch_size=64"]
    elif "dust" in line:
        words = [w for w in words if "nside" not in w and "radial" not in w]
        words += ["model.n_radial=12", "model.epochs=1", "model.draws=2"] if "train" in line else []
    elif "model=scatter_vae" in line:
        words += ["experiment=scatter_vae_quick", "data.batch_size=32"]
    elif "data=gc_" in line:
        words += ["model.chains=2", "model.warmup=20", "model.draws=20"]
    elif words[0] in SMALL and "--help" not in words and "--cfg" not in words:
        words += SMALL[words[0]]
    if "zephyr/<run>/last.ckpt" in line:
        train("zephyr", folder / "run", evaluated=False)
        last = folder / "run/last.ckpt"
        words = [re.sub(r"outputs/zephyr/<run>/last\.ckpt", str(last), word) for word in words]
        words = [word for word in words if word != "model.epochs=1"]
    if words[:1] == ["-m"]:  # the benchmark needs its own extra; its arguments are parsed
        return
    words[0] = str(ROOT / words[0])
    done = command(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    for output in re.findall(r"output=(\S+)", line):
        if "--cfg" not in words:
            assert (folder / output).stat().st_size > 0


def test_the_python_of_readme_runs(folder):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    place = SkyCoord(0 * u.deg, 0 * u.deg, distance=500 * u.pc, frame="galactic")
    names = {"table": Table.read(folder / "table.ecsv"), "coords": place}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(code, names)  # README is ours
    assert len(names["pz"]) == 300


def test_the_table_of_readme_is_that_of_the_benchmark():
    done = command("-m", "benchmarks.zephyr", "--summary")
    assert done.returncode == 0 and done.stdout.strip() in README


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target
    assert set(pretrained.names()) == set(
        re.findall(r"^\| `(\w+)` \| [^|]* \| \[card\]", README, re.M)
    )
