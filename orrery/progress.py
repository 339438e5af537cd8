"""What a command is doing, how fast, and for how long: a line of a terminal, or lines of a log.

Light to import: the first thing that a command does is to import torch.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

BETWEEN_LINES = 5.0  # s, of a log
BETWEEN_UPDATES = 0.1  # s, of a terminal
LONGEST_SILENCE = 15.0  # s, of a log


class Phase:
    """A part of a command: in a terminal one line that moves, in a log its name and ten lines.

    A log that would be silent for longer says every 15 s that the command still runs.

    ``total``: how many steps it has; None where that is not known.
    """

    def __init__(self, name: str, total: float | None = None) -> None:
        self.name, self.total = name, total
        self.began = self.updated = time.monotonic()
        self.tenth = 0  # that the log has reached
        self.spoke = self.began
        self.over = threading.Event()
        self.bar: Progress | None = None
        self.is_silent = _is_another_process()
        if self.is_silent:
            return
        if not (sys.stdout.isatty() and Console().is_interactive):
            print(name, flush=True)
            threading.Thread(target=self._break_silence, daemon=True).start()
            return
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            transient=True,
        )
        self.task = self.bar.add_task(name, total=total, state="")

    def is_due(self, done: float) -> bool:
        """Whether `update` would say anything: what costs time is computed only then."""
        since = time.monotonic() - self.updated
        if self.bar is not None:
            return since > BETWEEN_UPDATES
        if self.is_silent or not self.total or int(10 * done / self.total) <= self.tenth:
            return False
        return done >= self.total or since > BETWEEN_LINES

    def update(self, done: float, counted: float, noun: str = "objects", note: str = "") -> None:
        """Report that ``done`` steps are complete, with ``counted`` objects processed.

        ``note``: what else to say. The time to go is that of this phase: what follows may take a
        sixth of it, or as long again.
        """
        if not self.is_due(done):
            return
        self.updated = time.monotonic()
        state = self._state(done, counted, noun)
        if self.bar is not None:
            state = f"{note}, {state}" if note else state
            self.bar.update(self.task, completed=done, total=self.total, state=state)
        elif self.total:
            self.tenth = int(10 * done / self.total)
            self.spoke = self.updated
            print(f"{note or f'{self.name}, {done / self.total:.0%}'}, {state}", flush=True)

    def _break_silence(self) -> None:
        while not self.over.wait(LONGEST_SILENCE / 10):
            now = time.monotonic()
            if now - self.spoke >= LONGEST_SILENCE and current() is self:
                self.spoke = now
                elapsed = timedelta(seconds=round(now - self.began))
                print(f"{self.name}, {elapsed} so far", flush=True)

    def _state(self, done: float, counted: float, noun: str) -> str:
        """``18,400 objects/s, 0:01:20 to go``."""
        elapsed = max(time.monotonic() - self.began, 1e-6)
        rate = counted / elapsed
        text = f"{rate:,.0f} {noun}/s" if rate >= 10 else f"{rate:.2g} {noun}/s"
        if self.total and done:
            left = round(elapsed * (max(self.total / done, 1) - 1))
            text += f", {timedelta(seconds=left)} to go" if left else ""
        return text


_open: list[Phase] = []  # the innermost last


@contextmanager
def phase(name: str, total: float | None = None) -> Iterator[Phase]:
    """Context in which the command reports the phase ``name``; inner phases hide outer ones."""
    outer = _open[-1].bar if _open else None
    if outer is not None:
        outer.stop()
    inner = Phase(name, total)
    _open.append(inner)
    try:
        if inner.bar is not None:
            inner.bar.start()
        yield inner
    finally:
        inner.over.set()
        if inner.bar is not None:
            inner.bar.stop()
        _open.remove(inner)
        if _open:
            _open[-1].spoke = time.monotonic()
        if outer is not None:
            outer.start()


def current() -> Phase | None:
    """The innermost phase; None outside of a command."""
    return _open[-1] if _open else None


def counted(steps: Sequence[int], name: str, noun: str) -> Iterator[int]:
    """``steps``, such as the transitions of a chain, as a phase with its rate and time to go."""
    with phase(name, len(steps)) as this:
        for done, step in enumerate(steps, 1):
            yield step
            this.update(done, done, noun)


def _is_another_process() -> bool:
    """Whether this is not the first process of a run of several: one of them speaks."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return any(os.environ.get(name, "0") != "0" for name in ranks)
