"""The commands and the Python of the pages in docs/ run as they stand, on small data."""

import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command

from datamodules.catalogue import Writer
from datamodules.xp_convert import convert
from datamodules.xp_export import as_archived
from physics import xp_mock

PAGE = (ROOT / "docs/scatter_vae.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
]


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    xp_files(folder)
    flux = 1 + 0.01 * np.random.default_rng(0).normal(size=(200, 30))
    np.savez(folder / "sampled.npz", flux=flux, flux_error=np.full_like(flux, 0.01))
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_docs_runs(line, folder):
    words = shlex.split(line)[1:]
    if "*" in line and "data.path" not in line:  # the shell's work
        words = [str(f) for w in words for f in (sorted(folder.glob(w)) if "*" in w else [w])]
    if "devices=8" in line:
        words += ["--cfg", "job"]
    elif words[0] == "train.py":
        sampled = "scatter_vae_sampled" in line
        words += ["model.epochs=1"] if sampled else ["experiment=scatter_vae_quick"]
        words += ["data.n_train=300", "data.n_test=50", "data.batch_size=32", "model.epochs=1"]
    if words[0] == "-m":
        done = command(*words, cwd=folder, PYTHONPATH=str(ROOT))
    else:
        done = command(str(ROOT / words[0]), *words[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    for output in re.findall(r"(?:output=|--out )(\S+\.\w+)", line):
        assert (folder / output).stat().st_size > 0


def test_the_python_of_the_docs_runs(in_tmp):
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, names)
    assert names["made"]["spectrum"].shape == (100, 343)
    blue = np.searchsorted([500.0], 336.0)
    ours = names["again"][82 + blue]  # at 500 nm
    assert ours == pytest.approx(1e-15, rel=0.01)
