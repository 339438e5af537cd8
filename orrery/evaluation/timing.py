"""How fast a model predicts, so that two machines can be compared."""

import time
from collections.abc import Callable, Mapping

import torch

from orrery.models.base import Component

REPEATS = 5  # the tests run each case once
LONG = 10.0  # s, after which a case is not repeated: its time is known well enough


def timings(
    model: Component, cases: Mapping[str, tuple[Callable[[], object], float]]
) -> dict[str, float]:
    """Process CPU time of each case on one thread, by the name of its metric: see `best_of_five`.

    A case is a function and the number of objects that it processes.

    ``*_per_second`` are counts per second, ``*_us`` microseconds and ``*_ms*`` milliseconds per
    count. ``matmul_1024_ms`` is
    the time of a 1024^3 float32 matrix product, measured the same way: divide by it to compare
    machines.
    """
    device, threads = model.device, torch.get_num_threads()
    torch.set_num_threads(1)
    results = {}
    try:
        model = model.cpu().eval()
        square = torch.ones(1024, 1024)
        with torch.inference_mode():
            works = {**cases, "matmul_1024_ms": (lambda: square @ square, 1)}
            for name, (work, count) in works.items():
                seconds = best_of_five(work)
                per_second = name.endswith("_per_second")
                unit = 1e6 if name.endswith("_us") else 1e3
                results[name] = count / seconds if per_second else unit * seconds / count
    finally:
        torch.set_num_threads(threads)
        model.to(device)
    return results


def best_of_five(run: Callable[[], object]) -> float:
    """Least process CPU time of five runs, s; of fewer where these take 10 s together."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
        if sum(times) > LONG:
            break
    return min(times)
