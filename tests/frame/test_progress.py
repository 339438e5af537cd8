"""What a terminal and a log file show of a command."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from omegaconf import OmegaConf

from orrery import command_line, progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed; the tests move them."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_per_tenth_with_rate_and_time_to_go(clock, capsys):
    with progress.phase("training", total=100) as phase:
        for clock[0] in range(1, 101):
            phase.update(clock[0], 5000 * clock[0], note=f"epoch {clock[0]}")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "training" and len(lines) == 10
    assert lines[2] == "epoch 30, 5,000 objects/s, 0:01:10 to go"
    assert lines[-1] == "epoch 100, 5,000 objects/s"


def test_a_log_is_not_filled_by_what_is_over_soon(clock, capsys):
    for step in progress.counted(range(1000), "sampling", "transitions"):
        clock[0] = step / 1000
    assert capsys.readouterr().out.splitlines() == [
        "sampling",
        "sampling, 100%, 1,001 transitions/s",
    ]


def test_a_log_is_never_silent_for_long(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONGEST_SILENCE", 0.02)
    with progress.phase("calibrating"), progress.phase("measuring its speed") as inner:
        clock[0] = 75.0
        assert inner.over.wait(0.5) is False
    said = capsys.readouterr().out.splitlines()
    assert said == ["calibrating", "measuring its speed", "measuring its speed, 0:01:15 so far"]


def test_one_process_of_several_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress.phase("training", total=1) as phase:
        phase.update(1, 10)
    assert capsys.readouterr().out == ""


def test_after_an_error_no_phase_is_open():
    with pytest.raises(OSError), progress.phase("reading"):
        raise OSError
    assert progress.current() is None


def test_a_terminal_has_one_line_that_moves_and_is_cleared():
    program = """
import time
from omegaconf import OmegaConf

from orrery import command_line, progress
with progress.phase("calibrating"):
    for _ in progress.counted(range(4), "sampling", "transitions"):
        time.sleep(0.12)
print("done")
"""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the end, of a terminal
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait() == 0, text
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())
    assert "calibrating" in shown and re.search(r"sampling .*\d transitions/s", shown), shown
    assert shown.strip().endswith("done")
    assert "\x1b[2K" in text.decode(), "the line is not cleared"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train.py model.membrs=3", "no setting 'model.membrs'; near: model.members"),
        ("evaluate.py chekpoint=zephyr", "no setting 'chekpoint'; near: checkpoint"),
        ("evaluate.py checkpoint=zephyr_cosmo", "'zephyr_cosmo' (near: zephyr_cosmos"),
        ("train.py gyro", "'gyro' is no setting, which are <name>=<value>, such as model=gyro"),
        ("train.py --model=gyro", "a setting has no dashes: model=gyro"),
    ],
)
def test_what_a_newcomer_mistypes_is_answered_by_what_was_meant(words, said):
    done = command(*words.split())
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "start"),
    [
        ("train.py", "train.py"),
        (str(Path(command_line.__file__).parent / "train.py"), "-m orrery train"),
    ],
)
def test_the_command_that_goes_on_can_be_pasted(tmp_path, monkeypatch, script, start):
    last = tmp_path / "a run" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    monkeypatch.setattr(sys, "argv", [script])
    if start != script:  # a wheel has a file there, a clone a link to the clone's own script
        monkeypatch.setattr(Path, "resolve", lambda path: path)
    monkeypatch.setattr(
        command_line.HydraConfig,
        "get",
        lambda: OmegaConf.create({"runtime": {"choices": {"model": "gyro"}}}),
    )
    config = OmegaConf.create({"run_dir": str(last.parent), "init_from": None, "checkpoint": None})
    said = command_line.what_is_saved(config).splitlines()[-1]
    assert said == f"python {start} model=gyro 'checkpoint={last}'"
