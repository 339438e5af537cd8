"""Training on shards: batches that stream from disk, and the few rows that must be held."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from datamodules.xp_stream import ShardStream

Rows = dict[str, torch.Tensor]
Convert = Callable[[dict[str, np.ndarray]], Rows]
Augment = Callable[[Rows, torch.Generator], Rows]


class StreamedBatches(IterableDataset):
    """The batches of a `ShardStream` as the model takes them, augmented by seed and epoch."""

    def __init__(self, stream: ShardStream, convert: Convert, augment: Augment) -> None:
        self.stream, self.convert, self.augment = stream, convert, augment

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Rows]:
        info = torch.utils.data.get_worker_info()
        place = (self.stream.seed, self.stream.epoch, self.stream.rank, info.id if info else 0)
        seed = np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(seed))
        for batch in self.stream:
            columns = {name: values.numpy() for name, values in batch.items()}
            yield self.augment(self.convert(columns), generator)


class EpochLoader(DataLoader):
    """Tells the stream which epoch it is, for Lightning tells only samplers."""

    def __init__(self, batches: StreamedBatches, epoch: Callable[[], int], **settings: Any) -> None:
        super().__init__(batches, batch_size=None, **settings)
        self._stream, self._epoch = batches.stream, epoch

    def __iter__(self) -> Any:
        self._stream.set_epoch(self._epoch())
        return super().__iter__()
