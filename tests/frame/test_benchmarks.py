"""`python -m benchmarks`: what it leaves out, and the ratios of the committed tables."""

import csv
import sys

import numpy as np
import pytest

from orrery.benchmarks import __main__ as benchmarks
from orrery.benchmarks import history


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    benchmarks.main()


def test_the_summary_is_the_ratio_of_the_tables(monkeypatch, tmp_path, capsys):
    call(monkeypatch, "--summary", "--out", str(tmp_path / "summary.csv"))
    with (benchmarks.HERE / "zephyr.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "dc2"]
    ours, forest = (
        np.mean([float(row["crps"]) for row in rows if row["method"] == method])
        for method in ("zephyr", "rf")
    )
    with (tmp_path / "summary.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert float(found[0]["ratio"]) == pytest.approx(ours / forest, rel=1e-3)
    assert "torch=" in found[0]["versions"] and found[0]["machine"] and found[0]["date"]
    assert len(history.read(tmp_path / "history.csv")) == len(found)
    assert (tmp_path / "history.png").stat().st_size > 10_000
    worse = [row for row in found if float(row["ratio"]) > 1]
    assert capsys.readouterr().out.count("the peer is better") == len(worse) > 0


def test_the_history_has_a_line_per_measurement(tmp_path):
    path = tmp_path / "history.csv"
    row = {"date": "2026-01-02", "version": "0.1", "benchmark": "gyro", "quantity": "rms",
           "peer": "gyrointerp", "ours": "0.09", "theirs": "0.1", "ratio": "0.9"}  # fmt: skip
    later = row | {"date": "2026-03-04", "version": "0.2", "ours": "0.07", "ratio": "0.7"}
    assert history.extend([later], path) == 1
    assert history.extend([row, later | {"date": "2026-05-06"}], path) == 1, "measured once"
    assert history.read(path) == [row, later]


def test_a_benchmark_without_its_peer_is_left_out_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmarks, "installed", lambda name: "" if name == "pyro-ppl" else "1")
    monkeypatch.setattr(benchmarks.subprocess, "run", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(benchmarks, "write_summary", lambda path: None)
    call(monkeypatch, "gc_pyro")
    assert "gc_pyro is left out: pyro-ppl is not installed" in capsys.readouterr().out
    call(monkeypatch)
    assert "lacks pyro-ppl" in capsys.readouterr().out


def test_an_installed_one_runs_with_the_words_behind_two_dashes(monkeypatch):
    commands = []
    monkeypatch.setattr(benchmarks, "installed", lambda name: "1")
    monkeypatch.setattr(benchmarks.subprocess, "run", lambda words, **_: commands.append(words))
    monkeypatch.setattr(benchmarks, "write_summary", lambda path: None)
    call(monkeypatch, "gyro", "--", "--data", "folder")
    assert commands == [[sys.executable, "-m", "benchmarks.gyro", "compare", "--data", "folder"]]
    with pytest.raises(SystemExit):
        call(monkeypatch, "girasol")
