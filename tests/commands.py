"""Commands as a user types them, in processes that need not import torch anew.

A server with the slow imports done forks a process per command, which then runs as a fresh one
would: `python train.py ...` takes a second in place of eight. Tests of what an interpreter does at
its start, such as those of the wheel, use `subprocess`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # the tests share the cores among themselves
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "matplotlib.pyplot",
        "orrery.evaluation.evaluate",
        "orrery.train",
        "orrery.evaluate",
        "orrery.models.sed_emulator.covariance",
        "orrery.models.abundances.history",
        "orrery.models.feniks.joint_posterior",
        "orrery.models.feniks.spectroscopic_redshift",
        "zuko",
    ]
)
Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parent.parent
KINDS = ("stdout", "stderr")


def run(words: tuple[str, ...], cwd: Path, env: dict[str, str], report: bool = False) -> Done:
    """``python <words>``: of a script, or of a module by ``-m``."""
    return run_together([words], cwd, [env], report)[0]


def run_together(
    commands: list[tuple[str, ...]], cwd: Path, envs: list[dict[str, str]], report: bool = False
) -> list[Done]:
    """The same of commands that run at the same time, each in its environment."""
    with TemporaryDirectory() as folder:
        files = [[Path(folder, f"{i}.{kind}") for kind in KINDS] for i in range(len(commands))]
        each = zip(commands, envs, files, strict=True)
        processes = [
            SERVER.Process(target=_main, args=(words, str(cwd), env, own, report))
            for words, env, own in each
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [
            Done(["python", *words], process.exitcode or 0, *(file.read_text() for file in own))
            for words, process, own in zip(commands, processes, files, strict=True)
        ]


def save_time(report: bool, change: Callable[[str, object], object]) -> None:
    """``change`` what makes runs slow; figures and speeds of an evaluation are of a ``report``."""
    change("orrery.models.sed_emulator.covariance.STEPS", 300)
    change("orrery.models.abundances.history.WARMUP", 40)
    change("orrery.models.abundances.history.DRAWS", 40)
    change("orrery.models.feniks.joint_posterior.BETWEEN", 1)
    change("orrery.models.feniks.joint_posterior.STEPS", 12)
    change("orrery.models.feniks.joint_posterior.ATTEMPTS", 0)
    change("orrery.models.feniks.spectroscopic_redshift.BROAD_TEMPLATES", 4)
    change("orrery.evaluation.timing.REPEATS", 1)
    change("orrery.figures.style.DPI", 40)
    if not report:
        change("orrery.evaluation.results.draw_figures", lambda *_: [])
        change("orrery.evaluation.timing.best_of_five", lambda _: 1.0)  # which predicts again


def _set(name: str, value: object) -> None:
    owner, _, attribute = name.rpartition(".")
    assert hasattr(resolve_name(owner), attribute), name
    setattr(resolve_name(owner), attribute, value)


def _forget_the_servers_modules() -> None:
    """So that those of the copy of the repository where the command runs are imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "orrery"]:
        del sys.modules[name]


def _main(
    words: tuple[str, ...], cwd: str, env: dict[str, str], files: list[Path], report: bool
) -> None:
    for stream, file in ((1, files[0]), (2, files[1])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    added = env.get("PYTHONPATH", "").split(os.pathsep)
    if words[0] == "-m":
        sys.argv, first = list(words[1:]), cwd
    else:
        sys.argv, first = list(words), os.path.dirname(os.path.abspath(words[0]))
    sys.path = [first, *filter(None, added), *sys.path]
    if Path(cwd, "orrery").is_dir() and Path(cwd) != ROOT:
        _forget_the_servers_modules()
    save_time(report, _set)
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
