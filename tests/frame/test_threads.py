"""Threads sleep while they wait where other programs compute."""

import os

import pytest

from orrery import threads


@pytest.mark.parametrize(("running", "policy"), [(1, None), (3, "PASSIVE")])
def test_threads_sleep_only_where_other_programs_run(tmp_path, monkeypatch, running, policy):
    load = tmp_path / "loadavg"
    load.write_text(f"1.50 0.90 0.80 {running}/210 4242\n")
    monkeypatch.setattr(threads, "LOAD", load)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is restored in the end
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.choose_how_to_wait()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_what_the_user_says_of_waiting_threads_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "LOAD", tmp_path / "absent")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.choose_how_to_wait()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
