"""README, docs and CONTRIBUTING: their commands and Python run, on small data; the site builds."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import example_files
import numpy as np
import pytest
from conftest import COMPONENTS, ROOT, command, train

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.columns import columns_table
from orrery.datamodules.dust import DustData
from orrery.datamodules.feniks import FeniksData
from orrery.datamodules.feniks.spectra import SPECTRA
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.datamodules.gems import GemsData
from orrery.datamodules.gyro import GyroData
from orrery.datamodules.mass_net import WideBinaryData
from orrery.datamodules.scatter_vae import ScatterVaeData
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.datamodules.zephyr import ZephyrData

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.stem: path.read_text() for path in FILES}
del PAGES["adding_a_component"]  # its test is test_adding_a_component.py
COMMANDS = {  # each once; in `sh` blocks are those that are not run
    re.sub(r" +", " ", line.split("  #")[0].strip()): None
    for text in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ") and "pip install" not in line
}
DECLARED = {
    "zephyr": ZephyrData,
    "gyro": GyroData,
    "scatter_vae": ScatterVaeData,
    "gc_emulator": GCStars,
    "dust": DustData,
    "mass_net": WideBinaryData,
    "sed_emulator": SedEmulatorData,
    "gems": GemsData,
    "abundances": AbundanceData,
    "feniks": FeniksData,
}
NOT_HERE = "gpu|submitit|devices=8|logger=wandb|inference=hmc|experiment=gc_emulator_(anis|cal|ref)"
SMALL_FIT = {  # what makes a training one of seconds
    "zephyr": "model.members=2 model.folds=2 model.n_grid=100 model.epochs=1",
    "scatter_vae": "data.n_train=300 data.n_test=50 data.batch_size=32 model.epochs=1",
    "dust": "data.n_stars=400 model.epochs=1 model.draws=2 model.tolerance=0.1 "
    "trainer.precision=32-true",
    "gyro": "model.epochs=1 model.members=1 model.n_grid=60 model.width=8",
    "mass_net": "model.epochs=1 model.members=2 model.width=8",
    "sed_emulator": "model.epochs=1",
    "gems": "model.epochs=1 data.duration=0.05",
    "abundances": "model.epochs=1",
    "feniks": "model.epochs=1 data.n_train=600 data.n_test=60 data.n_exact=100 "
    "data.n_calibration=100",
    "gc_emulator": "model.n_q=24 model.steps=200 model.n_stars=200 model.chains=2 model.warmup=6 "
    "model.draws=6 data.n_W0=24 data.n_g=20 data.n_val=16 data.n_test=12 data.n_mock=50 "
    "data.batch_size=96",
}
CHAINS = "model.chains=2 model.warmup=6 model.draws=6"
SMALL_EVALUATION = {  # of the first that the command names
    "xp_generated": "data.n=50",
    "gems_mock": "data.n_stars=3 data.duration=0.05 data.clusters=[M13]",
    "gems": "",
    "feniks_spectra": "model.templates=8",
    "feniks": "",
    "abundance_structures": "data.n_test=60 data.permutations=99",
    "chemical_evolution": "data.elements=[Fe,Mg]",  # of fewer parameters
    "abundances": "data.n_test=100",
    "gc_profile": CHAINS,
    "gc_stars": f"data.n_stars=30 {CHAINS}",
    "gc_sky": f"data.n_stars=30 {CHAINS}",
    "gc_emulator": f"data.n_test=12 data.n_mock=50 {CHAINS}",
    "scatter_vae": "data.n_test=50",
    "gyro": "data.n_test=100",
    "zephyr": "data.n_test=100",
    "mass_net": "data.n_test=200",
    "sed_emulator": "data.n_test=100 data.n_exact=200",
    "dust": "",
}


def small(line: str) -> list[str]:
    """The words of a command, with settings that make it one of seconds."""
    words = shlex.split(line)[1:]
    if re.search(NOT_HERE, line):  # composed: for other machines, or of many minutes
        of_sweep = ("-m", "hydra", "seed=", "output=", "data.path=a.fits,")
        return [*(word for word in words if not word.startswith(of_sweep)), "--cfg", "job"]
    if words[0] == "-m" or {"--help", "--cfg"} & set(words):
        return words
    if words[0] == "evaluate.py":
        return (
            words
            + next(SMALL_EVALUATION[name] for name in SMALL_EVALUATION if name in line).split()
        )
    if "init_from" in line:  # weights fit the settings that they were trained with
        return [*words, "model.epochs=1", "data.batch_size=64"]
    if "checkpoint=" in line:
        return words
    component = next(name for name in COMPONENTS if name in line)
    words = [word for word in words if not word.startswith(("model.nside", "model.n_radial"))]
    words += [] if "experiment=" in line else [f"experiment={component}_quick"]
    if "data.clusters=my.ecsv" in words:  # of two clusters
        words += ["data.n_per_cluster=100"]
    # two of the values of a sweep
    words = [re.sub("^(model.width=[^,]*,[^,]*).*", r"\1", word) for word in words]
    words += ["data.leave_out=Pleiades,M67"] if "leave_one_cluster_out" in line else []
    return words + SMALL_FIT[component].split()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The files that commands read."""
    folder = tmp_path_factory.mktemp("examples")
    example_files.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def folder(examples, tmp_path_factory):
    return shutil.copytree(examples, tmp_path_factory.mktemp("docs") / "folder")


