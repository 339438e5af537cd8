"""Gaia's files of XP coefficients become shards: what goes in comes out, or is refused by name."""

import numpy as np
import pytest
from catalogues import read
from conftest import ROOT
from xp_files import save, stars

from orrery.datamodules.scatter_vae.convert import PIXEL, convert, main
from orrery.datamodules.scatter_vae.shards import check, count, read_rows
from orrery.tables.hdf5 import Hdf5Sink

XP = ROOT.parent / "shared/data/xp"


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".fits", ".h5", ".npz", ".parquet"])
def test_every_format_gives_the_same_shard(ending, tmp_path):
    table = stars() | {"phot_g_mean_flux": np.linspace(10, 100, 40, dtype=np.float32)}
    (shard,) = convert([save(tmp_path / f"x{ending}", table)], tmp_path / "out")
    assert shard == tmp_path / "out/xp_000003-000012.h5"
    assert list(shard.parent.iterdir()) == [shard]
    back = read(str(shard))
    assert list(back) == list(table)
    for name, values in table.items():
        half = name.endswith("correlations")
        assert back[name].dtype == ("f2" if half else "i8" if name == "source_id" else "f4")
        tolerance = 5e-4 if half else 2e-7 * np.nanmax(np.abs(values))
        np.testing.assert_allclose(back[name], values, atol=tolerance, rtol=0)
    assert np.isnan(back["bp_coefficients"]).all(1).tolist() == [i == 1 for i in range(40)]
    assert check(tmp_path / "out") == 1 and count(tmp_path / "out") == 40


def test_correlations_may_be_kept_in_full_or_left_out(tmp_path):
    table = stars()
    file = save(tmp_path / "x.fits", table)
    (full,) = convert([file], tmp_path / "full", correlations="full")
    name = "rp_coefficient_correlations"
    np.testing.assert_array_equal(read(str(full))[name], table[name])
    (none,) = convert([file], tmp_path / "none", correlations="none")
    assert name not in read(str(none))
    lean = save(tmp_path / "lean.npz", {n: v for n, v in table.items() if "corr" not in n})
    with pytest.raises(ValueError, match=r"lean\.npz: has no column bp_.*--correlations none"):
        convert([lean], tmp_path / "out")
    assert count(convert([lean], tmp_path / "out", correlations="none")) == 40


def test_what_is_done_is_skipped(tmp_path, capsys):
    files = [save(tmp_path / f"{i}.npz", stars(first_pixel=100 * i)) for i in range(2)]
    first = convert(files[:1], tmp_path / "out")
    written = first[0].stat().st_mtime_ns
    again = convert(files, tmp_path / "out")
    assert again[0] == first[0] and first[0].stat().st_mtime_ns == written
    assert "0.npz: is in" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"0\.npz.*--correlations half; delete"):
        convert(files, tmp_path / "out", correlations="full")
    # another file of that name, and of the same pixels, takes nothing's place
    (tmp_path / "other").mkdir()
    other = save(tmp_path / "other/0.npz", stars(39))
    assert convert([other], tmp_path / "out") == [tmp_path / "out/xp_000003-000012.h5"]
    assert convert([save(tmp_path / "y.npz", stars(38))], tmp_path / "out") == [
        tmp_path / "out/xp_000003-000012_2.h5"
    ]
    assert count(tmp_path / "out") == 40 + 40 + 39 + 38


