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
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # the tests share the cores among themselves
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["matplotlib.pyplot", "orrery.evaluation.evaluate", "orrery.train", "orrery.evaluate", "zuko"]
)
Done = subprocess.CompletedProcess[str]


def run(words: tuple[str, ...], cwd: Path, env: dict[str, str]) -> Done:
    """``python <words>``: of a script, or of a module by ``-m``."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_main, args=(words, str(cwd), env, files))
        process.start()
        process.join()
        out, err = (file.read_text() for file in files)
    return subprocess.CompletedProcess(["python", *words], process.exitcode or 0, out, err)


def _main(words: tuple[str, ...], cwd: str, env: dict[str, str], files: list[Path]) -> None:
    from orrery.evaluation import timing  # imported already, by the server
    from orrery.figures import style

    for module, name, value in ((timing, "REPEATS", 1), (style, "DPI", 40)):  # in less time
        setattr(module, name, value)
    for stream, file in ((1, files[0]), (2, files[1])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    added = env.get("PYTHONPATH", "").split(os.pathsep)
    if words[0] == "-m":
        sys.argv, sys.path = list(words[1:]), [cwd, *filter(None, added), *sys.path]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path = [os.path.dirname(os.path.abspath(words[0])), *filter(None, added), *sys.path]
        runpy.run_path(words[0], run_name="__main__")
