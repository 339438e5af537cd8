"""Batches of training rows by a seeded sampler, shared among processes; a stream of others."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

Rows = dict[str, Tensor]


class Carried(NamedTuple):
    """Carried columns and names of groups of a batch, which are no tensors."""

    columns: Mapping[str, np.ndarray]  # pass-through columns, (batch,) or (batch, ...)
    group: np.ndarray | None  # names of groups, (batch,)


class PredictionBatch(dict[str, Tensor]):
    """Tensors of some rows, ``row`` (their number in the catalogue) among them."""

    carried: Carried


class Source(Protocol):
    """What is needed of `datamodules.base.CatalogueData`."""

    rows: dict[str, Rows]

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows: ...

    def prediction_batches(self, rank: int, world: int) -> Iterator[PredictionBatch]: ...


class GlobalBatches(Sampler[tuple[Tensor, int]]):
    """Each epoch's global batches: (row numbers, seed of the step), from seed and epoch alone.

    A resumed run therefore meets the batches that the uninterrupted one would have met, and
    every process the same ones, of which `BatchShares` takes its share.
    """

    def __init__(self, n: int, batch_size: int, seed: int, multiple_of: int = 1) -> None:
        self.n, self.seed, self.epoch = n, seed, 0
        self.batch_size = min(batch_size, n // multiple_of * multiple_of)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(self.n, generator=generator)
        seeds = torch.randint(2**62, (len(self),), generator=generator).tolist()
        for i, seed in enumerate(seeds):
            yield order[i * self.batch_size : (i + 1) * self.batch_size], seed


class BatchShares(Dataset[Rows]):
    """This process's rows of a global batch.

    The whole batch is augmented before it is shared out, so that any number of processes sees
    the same random numbers, and their mean gradient is that of one process.
    """

    def __init__(self, data: Source, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __getitem__(self, request: tuple[Tensor, int]) -> Rows:
        index, seed = request
        batch = {name: values[index] for name, values in self.data.rows["train"].items()}
        batch = self.data.augment(batch, torch.Generator().manual_seed(seed))
        return {name: values[self.rank :: self.world] for name, values in batch.items()}


class PredictionStream(IterableDataset[dict[str, Any]]):
    """`CatalogueData.prediction_batches` for a DataLoader, with ``carried`` as an item.

    Lightning copies batches item by item; `Predictions` takes ``carried`` out before the model.
    """

    def __init__(self, data: Source, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.data.prediction_batches(self.rank, self.world):
            yield {**batch, "carried": batch.carried}
