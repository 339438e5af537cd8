"""Training on shards: batches that stream from disk."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from orrery.datamodules.scatter_vae.stream import ShardStream

Rows = dict[str, torch.Tensor]
Convert = Callable[[dict[str, np.ndarray]], Rows]
Augment = Callable[[Rows, torch.Generator], Rows]


class StreamedBatches(IterableDataset):
    """The batches of a `ShardStream` as model input, augmented by seed and epoch."""

    def __init__(self, stream: ShardStream, convert: Convert, augment: Augment) -> None:
        self.stream, self.convert, self.augment = stream, convert, augment

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Rows]:
        info = torch.utils.data.get_worker_info()
        entropy = (self.stream.seed, self.stream.epoch, self.stream.rank, info.id if info else 0)
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(seed))
        for batch in self.stream:
            columns = {name: values.numpy() for name, values in batch.items()}
            yield self.augment(self.convert(columns), generator)


class EpochLoader:
    """A loader whose epoch Lightning sets, as it does for samplers.

    Not a DataLoader itself: its workers begin to read when its iterator is made, which, in a
    resumed run, is before the epoch is set.
    """

    def __init__(self, batches: StreamedBatches, num_workers: int) -> None:
        self.loader = DataLoader(batches, batch_size=None, num_workers=num_workers)
        self.sampler = batches.stream  # Lightning calls its set_epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Rows]:
        yield from self.loader