# those that are the same once they are small run once
DISTINCT = {tuple(small(line)): line for line in COMMANDS}.values()


@pytest.mark.parametrize("line", DISTINCT, ids=[line[7:90] for line in DISTINCT])
def test_a_command_of_the_docs_runs(line, folder):
    words = small(line)
    if "<run>" in line:
        train("zephyr", folder / "run", evaluated=False)
        words = [word.replace("outputs/zephyr/<run>", str(folder / "run")) for word in words]
    if "*" in line and "data.path" not in line:  # the shell's work
        words = [str(f) for w in words for f in (sorted(folder.glob(w)) if "*" in w else [w])]
    if "--summary" in line:
        assert command(*words).returncode == 0
        return
    if words[:2] == ["-m", "benchmarks.gallery"]:
        words += ["--out", "gallery"]
    elif words[0] == "-m" and words[1].startswith("benchmarks") and "summarise" not in line:
        words += ["--help"]  # the peers are not here; the arguments are parsed
    if words[0] == "-m":
        done = command(*words, cwd=folder, PYTHONPATH=str(ROOT))
    else:
        done = command(str(ROOT / words[0]), *words[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    if "--cfg" not in words:
        for output in re.findall(r"(?:output=|--out )(\S+\.\w+)", line):
            assert (folder / output).stat().st_size > 0


def test_no_command_writes_over_a_file_that_another_reads(examples):
    written = {f for line in COMMANDS for f in re.findall(r"(?:output=|--out )(\S+\.\w+)", line)}
    assert written and not written & {f.name for f in examples.iterdir()}


def python_of(page: str) -> dict:
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        exec(code, names)
    return names


@pytest.mark.filterwarnings("ignore")  # of a star unlike those trained on, and of no solar scale
def test_the_python_of_abundances_runs(in_tmp):
    example_files.abundance_files(Path.cwd())
    names = python_of("abundances")
    (answer,) = names["answer"]
    assert 0 < answer["p_value"] <= 1 and answer["most_unusual"] in names["abundances"].elements
    assert -3 < answer["ti_h_expected"] < -1 and 0 < answer["ti_h_std"] < 0.5
    clusters, metallicity = names["masses"].from_clusters, names["masses"].from_metallicity
    assert 9 < metallicity.value < clusters.value < 11
    assert names["draws"]["slope"].shape == (1, 4, 300)


def test_the_python_of_catalogues_runs(in_tmp):
    names = python_of("catalogues")
    assert len(names["ages"]) == 2 and str(names["ages"]["age_q50"].unit) == "Gyr"


def test_the_python_of_dust_runs(in_tmp):
    names = python_of("dust")
    assert 0 < names["std"] < names["mean"]
    assert names["samples"].shape == (64,)


def test_the_python_of_gc_emulator_runs(in_tmp):
    names = python_of("gc_emulator")
    assert names["profile"].surface_density.shape == (1, 50)
    assert bool((names["profile"].surface_density.diff() < 0).all())
    assert names["W0"].grad.isfinite().all() and names["W0"].grad != 0


@pytest.mark.filterwarnings("ignore")  # of bands that its galaxies lack
def test_the_python_of_feniks_runs(in_tmp):
    example_files.feniks_files(Path.cwd())
    names = python_of("feniks")
    found, spectrum = names["found"], names["spectrum"]
    assert sorted(found["id"]) == [11, 12, 13, 14]
    assert (np.diff(found["p_candidate"]) <= 0).all() and found["p_candidate"].min() >= 0
    assert names["is_inside"].tolist() == [True, False]
    assert spectrum.good.sum() == 215 and 19500 < spectrum.wavelength[0] < 19520


@pytest.mark.filterwarnings("ignore")  # of what its two stars lack
def test_the_python_of_gems_runs(in_tmp):
    names = python_of("gems")
    assert set(names["hosts"]["host"]) <= set(names["gems"].clusters)
    assert names["hosts"]["host"][0] == "NGC 3201", "it has the velocity of the cluster"
    assert names["clusters"].names[names["i"]] == "NGC 6205" and len(names["clusters"]) == 150


def test_the_python_of_gyro_runs(in_tmp):
    assert 3 < python_of("gyro")["sun"]["age_q50"] < 6


def test_the_python_of_scatter_vae_runs(in_tmp):
    example_files.xp_files(Path.cwd())
    names = python_of("scatter_vae")
    assert names["made"]["spectrum"].shape == (100, 343)
    blue = np.searchsorted([500.0], 336.0)
    ours = names["again"][82 + blue]  # at 500 nm
    assert ours == pytest.approx(1e-15, rel=0.01)
    assert names["alike"]["row"][0] == 0 and len(names["odd"]) == 5


def test_the_python_of_sed_emulator_runs(in_tmp):
    names = python_of("sed_emulator")
    sed = names["sed"]
    assert sed["magnitude"].shape == (1, 20)
    assert 15 < sed["magnitude"].min() < sed["magnitude"].max() < 30
    assert 0 < sed["error"].max() < 0.1
    k_band = names["k_band"]
    assert (k_band["flux"] > 0).all() and (k_band["error"] < 0.01 * k_band["flux"]).all()
    within = (names["wavelength"] > 20600) & (names["wavelength"] < 23100)  # as of that band
    assert k_band["flux"][0, within].mean() == pytest.approx(names["bands"][0, 2], rel=0.03)


def test_the_python_of_zephyr_runs(in_tmp):
    pz = python_of("zephyr")["pz"]
    assert pz["pz"].shape == (4, len(pz.meta["z_grid"]))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_has_a_page_with_the_columns_that_it_declares(component):
    page = PAGES[component]
    assert f"<!-- columns: {component} -->\n\n{columns_table(DECLARED[component])}\n" in page
    for part in ("The method", "Training", "How good it is", "Limits, and when to distrust it"):
        assert f"## {part}" in page
    assert "https://arxiv.org/abs/" in page and "`flags`" in page


def test_the_page_of_feniks_has_the_columns_of_spectra():
    table = columns_table(SimpleNamespace(declared=SPECTRA))
    assert f"<!-- columns: feniks_spectra -->\n\n{table}\n" in PAGES["feniks"]


def test_the_table_of_zephyr_is_that_of_the_benchmark():
    done = command("-m", "benchmarks.zephyr", "--summary")
    assert done.returncode == 0 and done.stdout.strip() in PAGES["zephyr"]


@pytest.mark.skipif(not find_spec("mkdocs"), reason="mkdocs is not installed: pip install .[docs]")
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = {
        path.parent.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")
    }
    assert 'id="orrery.models.base.Component.loss"' in pages["api"]
    assert 'id="orrery.tables.Writer.write"' in pages["api"]
    assert "<math" in pages["zephyr"] and "arithmatex" not in pages["zephyr"]  # without a script
    assert "fonts.googleapis" not in pages["zephyr"]
    assert {path.stem for path in (ROOT / "docs/notebooks").iterdir()} == set(COMPONENTS)
    for component in COMPONENTS:  # an error in a cell has ended the build
        page = pages[f"notebooks/{component}"]
        figures = re.findall(r'<img [^>]*src="\.\./(\w+\.png)"', page)
        assert figures and all((site / "notebooks" / figure).is_file() for figure in figures)
        assert "Traceback" not in page and "evaluate.py" in page
