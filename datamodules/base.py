"""Rows of a catalogue as batches: what is read, splits, streaming for predictions."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from orrery.datamodules.batches import (
    BatchShares,
    Carried,
    GlobalBatches,
    PredictionBatch,
    PredictionStream,
    Rows,
)
from orrery.tables import Catalogue, convert, open_catalogue, read_table, sha256, where
from orrery.tables.columns import is_unknown, refuse_unknown, resolve, unused

# Rows that choose the best epoch. Their loss is compared with itself, so that few are enough;
# `calibrate` takes all of them.
VALIDATED_ROWS = 2048
MOST_SKIPPED = 10_000  # rows that `skip_bad` leaves out: of more it is the column that is bad


class CatalogueData(L.LightningDataModule):
    """A catalogue, or an embedded simulation when ``path`` is null, as batches of tensors.

    A component says which columns it needs (`roles`), how they become physical tensors
    (`to_batch`), how a training batch is augmented (`augment`) and what to simulate (`simulate`).

    Training rows are held in memory and split by a seeded permutation. Predictions stream: every
    rank reads its own contiguous share of the rows, in order and in constant memory.
    """

    product: bool | str = False  # whether a model takes all rows together, by `infer`, and as what
    # role -> the column that it has by default, of the roles that `columns` can name; those with a
    # star stand for many; empty: any
    known_roles: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        path: str | None = None,
        group: str | None = None,
        columns: Mapping[str, Any] | None = None,
        keep: Sequence[str] = (),
        group_by: str | None = None,
        train_where: str | None = None,
        split: str = "test",
        seed: int = 0,
        batch_size: int = 256,
        predict_batch_size: int = 4096,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_workers: int = 0,
        origin: str = "",
        skip_bad: bool = False,
    ) -> None:
        super().__init__()
        if split not in ("test", "all"):
            raise ValueError(f"data.split is '{split}'; it is 'test' or 'all'")
        self.path, self.group = path, group
        self.keep = [keep] if isinstance(keep, str) else list(keep)
        self.group_by = group_by
        self.columns = {k: v for k, v in (columns or {}).items() if v is not None}
        refuse_unknown(self.columns, self.known_roles)
        self.train_where, self.split, self.seed = train_where, split, seed
        self.batch_size, self.predict_batch_size = batch_size, predict_batch_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.num_workers, self.origin = num_workers, origin
        self.skip_bad = skip_bad  # whether predictions leave out rows that would be refused
        self.rows: dict[str, Rows] = {}
        self._simulated: dict[str, dict[str, np.ndarray]] = {}
        self._said: set[str] = set()
        self.insample = False  # whether the rows to predict were trained on
        self.table: Any = None  # an in-memory table, from Python, in place of the path

    # --- what a component defines -------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        """Role -> (column of the catalogue, unit it is wanted in or None), of the columns to read.

        Truth columns are wanted in training, and taken in prediction where they exist.
        """
        raise self._unsaid("roles")

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        """Physical tensors from columns named by role; raises ``ValueError`` for bad values.

        A row whose truth is unknown is an error in training, and NaN in prediction.
        """
        raise self._unsaid("to_batch")

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """The embedded simulation as a table; ``split`` is ``"fit"`` or ``"test"``."""
        raise self._unsaid("simulate")

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        """A training batch with the random changes of this step."""
        return batch

    def schema(self) -> dict[str, Any]:
        """Constructor arguments of the model that the data decide."""
        return {}

    def found_out(self) -> dict[str, Any]:
        """Constructor arguments of this module as found in the training data, for predictions."""
        return {}

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        with self.open("fit") as catalogue:
            roles = self.roles(catalogue, training=True)
            chosen = self._chosen_rows(catalogue)
            parts = [
                self._batch(row, columns, training=True)
                for row, columns in self._read(catalogue, roles, 0, len(catalogue), chosen)
            ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, index in self._splits(len(next(iter(whole.values())))).items():
            self.rows[name] = {key: values[index] for key, values in whole.items()}
            self.rows[name]["row"] = torch.arange(len(index))
        for name in ("train", "val"):
            if not len(next(iter(self.rows[name].values()))):
                raise ValueError(f"no rows are left for the '{name}' split; the catalogue is small")

    def training_batch(self) -> Rows:
        """All training rows at once, without augmentation."""
        return self.rows["train"]

    def validation_batch(self) -> Rows:
        return self.rows["val"]

    def train_dataloader(self) -> DataLoader:
        world, rank = self._ranks()
        if self.batch_size % world:
            raise ValueError(
                f"data.batch_size={self.batch_size} counts all processes together, and cannot be "
                f"shared evenly by {world}; take a multiple of {world}"
            )
        n = len(next(iter(self.rows["train"].values())))
        batches = GlobalBatches(n, self.batch_size, self.seed, multiple_of=world)
        shares = BatchShares(self, rank, world)
        return DataLoader(shares, sampler=batches, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        world, rank = self._ranks()
        few = {name: values[:VALIDATED_ROWS] for name, values in self.rows["val"].items()}
        share = {name: values[rank::world] for name, values in few.items()}
        return DataLoader([share], batch_size=None)  # type: ignore[arg-type]

    # --- prediction ---------------------------------------------------------------------------

    def predict_dataloader(self) -> DataLoader:
        world, rank = self._ranks()
        stream = PredictionStream(self, rank, world)
        return DataLoader(stream, batch_size=None, collate_fn=_identity)

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[PredictionBatch]:
        """This rank's contiguous share of the rows, in order.

        Besides the tensors of `to_batch`, a batch holds ``row`` (int64, the row in the catalogue).
        """
        with self.open("test") as catalogue:
            if not len(catalogue):
                raise ValueError(f"{self.label} has no rows")
            roles = self.roles(catalogue, training=False)
            chosen = self._predicted_rows(catalogue)
            n = len(catalogue)
            start, stop = n * rank // world, n * (rank + 1) // world
            skipped: list[str] = []
            for chunk in self._read(catalogue, roles, start, stop, chosen):
                for row, columns, made in self._predictable(*chunk, skipped):
                    batch = PredictionBatch(made)
                    batch["row"] = torch.from_numpy(row)
                    batch.carried = Carried(
                        {name: columns[f"keep:{name}"] for name in self.keep},
                        columns["group_by"] if self.group_by else None,
                    )
                    yield batch
            if skipped:
                warnings.warn(f"{len(skipped):,} rows are left out: {skipped[0]}", stacklevel=2)

    def _predictable(
        self, row: np.ndarray, columns: Mapping[str, np.ndarray], skipped: list[str]
    ) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray], Rows]]:
        """A chunk as a batch, or with ``skip_bad`` in parts about the rows that are refused."""
        try:
            yield row, columns, self._batch(row, columns, training=False)
        except ValueError as error:
            if not self.skip_bad or len(skipped) >= MOST_SKIPPED:
                raise
            if len(row) == 1:
                skipped.append(str(error))
                return
            for half in np.array_split(np.arange(len(row)), 2):
                part = {name: values[half] for name, values in columns.items()}
                yield from self._predictable(row[half], part, skipped)

    def n_predicted(self) -> int:
        """How many rows `prediction_batches` gives in all."""
        with self.open("test") as catalogue:
            if not len(catalogue):
                raise ValueError(f"{self.label} has no rows")
            chosen = self._predicted_rows(catalogue)
            return len(catalogue) if chosen is None else int(chosen.sum())

    def keep_units(self) -> dict[str, str]:
        """Units of the pass-through columns, for the file of predictions."""
        with self.open("test") as catalogue:
            units = {n: catalogue.units[n] for n in self.keep if n in catalogue.units}
            return {n: str(unit) for n, unit in units.items() if not is_unknown(unit)}

    # --- what they share ----------------------------------------------------------------------

    def _unsaid(self, hook: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define {hook}")

    @property
    def label(self) -> str:
        """What to call these data in messages."""
        return self.path or ("the table" if self.table is not None else "the simulation")

    def open(self, which: str) -> Catalogue:
        if self.table is not None:
            return read_table(self.table)
        if self.path is not None:
            return open_catalogue(self.path, self.group)
        if which not in self._simulated:
            self._simulated[which] = self.simulate(which)
        return read_table(self._simulated[which])

    def say(self, text: str) -> None:
        """Warn of something that the user should know of these data: once, by one process."""
        if text not in self._said and self._ranks()[1] == 0:
            warnings.warn(text, stacklevel=2)
        self._said.add(text)

    def truth(self) -> dict[str, float]:
        """What a simulation knows of the parameters that a model reports as `learned`."""
        return {}

    def mock(self) -> "CatalogueData | None":
        """Data of known truth on which `infer` is tried whenever the model is evaluated."""
        return None

    def provenance(self) -> dict[str, Any]:
        """Where the data come from, for the checkpoint's record."""
        if self.path is None:
            return {"simulation": type(self).__name__, "seed": self.seed}
        with self.open("fit") as catalogue:  # first, for it says what is wrong with a path
            rows = len(catalogue)
        return {"path": str(self.path), "sha256": sha256(self.path), "rows": rows}

    def _batch(self, row: np.ndarray, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        columns = {k: v for k, v in columns.items() if not k.startswith("keep:")}
        try:
            return self.to_batch(columns, training)
        except ValueError as error:
            raise ValueError(
                f"{self.label}, in the chunk of rows {row[0]:,} to {row[-1]:,}: {error}"
            ) from error

    def _ranks(self) -> tuple[int, int]:
        """How many processes there are, and which of them this is."""
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)

    def _read(
        self,
        catalogue: Catalogue,
        roles: Mapping[str, tuple[str, str | None]],
        start: int,
        stop: int,
        chosen: np.ndarray | None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(row numbers, columns by role in the wanted units), chunk by chunk."""
        wanted = {role: column for role, (column, _) in roles.items()}
        for text in unused(catalogue.names, wanted, self.columns, self.known_roles, self.keep):
            self.say(f"{self.label}: {text}")
        wanted |= {f"keep:{name}": name for name in self.keep}
        if self.group_by:
            wanted["group_by"] = self.group_by
        resolve(catalogue.names, wanted, self.label)
        names = list(dict.fromkeys(wanted.values()))
        row = start
        for chunk in catalogue.chunks(names, self.predict_batch_size, start, stop):
            n = len(next(iter(chunk.values())))
            rows = np.arange(row, row + n)
            row += n
            pick = slice(None) if chosen is None else chosen[rows]
            columns = {}
            for role, column in wanted.items():
                values = chunk[column][pick]
                unit = roles[role][1] if role in roles else None
                if unit is not None:
                    values = convert(values, catalogue.units.get(column), unit, column)
                columns[role] = values
            if len(rows[pick]):
                yield rows[pick], columns

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Mask of the rows that ``train_where`` keeps, or None for all of them."""
        if not len(catalogue):
            raise ValueError(f"{self.label} has no rows")
        if not self.train_where:
            return None
        return where(catalogue, self.train_where)

    def _predicted_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Mask of the test split of a training file; None where all rows are predicted."""
        if self.split == "all" or self.path is None:
            return None
        chosen = self._chosen_rows(catalogue)
        rows = np.arange(len(catalogue)) if chosen is None else np.flatnonzero(chosen)
        mask = np.zeros(len(catalogue), bool)
        mask[rows[self._splits(len(rows))["test"].numpy()]] = True
        return mask

    def _splits(self, n: int) -> dict[str, Tensor]:
        """Row numbers of train, val and test; a simulation draws its test rows apart."""
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        n_test = round(n * self.test_fraction) if self.path is not None else 0
        n_val = round(n * self.val_fraction)
        train = order[n_test + n_val :]
        # a component that holds out folds of its own validates on its training rows
        val = order[n_test : n_test + n_val] if self.val_fraction else train
        return {"test": order[:n_test], "val": val, "train": train}


def _identity(batch: Any) -> Any:
    """Pass-through columns stay numpy arrays, text among them."""
    return batch
