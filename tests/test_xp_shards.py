"""Shards of XP coefficients: what goes in comes out, once per epoch, or is refused by name."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from catalogues import read, run
from torch.utils.data import DataLoader
from xp_files import K, save, stars

from datamodules.catalogue.hdf5 import Hdf5Sink
from datamodules.xp_convert import PIXEL, convert, main
from datamodules.xp_shards import check, count, find, read_rows
from datamodules.xp_stream import ShardStream

XP = Path(__file__).parents[2] / "shared/data/xp"


@pytest.fixture
def shards(tmp_path):
    """Three shards of 300, 500 and 203 stars."""
    for i, n in enumerate((300, 500, 203)):
        save(tmp_path / f"{i}.npz", stars(n, first_pixel=1000 * i, seed=i))
    convert(sorted(tmp_path.glob("*.npz")), tmp_path / "shards")
    return tmp_path / "shards"


def epoch(shards, batch_size=100, number=0, workers=0, **how):
    """Ids of the batches of each rank."""
    ids = []
    for rank in range(how.get("world", 1)):
        stream = ShardStream(shards, batch_size, rank=rank, block=64, buffer=3, **how)
        stream.set_epoch(number)
        batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
        assert len(batches) == len(stream)
        ids.append([batch["source_id"].numpy() for batch in batches])
    return ids


# --- converting -----------------------------------------------------------------------------------


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
        ("[0.1 0.2 ... 0.3]", "rp_coefficient_correlations is no array of numbers"),
        ("oops", "rp_coefficient_correlations is no array of numbers"),
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
    with pytest.raises(ValueError, match="none of its rows is good"):
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


# --- reading --------------------------------------------------------------------------------------


def test_a_shard_half_written_is_never_read(shards, tmp_path):
    path = sorted(shards.iterdir())[0]
    hidden = shards / ".3.npz.part"  # as of a process that was killed
    shutil.copy(path, hidden)
    assert count(shards) == count(f"{shards}/*.h5") == 1003
    save(tmp_path / "3.npz", stars(4, first_pixel=9000))
    convert([tmp_path / "3.npz"], shards)
    assert not hidden.exists() and count(shards) == 1007
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(ValueError, match=rf"{path.name}.*never finished"):
        ShardStream(shards, 10)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(OSError, match=rf"{path.name}.*truncated"):
        ShardStream(shards, 10)


def test_a_damaged_column_is_found(shards, capsys):
    path = sorted(shards.iterdir())[1]
    with h5py.File(path, "r+") as file:
        file["rp_coefficients"][7, 2] += 1
    with pytest.raises(OSError, match=rf"{path.name}: rp_coefficients differs from its checksum"):
        check(shards)
    assert main(["check", str(shards)]) == 2 and path.name in capsys.readouterr().err


def test_shards_that_do_not_belong_together_are_refused(shards, tmp_path):
    other = save(tmp_path / "other.h5", stars(sizes={"bp": 4, "rp": 5}))
    odd = convert([other], tmp_path / "odd")
    with pytest.raises(ValueError, match=r"bp_coefficients is 6 x float32.*it is 4 x float32"):
        ShardStream([*odd, shards], 10)
    lean = convert([tmp_path / "0.npz"], tmp_path / "lean", correlations="none")
    both = [*lean, f"{shards}/xp_001*"]
    with pytest.raises(ValueError, match="no bp_coefficient_correlations"):
        find(both, ["source_id", "bp_coefficient_correlations"])
    assert len(find(both, ["source_id", "bp_coefficients"])[0]) == 2
    with pytest.raises(FileNotFoundError, match="no such shards"):
        ShardStream(tmp_path / "nowhere/*.h5", 10)
    with pytest.raises(ValueError, match="too few for one batch"):
        ShardStream(shards, 1004)
    with pytest.raises(ValueError, match=r"data\.batch_size=10 .* multiple of 4"):
        ShardStream(shards, 10, world=4)


def test_a_sample_is_spread_over_the_shards(shards):
    sample = read_rows(shards, 250, seed=1, columns=["source_id", "rp_coefficients"])
    assert list(sample) == ["source_id", "rp_coefficients"]
    assert sample["rp_coefficients"].shape == (250, K["rp"])
    assert len(np.unique(sample["source_id"])) == 250
    again = read_rows(shards, 250, seed=1)["source_id"]
    np.testing.assert_array_equal(sample["source_id"], again)
    assert set(read_rows(shards, 250, seed=2)["source_id"]) != set(again)
    whole = read_rows(shards, 10_000, seed=0)
    parts = [read_rows(shards, 10_000, 0, part=part) for part in ((0, 0.8), (0.8, 0.9), (0.9, 1))]
    sizes = [count(shards, part) for part in ((0, 0.8), (0.8, 0.9), (0.9, 1))]
    assert [len(part["source_id"]) for part in parts] == sizes and sum(sizes) == 1003
    ids = np.concatenate([part["source_id"] for part in parts])
    np.testing.assert_array_equal(np.sort(ids), np.sort(whole["source_id"]))


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_ranks_and_workers_share_every_epoch_out(world, workers, shards):
    ids = epoch(shards, world=world, workers=workers)
    assert [len(batches) for batches in ids] == [10] * world
    assert {len(batch) for batches in ids for batch in batches} == {100 // world}
    flat = np.concatenate([batch for batches in ids for batch in batches])
    assert len(np.unique(flat)) == 1000  # of 1003, each once
    assert set(flat) <= set(read_rows(shards, 2000, 0)["source_id"])


def test_seed_and_epoch_alone_choose_the_batches(shards):
    def same(one, other):
        return np.array_equal(np.stack(one), np.stack(other))

    first = epoch(shards)[0]
    assert same(first, epoch(shards)[0])
    assert not same(first, epoch(shards, number=1)[0])
    assert not same(first, epoch(shards, seed=1)[0])
    assert same(epoch(shards, workers=2)[0], epoch(shards, workers=2)[0])
    left_out = [set(np.concatenate(epoch(shards, number=i)[0])) for i in range(3)]
    assert len(set.union(*left_out)) == 1003


def test_workers_that_stay_see_the_epoch(shards):
    stream = ShardStream(shards, 100, block=64, buffer=3)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    for number in range(2):
        stream.set_epoch(number)
        found = np.stack([batch["source_id"].numpy() for batch in loader])
        np.testing.assert_array_equal(found, np.stack(epoch(shards, number=number)[0]))


def test_a_batch_mixes_shards_and_keeps_rows_together(shards, tmp_path):
    tables = [read(str(path)) for path in sorted(shards.iterdir())]
    table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    order = np.argsort(table["source_id"])
    for batch in ShardStream(shards, 100, block=32):
        ids = batch["source_id"].numpy()
        assert len(set(ids // (1000 * PIXEL))) == 3 and np.any(np.diff(ids) < 0)
        row = order[np.searchsorted(table["source_id"][order], ids)]
        for name, values in batch.items():
            np.testing.assert_array_equal(values.numpy(), table[name][row])


def test_a_part_of_each_shard_and_some_columns_can_be_streamed(shards):
    seen = []
    for part in ((0.0, 0.5), (0.5, 1.0)):
        stream = ShardStream(shards, 20, columns=["source_id", "bp_coefficients"], part=part)
        batches = list(stream)
        assert set(batches[0]) == {"source_id", "bp_coefficients"}
        seen.append({int(i) for batch in batches for i in batch["source_id"]})
    assert not seen[0] & seen[1] and [len(s) for s in seen] == [500, 500]


def test_streaming_is_fast_and_takes_constant_memory(tmp_path):
    program = f"""
import resource, time
import numpy as np, torch
from datamodules.xp_convert import convert
from datamodules.xp_stream import ShardStream
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = 30_000
for i in range(2):
    table = {{"source_id": np.arange(n) + i * n}}
    for band in ("bp", "rp"):
        for name in ("coefficients", "coefficient_errors"):
            table[f"{{band}}_{{name}}"] = np.ones((n, 55), np.float32)
    np.savez(f"{tmp_path}/{{i}}.npz", **table)
    del table
    convert([f"{tmp_path}/{{i}}.npz"], "{tmp_path}/out", correlations="none")
stream = ShardStream("{tmp_path}/out", 500, block=1024)
before, seconds = peak(), []
for _ in range(5):
    start = time.process_time()
    rows = sum(len(batch["source_id"]) for batch in stream)
    seconds.append(time.process_time() - start)
print(rows / min(seconds), peak() - before)
"""
    rate, grown = map(float, run(program).splitlines()[-1].split())
    assert rate > 1e5  # stars/s
    assert grown < 40_000  # kB; an epoch is 53 MB


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
