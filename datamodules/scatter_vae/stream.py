"""Shards of XP coefficients as batches for training: shuffled, shared out, in constant memory."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from orrery.datamodules.scatter_vae.shards import ALL_ROWS, Part, Paths, Shard, find

Columns = dict[str, np.ndarray]
Block = tuple[Shard, int, int]  # shard, its first row, and the row after its last
MAX_OPEN_FILES = 64  # far fewer than a process may have


class ShardStream(IterableDataset):
    """Batches of the shards' columns as they are, a dict of tensors (batch_size / world, ...).

    The order of an epoch follows from `seed` and epoch: blocks of `block` rows, each read in one
    go, are permuted over all shards, and this order is cut into one stretch of equal length for
    each rank and, within it, for each worker of the DataLoader (to be made with
    ``batch_size=None``). In its stretch a worker keeps `buffer` blocks, of shards far apart, and
    draws the rows of its batches from them at random. Every rank has as many batches; the rows
    beyond them, fewer than one batch of all ranks, are other ones in each epoch.

    `batch_size` counts all processes. `columns` are all of the shards' by default, `part` the rows
    of each shard that are used, such as (0.9, 1.0) for the last tenth of its sky. Raises what
    `datamodules.scatter_vae.shards.find` does, and ValueError where there is not one batch.
    """

    def __init__(
        self,
        paths: Paths,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        columns: Sequence[str] | None = None,
        part: Part = ALL_ROWS,
        block: int = 4096,
        buffer: int = 8,
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"data.batch_size={batch_size} counts all processes together, and cannot be shared "
                f"evenly by {world}; take a multiple of {world}"
            )
        self.shards, self.columns = find(paths, columns)
        self.seed, self.rank, self.world = seed, rank, world
        self.part, self.block, self.buffer = part, block, buffer
        self.rows = batch_size // world  # of this process's batches
        self._blocks: list[Block] = [
            (shard, first, min(first + block, shard.span(part)[1]))
            for shard in self.shards
            for first in range(*shard.span(part), block)
        ]
        stars = sum(stop - first for _, first, stop in self._blocks)
        self._batches = stars // batch_size
        if not self._batches:
            raise ValueError(
                f"{len(self.shards)} shards with {stars} stars in all are too few for one batch of "
                f"data.batch_size={batch_size}"
            )
        # in shared memory, so that persistent workers have the current one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the order of rows; called before each epoch, on every rank."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def __len__(self) -> int:
        """Batches of this rank in an epoch, of all its workers together."""
        return self._batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start = self.rank * self._batches
        first = start + self._batches * worker // workers
        last = start + self._batches * (worker + 1) // workers
        blocks = self._stretch(first * self.rows, last * self.rows)
        entropy = [self.seed, self.epoch, self.rank, workers, worker]
        mixed = self._mix(blocks, np.random.default_rng(entropy))
        for batch in _cut(mixed, self.rows):
            yield {name: torch.from_numpy(values) for name, values in batch.items()}

    def _stretch(self, start: int, stop: int) -> list[Block]:
        """Rows start..stop of the epoch's order of blocks."""
        random = np.random.default_rng([self.seed, self.epoch])
        blocks = [self._blocks[i] for i in random.permutation(len(self._blocks))]
        stretch = []
        before = 0
        for shard, first, last in blocks:
            low = max(first, first + start - before)
            high = min(last, first + stop - before)
            if low < high:
                stretch.append((shard, low, high))
            before += last - first
        return stretch

    def _mix(self, blocks: Sequence[Block], random: np.random.Generator) -> Iterator[Columns]:
        """The rows of `blocks` in random order, as they leave a buffer which others replace."""
        size = min(self.buffer * self.block, sum(last - first for _, first, last in blocks))
        buffer: Columns = {}
        filled = 0
        for read in self._read(blocks):
            if not buffer:
                buffer = {n: np.empty((size, *v.shape[1:]), v.dtype) for n, v in read.items()}
            n = len(next(iter(read.values())))
            room = min(size - filled, n)
            for name, values in read.items():
                buffer[name][filled : filled + room] = values[:room]
            filled += room
            if n > room:
                slots = random.choice(size, n - room, replace=False)
                yield {name: values[slots] for name, values in buffer.items()}
                for name, values in read.items():
                    buffer[name][slots] = values[room:]
        order = random.permutation(filled)
        for first in range(0, filled, self.block):
            slots = order[first : first + self.block]
            yield {name: values[slots] for name, values in buffer.items()}

    def _read(self, blocks: Sequence[Block]) -> Iterator[Columns]:
        files: OrderedDict[str, h5py.File] = OrderedDict()
        try:
            for shard, first, last in blocks:
                if shard.path not in files:
                    if len(files) >= MAX_OPEN_FILES:
                        files.popitem(last=False)[1].close()
                    files[shard.path] = shard.open()
                yield shard.read(files[shard.path], first, last, self.columns)
        finally:
            for file in files.values():
                file.close()


def _cut(pieces: Iterator[Columns], size: int) -> Iterator[Columns]:
    """The same rows, `size` at a time."""
    held: list[Columns] = []
    missing = size
    for piece in pieces:
        n = len(next(iter(piece.values())))
        start = 0
        while n - start >= missing:
            held.append({name: v[start : start + missing] for name, v in piece.items()})
            yield held[0] if len(held) == 1 else _join(held)
            start, held, missing = start + missing, [], size
        if start < n:
            held.append({name: v[start:] for name, v in piece.items()})
            missing -= n - start


def _join(pieces: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
