"""How fast a model predicts, so that two machines can be compared."""

import time
from collections.abc import Callable
from typing import Any

import torch


def objects_per_second(model: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Predictions per second of process CPU time on one thread, best of five.

    ``matmul_1024_ms`` is the time of a 1024^3 float32 matrix product, measured the same way:
    divide by it to compare machines.
    """
    device, threads = model.device, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = model.cpu().eval()
        square = torch.ones(1024, 1024)
        with torch.inference_mode():
            seconds = best_of_five(lambda: model.predict_step(batch, 0))
            matmul = best_of_five(lambda: square @ square)
    finally:
        torch.set_num_threads(threads)
        model.to(device)
    return {"objects_per_second": len(batch["row"]) / seconds, "matmul_1024_ms": 1e3 * matmul}


def best_of_five(run: Callable[[], object]) -> float:
    """Least process CPU time of five runs, s."""
    times = []
    for _ in range(5):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)
