"""One name, `orrery`, is installed, and it works in a folder that has a `models/` of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from conftest import ROOT, Done, fresh_python

pytestmark = pytest.mark.slow
LINKED = [path.name for path in (ROOT / "orrery").iterdir() if path.is_symlink()]
NOT_INSTALLED = {"figures/gallery"}  # README's pictures
AGE = """
import configs, models, orrery
from orrery import load
print(orrery.__file__, models.MINE, load("gyro").age(prot=25.4, bp_rp0=0.82)["age_q50"])
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks, or would track."""
    clone = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, found.split("\0")):
        source, copy = ROOT / name, clone / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        elif source.exists():
            shutil.copy(source, copy)
    return clone


@pytest.fixture(scope="module")
def dist(clone: Path) -> Path:
    """The folder of the wheel and of the sdist that it was built from."""
    done = fresh_python("-m", "build", "--no-isolation", ".", cwd=clone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return clone / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("orrery-*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with packages whose names are those of ours, and a catalogue."""
    folder = tmp_path_factory.mktemp("users")
    for name in ("models", "configs", "physics", "figures"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("MINE = 'mine'\n")
    Table({"star": ["Sun", "b"], "prot_d": [25.4, 10.0], "bp_rp0": [0.82, 1.1]}).write(
        folder / "stars.csv"
    )
    return folder


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the wheel."""
    target = tmp_path_factory.mktemp("site")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = fresh_python(*pip, str(wheel.filename))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def editable(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the clone is installed by `pip install -e`."""
    environment = tmp_path_factory.mktemp("environment")
    done = fresh_python("-m", "venv", "--without-pip", str(environment))
    assert done.returncode == 0, done.stderr
    python = environment / "bin/python"
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    # the libraries of this environment, without what it has installed in editable mode
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = fresh_python(*pip, "--ignore-installed", "--no-build-isolation", "-e", str(clone))
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path | str, folder: Path, *words: str, **env: str) -> Done:
    """Run Python in the user's folder, without what this process finds on its path."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *words],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def installable() -> set[str]:
    """The files of the package, by their names in it."""
    suffixes = {".py", ".yaml", ".npz", ".csv", ".ecsv", ".ckpt", ".md", ".jinja", ".LICENSE"}
    found = {p.relative_to(ROOT) for p in (ROOT / "orrery").rglob("*")}
    for name in LINKED:
        found |= {"orrery" / p.relative_to(ROOT) for p in (ROOT / name).rglob("*")}
    return {
        str(path)
        for path in found
        if path.suffix in suffixes and not any(part in str(path) for part in NOT_INSTALLED)
    }


def test_the_wheel_holds_one_name_with_every_file_of_it_once(wheel):
    names = wheel.namelist()
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    package = {name for name in names if name not in metadata}
    assert {name.split("/")[0] for name in package} == {"orrery"}
    assert package == installable()
    assert {
        "orrery/train.py",
        "orrery/checkpoints/gyro.ckpt",
        "orrery/configs/train.yaml",
    } < package
    assert len(names) == len(set(names))
    contents = [(i.CRC, i.file_size) for i in wheel.infolist() if i.file_size > 100]
    assert len(contents) == len(set(contents)), "a file is there twice"


def test_the_sdist_holds_files_where_the_clone_has_links(wheel, dist):
    (path,) = dist.glob("orrery-*.tar.gz")
    with tarfile.open(path) as sdist:
        members = {member.name.split("/", 1)[-1]: member for member in sdist}
    for name in wheel.namelist():
        if name.startswith("orrery/"):
            assert members[name].isreg(), name


def test_a_wheel_predicts_where_the_user_has_models_of_his_own(installed, folder):
    path = {"PYTHONPATH": str(installed)}
    done = run(sys.executable, folder, "-c", AGE, **path)
    file, mine, age = done.stdout.split()
    assert Path(file).is_relative_to(installed) and mine == "mine" and 3 < float(age) < 8
    words = ["checkpoint=gyro", "data.path=stars.csv", "output=wheel.csv", "data.keep=[star]"]
    run(sys.executable, folder, "-m", "orrery", "evaluate", *words, **path)
    ages = Table.read(folder / "wheel.csv")
    assert list(ages["star"]) == ["Sun", "b"]
    assert ages["age_q50"][0] == pytest.approx(float(age), rel=1e-3)


def test_a_wheel_trains_in_two_processes_and_writes_where_the_user_is(installed, folder):
    words = ["model=gyro", "experiment=gyro_quick", "model.epochs=1"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    path = {"PYTHONPATH": str(installed)}
    done = run(sys.executable, folder, "-m", "orrery", "train", *words, *ddp, **path)
    assert "metrics, figures and report.html" in done.stdout
    (best,) = folder.glob("outputs/gyro/*/best.ckpt")
    assert (best.parent / "train_ddp_process_1.log").exists(), "there was one process"
    assert not (installed / "outputs").exists()


def test_an_editable_install_predicts_where_the_user_has_models_of_his_own(editable, clone, folder):
    file, mine, age = run(editable, folder, "-c", AGE).stdout.split()
    assert Path(file).is_relative_to(clone) and mine == "mine" and 3 < float(age) < 8
    assert (
        "Groups to choose from" in run(editable, folder, "-m", "orrery", "train", "--help").stdout
    )


def test_a_clone_predicts_where_the_user_has_models_of_his_own(clone, folder):
    words = ["checkpoint=gyro", "data.path=stars.csv", "output=clone.csv"]
    run(sys.executable, folder, str(clone / "evaluate.py"), *words)
    assert np.isfinite(Table.read(folder / "clone.csv")["age_q50"]).all()


def test_python_m_orrery_lists_the_entry_points_without_torch(folder):
    for words in ([], ["--help"], ["train", "--help"]):
        program = (
            f"import runpy, sys; sys.argv = {['orrery', *words]!r}\n"
            "try: runpy.run_module('orrery', run_name='__main__', alter_sys=True)\n"
            "except SystemExit: pass\n"
            "print('heavy', {'torch', 'lightning', 'astropy', 'numpy'} & set(sys.modules))"
        )
        printed = run(sys.executable, ROOT, "-c", program).stdout
        assert ("train" in printed and "evaluate" in printed) or "Groups to choose" in printed
        assert printed.strip().endswith("heavy set()")


def test_an_unknown_entry_point_is_refused():
    done = fresh_python("-m", "orrery", "trane")
    assert done.returncode != 0 and "there is no entry point 'trane'" in done.stderr
    assert "Traceback" not in done.stderr
