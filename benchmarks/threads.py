"""How long a training step takes by the number of threads and how they wait, with and without load.

    python -m benchmarks.threads             # 8 min: benchmarks/threads.csv

A step of zephyr's default model and batch: loss, gradient, optimiser; median of the steps of
`SECONDS`, in a process of its own. Two threads that wait for work spin for 3 ms before they sleep,
or sleep at once; ours is one of both, by what runs at the start (`orrery/threads.py`). The other
programs are processes of one thread that do nothing but compute. The settings take turns, `ROUNDS`
times, since the machine's speed drifts; the least of the medians is written.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import orrery  # noqa: F401  (sets how threads wait, before torch starts them)

HERE = Path(__file__).resolve().parent
SECONDS, ROUNDS = 6.0, 2
BATCH = 256  # rows
SETTINGS = {
    "ours": {},
    "3 ms": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = (0, 1, 2)  # other programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", action="store_true", help="measure in this process, and print")
    if parser.parse_args().one:
        print(step_seconds())
        return
    rows = []
    for busy in BUSY:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for name in list(SETTINGS) * ROUNDS:
                seconds[name].append(in_a_process(SETTINGS[name]))
        finally:
            for other in others:
                other.kill()
                other.wait()
        best = min(min(s) for s in seconds.values())
        for name, of_rounds in seconds.items():
            row = {"other_programs": busy, "waiting": name, "step_seconds": min(of_rounds)}
            rows.append(row | {"over_the_best": min(of_rounds) / best, "cores": os.cpu_count()})
            print(rows[-1], flush=True)
    with open(HERE / "threads.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def in_a_process(environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "benchmarks.threads", "--one"]
    kept = {k: v for k, v in os.environ.items() if "OMP_" not in k}
    done = subprocess.run(
        command, cwd=HERE.parent, env=kept | environment, stdout=subprocess.PIPE, check=True
    )
    return float(done.stdout.split()[-1])


def step_seconds() -> float:
    """Median seconds of a step, of those that begin within ``SECONDS``."""
    import torch

    threads = torch.get_num_threads()
    from orrery.benchmarks import scale  # which asks for one thread

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    call, _ = scale.training("zephyr")
    step = call(BATCH)
    for _ in range(3):
        step()
    seconds, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


if __name__ == "__main__":
    main()
