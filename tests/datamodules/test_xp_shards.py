"""Shards of XP coefficients: every star once per epoch, in an order that seed and epoch choose."""

import shutil

import h5py
import numpy as np
import pytest
from catalogues import read, run
from torch.utils.data import DataLoader
from xp_files import K, save, stars

from orrery.datamodules.scatter_vae.convert import PIXEL, convert, main
from orrery.datamodules.scatter_vae.shards import check, count, find, read_rows
from orrery.datamodules.scatter_vae.stream import ShardStream


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
    with pytest.raises(ValueError, match=rf"{path.name}.*unfinished"):
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
    with pytest.raises(FileNotFoundError, match="no shards here"):
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
from orrery.datamodules.scatter_vae.convert import convert
from orrery.datamodules.scatter_vae.stream import ShardStream
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
