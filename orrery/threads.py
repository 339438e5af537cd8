"""How threads wait for work, decided before torch starts them.

Two threads share the operations of a step. Those that wait for work by spinning answer at once;
those that sleep have to be woken, and leave the cores to others. On two cores without other
programs a step of zephyr takes 2.7 times as long where they sleep, and with one or two others 1.8
to 2.7 times as long where they spin (`python -m benchmarks.threads`). libgomp lets them spin for
3 ms.
"""

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")  # of Linux: three averages, running/all threads, the last process
LOOKS, BETWEEN = 5, 0.01  # s


def choose_how_to_wait() -> None:
    """Threads sleep at once where other programs compute, or it is not known whether they do."""
    if "OMP_WAIT_POLICY" not in os.environ and others_compute():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def others_compute() -> bool:
    """Whether other programs want cores that the threads of this one would take."""
    if not LOAD.exists():
        return True
    running = 0
    for _ in range(LOOKS):
        running += int(LOAD.read_text().split()[3].split("/")[0]) - 1  # this one runs
        time.sleep(BETWEEN)
    ours = len(os.sched_getaffinity(0))
    return running / LOOKS + ours > (os.cpu_count() or 1) + 0.5
