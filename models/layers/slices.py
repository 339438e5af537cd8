"""A batch in slices, so that memory stays bounded and the cache is used."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


def slices(batch: Batch, size: int) -> Iterator[dict[str, Tensor]]:
    """The rows of ``batch``, ``size`` at a time; an empty batch once."""
    n = len(next(iter(batch.values())))
    for i in range(0, max(n, 1), size):
        yield {name: values[i : i + size] for name, values in batch.items()}


def in_slices(
    predict: Callable[[dict[str, Tensor]], dict[str, Tensor]], batch: Batch, size: int
) -> dict[str, Tensor]:
    """``predict`` of the slices of ``batch``, joined."""
    parts = [predict(part) for part in slices(batch, size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
