"""What a component may be applied to: a catalogue, one joint observation, a request for objects."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning as L
import numpy as np

from orrery.tables import sha256


class Dataset(L.LightningDataModule):
    """Data that a component is applied to: a file, or a simulation when ``path`` is null.

    Most are catalogues, see `datamodules.base.CatalogueData`, of which some are compared by group,
    `GroupedData`; others implement `JointData`, or ask for objects to be drawn, by
    `GenerationRequest`. ``origin`` says where the data come from.

    Whole-number settings of a data module are 1 or more, but for those in ``may_be_zero``.
    """

    decided_by_training: ClassVar[frozenset[str]] = frozenset()  # settings on which weights rest
    of_one_file: ClassVar[frozenset[str]] = frozenset()  # settings that do not hold for another
    may_be_zero: ClassVar[frozenset[str]] = frozenset(("seed",))  # whole-number settings
    keep: Sequence[str] = ()  # columns that are carried into the predictions
    group_by: str | None = None
    split = "all"  # rows to predict: all, or those held out of training
    insample = False  # whether the rows to predict were trained on
    table: Any = None  # an in-memory table, from Python, in place of the path

    def __init__(self, path: str | None = None, seed: int = 0, origin: str = "") -> None:
        super().__init__()
        self.path, self.seed, self.origin = path, seed, origin
        self._messages: set[str] = set()

    @property
    def label(self) -> str:
        """Name of these data in messages."""
        return self.path or ("the table" if self.table is not None else "the simulation")

    @property
    def is_simulation(self) -> bool:
        """Whether rows are simulated, not read from a file or a table."""
        return self.path is None and self.table is None

    def truth(self) -> dict[str, float]:
        """True values that a simulation knows of a model's fitted parameters, by name."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Where the data come from, for the checkpoint's record."""
        if self.path is None:
            return {"simulation": type(self).__name__, "seed": self.seed}
        return {"path": str(self.path), "sha256": sha256(self.path)}

    def is_of_record(self, record: Mapping[str, Any]) -> bool:
        """Whether this is the file whose `provenance` a checkpoint has recorded."""
        return bool(self.provenance()["sha256"] == record.get("sha256"))

    def warn_once(self, text: str) -> None:
        """Warn of something that the user should know of these data: once, by one process."""
        if self._is_new(text):
            warnings.warn(text, stacklevel=2)

    def print_once(self, text: str) -> None:
        """Print something that is as the user wants it: once, by one process."""
        if self._is_new(text):
            print(text)

    def _is_new(self, text: str) -> bool:
        new = text not in self._messages and self._ranks()[1] == 0
        self._messages.add(text)
        return new

    def _ranks(self) -> tuple[int, int]:
        """How many processes there are, and which of them this is."""
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)


@runtime_checkable
class JointData(Protocol):
    """Data of which a component infers one posterior: all rows are one observation."""

    def observations(self) -> object:
        """A dataclass of `physics` that the component's ``infer`` knows."""


@runtime_checkable
class GroupedData(Protocol):
    """A catalogue whose groups of rows are compared with each other."""

    def grouped_batches(self) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
        """Batches, each with its rows' names of groups, (batch,); "" of those without one."""


class GenerationRequest(Dataset):
    """``n`` objects that a component which can generate shall draw, from a seed."""

    def __init__(self, n: int = 1000, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.n = n

    @property
    def label(self) -> str:
        return f"{self.n:,} generated objects"
