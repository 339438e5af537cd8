"""Random numbers that do not depend on how many processes share them out."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def normal(seed: int, numbers: Sequence[int], n: int) -> Tensor:
    """Unit normal vectors, (numbers, n), each of ``seed`` and its own number, below 10^6."""
    vectors = []
    for number in numbers:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        vectors.append(torch.randn(n, generator=generator, dtype=torch.float32))
    return torch.stack(vectors)


def chunks(numbers: range, n: int) -> list[range]:
    """``numbers``, up to ``n`` at a time."""
    return [numbers[i : i + n] for i in range(0, len(numbers), n)]


def all_gather(mine: Tensor, world: int) -> Tensor:
    """The vectors of all processes, (world x vectors, n), interleaved: the first of each first."""
    if world == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.stack(parts, 1).flatten(0, 1)