def spoil(column, row, value):
    def change(table):
        table[column][row] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("rp_coefficients", (5, 2), np.nan), "rp_coefficients are not all finite"),
        (spoil("bp_coefficients", (5, 0), np.inf), "bp_coefficients are not all finite"),
        (spoil("bp_coefficient_errors", (5, 1), 0), "errors are not all positive"),
        (spoil("bp_coefficient_errors", (5, 1), -1), "errors are not all positive"),
        (spoil("rp_coefficient_errors", (5, 1), np.nan), "errors are not all positive"),
        (spoil("rp_coefficient_errors", 5, np.nan), "rp has coefficients or errors, but not both"),
        (spoil("bp_coefficients", 5, np.nan), "bp has coefficients or errors, but not both"),
        (spoil("rp_coefficient_correlations", (5, 3), 1.1), "correlations are not all from -1"),
        (spoil("rp_coefficient_correlations", (5, 3), np.nan), "correlations are not all from -1"),
        (spoil("rp_coefficient_correlations", 5, np.nan), "correlations are missing"),
        (spoil("source_id", 5, 3 * PIXEL + 1000), "source_id is that of an earlier row"),
    ],
)
@pytest.mark.parametrize("ending", [".csv.gz", ".h5"])
def test_a_bad_row_is_refused_or_dropped(change, message, ending, tmp_path, capsys):
    table = stars()
    change(table)
    file = save(tmp_path / f"x{ending}", table)
    with pytest.raises(ValueError) as refused:
        convert([file], tmp_path / "out")
    for part in (f"x{ending}: row 5 (source_id {table['source_id'][5]})", message, "--skip-bad"):
        assert part in str(refused.value)
    assert not list((tmp_path / "out").iterdir())
    (shard,) = convert([file], tmp_path / "out", skip_bad=True)
    assert "dropped 1: " in (said := capsys.readouterr().out) and message in said
    kept = np.delete(table["source_id"], 5)
    np.testing.assert_array_equal(read(str(shard))["source_id"], kept)
    assert check(shard) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("[0.1,0.2]", "rp_coefficient_correlations has 2 numbers, expected 10"),
        ("[0.1 0.2 ... 0.3]", "rp_coefficient_correlations is not an array of numbers"),
        ("oops", "rp_coefficient_correlations is not an array of numbers"),
    ],
)
def test_a_text_that_is_no_such_array_is_refused_or_dropped(wrong, message, tmp_path):
    file = save(tmp_path / "x.csv", stars(4))
    lines = file.read_text().splitlines()
    before, _ = lines[3].rsplit(',"(', 1)
    file.write_text("\n".join([*lines[:3], f'{before},"{wrong}"', lines[4]]) + "\n")
    with pytest.raises(ValueError, match=rf"x\.csv: row 2 \(source_id \d+\): {message}"):
        convert([file], tmp_path / "out")
    assert count(convert([file], tmp_path / "out", skip_bad=True)) == 3


def test_repeated_ids_are_found_across_chunks_and_out_of_order(tmp_path):
    table = stars(2500, sizes={"bp": 3, "rp": 3})
    order = np.random.default_rng(0).permutation(2500)
    table = {name: values[np.append(order, order[[0, 2400]])] for name, values in table.items()}
    file = save(tmp_path / "x.npz", table)
    with pytest.raises(ValueError, match=r"row 2500 .*earlier row; 2 of the rows 2048 to 2501"):
        convert([file], tmp_path / "out")
    assert count(convert([file], tmp_path / "out", skip_bad=True)) == 2500


def test_what_cannot_become_a_shard_is_refused(tmp_path):
    nothing = {name: values[1:2].copy() for name, values in stars().items()}
    for name in nothing:
        if name.startswith("rp"):
            nothing[name][:] = np.nan
    with pytest.raises(ValueError, match="no row has coefficients"):
        convert([save(tmp_path / "x.csv", nothing)], tmp_path / "out")
    with pytest.raises(ValueError, match="has no column source_id"):
        convert([save(tmp_path / "y.npz", {"a": np.zeros(4)})], tmp_path / "out")
    rounded = stars() | {"source_id": stars()["source_id"].astype(float)}
    with pytest.raises(ValueError, match="source_id is float64"):
        convert([save(tmp_path / "v.h5", rounded)], tmp_path / "out")
    zeros = stars()
    zeros["rp_coefficient_errors"][:] = 0
    with pytest.raises(ValueError, match="none of its rows is valid"):
        convert([save(tmp_path / "z.h5", zeros)], tmp_path / "out", skip_bad=True)
    with pytest.raises(ValueError, match="half, full, none"):
        convert([save(tmp_path / "w.h5", stars())], tmp_path / "out", correlations="quarter")
    assert not list((tmp_path / "out").iterdir())


def test_a_truncated_file_leaves_nothing_and_stops_no_other(tmp_path, capsys):
    whole = save(tmp_path / "b.csv.gz", stars(400))
    cut = tmp_path / "a.csv.gz"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(OSError, match=r"a\.csv\.gz.*truncated"):
        convert([cut], tmp_path / "out")
    assert main(["convert", str(cut), str(whole), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "a.csv.gz: looks truncated" in said.err and "1 of 2 files" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["xp_000003-000102.h5"]
    assert main(["check", str(tmp_path / "out/*.h5")]) == 0
    assert main(["check", str(tmp_path / "none/*.h5")]) == 2


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    file = save(tmp_path / "x.h5", stars())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Hdf5Sink, "write", full)
    with pytest.raises(OSError, match=r"writing a shard to .*out failed.*No space"):
        convert([file], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not XP.exists(), reason="the real files are not here")
def test_real_files_become_shards(tmp_path):
    files = sorted(XP.glob("XP_CONTINUOUS_RAW*"))
    made = convert(files, tmp_path)
    assert [count(path) for path in made] == [2, 2, 2, 3, 3]
    one, other = read(str(made[0])), read(str(made[2]))  # CSV and FITS
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    rows = read_rows(tmp_path, 12, 0)
    missing = np.isnan(rows["bp_coefficients"]).all(1)
    assert rows["bp_coefficient_correlations"].shape == (12, 1485) and missing.sum() == 1
