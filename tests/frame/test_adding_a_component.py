"""docs/adding_a_component.md, executed as it stands in a copy of the repository."""

import re
import shlex
import subprocess

import numpy as np
import pytest
from astropy.table import Table
from conftest import ROOT, command

PAGE = (ROOT / "docs/adding_a_component.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml) title=\"(.*?)\"\n(.*?)```", PAGE, re.S))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's files, without checkpoints, and the four files of the page."""
    folder = tmp_path_factory.mktemp("clone")
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kept = [name for name in names.split("\n") if name and not name.endswith((".ckpt", ".png"))]
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (folder / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for name, text in FILES.items():
        (folder / name).write_text(text)
    galaxies = {"id": np.arange(5), "g_r": np.linspace(0.3, 0.9, 5)}
    Table(galaxies).write(folder / "galaxies.csv")
    return folder


def lines(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return block


def run_text(copy, code):
    (copy / "lines.py").write_text(code)
    return command("lines.py", cwd=copy)


def test_a_component_is_four_files():
    assert sorted(FILES) == [
        *("configs/data/colour_mass.yaml", "configs/model/colour_mass.yaml"),
        *("datamodules/colour_mass.py", "models/colour_mass.py"),
    ]
    assert len(FILES["datamodules/colour_mass.py"].strip().splitlines()) < 40


def test_the_page_runs_as_it_stands(copy):
    train, evaluate, contract = lines("bash").strip().splitlines()
    run = "hydra.run.dir=outputs/colour_mass/run"
    for line, more in ((train, [run]), (evaluate, []), (contract, ["-q", "-n", "0"])):
        done = command(*shlex.split(line)[1:], *more, cwd=copy)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout and "failed" not in done.stdout
    predicted = Table.read(copy / "ml.fits")
    assert predicted.colnames == ["id", "log_ml", "log_ml_std"]
    assert str(predicted["log_ml"].unit) == "dex"
    expected = 1.5 * np.linspace(0.3, 0.9, 5) - 0.6
    np.testing.assert_allclose(predicted["log_ml"], expected, atol=0.03)
    python = lines("python") + "\nprint(ratios['log_ml'][1] - ratios['log_ml'][0])"
    done = run_text(copy, python)
    assert float(done.stdout) == pytest.approx(0.45, abs=0.03), done.stderr


@pytest.mark.parametrize(
    "spoilt, message",
    [
        ({"g_r": [0.4, np.nan]}, "g_r"),
        ({"g_r": [0.4, -999.0]}, "g_r"),
        ({"colour": [0.4, 0.5]}, "g_r"),
        ({"g_r": [0.4, 0.5], "log_ml": [0.1, 0.2]}, "e_log_ml"),
    ],
    ids=["nan", "sentinel", "missing column", "truth without its error"],
)
def test_what_cannot_be_right_is_refused_without_a_line_of_the_author(copy, spoilt, message):
    code = (
        f"import sys\nfrom numpy import nan\n"
        f"from orrery.datamodules.colour_mass import ColourMassData\n"
        f"data = ColourMassData(split='all')\ndata.table = {spoilt!r}\n"
        f"try:\n    list(data.prediction_batches())\n"
        f"except ValueError as error:\n    print(error)\n"
    )
    done = run_text(copy, code)
    assert message in done.stdout, done.stderr
