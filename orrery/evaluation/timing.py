"""How fast a model predicts, so that two machines can be compared."""

import time
from collections.abc import Callable
from typing import Any

import torch


def speeds(model: Any, batch: dict[str, Any]) -> dict[str, float]:
    """What ``model.timed(batch)`` names, in process CPU time on one thread, best of five.

    ``*_per_second`` are counts per second, ``*_ms*`` milliseconds per count. ``matmul_1024_ms`` is
    the time of a 1024^3 float32 matrix product, measured the same way: divide by it to compare
    machines.
    """
    device, threads = model.device, torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        model = model.cpu().eval()
        square = torch.ones(1024, 1024)
        with torch.inference_mode():
            works = {**model.timed(batch), "matmul_1024_ms": (lambda: square @ square, 1)}
            for name, (work, count) in works.items():
                seconds = best_of_five(work)
                per_second = name.endswith("_per_second")
                found[name] = count / seconds if per_second else 1e3 * seconds / count
    finally:
        torch.set_num_threads(threads)
        model.to(device)
    return found


def best_of_five(run: Callable[[], object]) -> float:
    """Least process CPU time of five runs, s."""
    times = []
    for _ in range(5):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)
