"""Random numbers that do not depend on how many processes share them out."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def normal(seed: int, which: Sequence[int], n: int) -> Tensor:
    """Unit normal, (which, n): each vector is that of ``seed`` and its own number, below 10^6."""
    found = []
    for number in which:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        found.append(torch.randn(n, generator=generator, dtype=torch.float32))
    return torch.stack(found)


def some_of(pairs: range, n: int) -> list[range]:
    """Up to ``n`` at a time."""
    return [pairs[i : i + n] for i in range(0, len(pairs), n)]


def of_all_ranks(mine: Tensor, world: int) -> Tensor:
    """The vectors of all processes, of which the first has the first, and the next the second."""
    if world == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.stack(parts, 1).flatten(0, 1)
