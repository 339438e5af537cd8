"""Rows of a catalogue as batches: what is read, splits, streaming for predictions."""

import fnmatch
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

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
from orrery.datamodules.columns import CatalogueColumn, Column, columns_to_read, located
from orrery.datamodules.dataset import Dataset
from orrery.datamodules.values import BadValue, no_numbers, repeated_sentinels
from orrery.tables import Catalogue, files_of, open_catalogue, read_table, sha256, where
from orrery.tables.columns import is_unknown, known_unit, refuse_unknown, resolve, unused
from orrery.tables.numbered import NumberedColumns, numbered_columns

__all__ = ["CatalogueData", "Rows"]

# Rows that choose the best epoch. Their loss is compared with itself, so that few are enough;
# `calibrate` takes all of them.
VALIDATED_ROWS = 2048
NO_CHOICE = (None, "", "mag")  # units of which columns without one leave no doubt
MAX_SKIPPED_ROWS = 10_000  # rows that `skip_bad` leaves out: of more it is the column that is bad


class CatalogueData(Dataset):
    """A catalogue, or an embedded simulation when ``path`` is null, as batches of tensors.

    A component declares its columns (`declared`), and what to simulate (`simulate`). Where there
    is physics between a column and the model it says how columns become tensors (`to_batch`), and
    how a training batch is augmented (`augment`).

    Training rows are held in memory and split by a seeded permutation. Predictions stream: every
    rank reads its own contiguous share of the rows, in order and in constant memory.
    """

    declared: ClassVar[Mapping[str, Column]] = {}  # by role: what `columns` can name
    may_be_zero: ClassVar = frozenset(("num_workers",))

    def __init__(
        self,
        path: str | None = None,
        group: str | None = None,
        columns: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        group_by: str | None = None,
        train_where: str | None = None,
        cuts: Mapping[str, str] | None = None,
        split: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
        predict_batch_size: int = 4096,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_workers: int = 0,
        origin: str = "",
        skip_bad: bool = False,
        sentinels: Sequence[float] | float | None = None,
    ) -> None:
        super().__init__(path, seed, origin)
        split = split or "test"
        if split not in ("test", "all"):
            raise ValueError(f"data.split is '{split}'; it is 'test' or 'all'")
        self.group = group
        self.keep = [keep] if isinstance(keep, str) else list(keep)
        self.group_by = group_by
        self.columns = {k: v for k, v in (columns or {}).items() if v is not None}
        refuse_unknown(self.columns, self._known_roles())
        refuse_unknown(units or {}, self._known_roles(), "units")
        # role -> unit, of columns that have none, or a wrong one
        self.units = {role: known_unit(text, role) for role, text in (units or {}).items() if text}
        # name -> expression: which rows to train on
        self.cuts = {k: v for k, v in (cuts or {}).items() if v is not None}
        if train_where:
            self.cuts["train_where"] = train_where
        self.removed: dict[str, int] = {}  # rows that each cut removes, of those before it
        self.split = split
        self.batch_size, self.predict_batch_size = batch_size, predict_batch_size
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= share < 1:
                raise ValueError(f"data.{name} is {share}; expected a share of the rows, 0 to 1")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction and data.test_fraction are {val_fraction} and {test_fraction}, "
                f"which leaves no rows to train on; expected a sum below 1"
            )
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.num_workers = num_workers
        self.skip_bad = skip_bad  # whether predictions leave out rows that would be refused
        self.sentinels = _numbers(sentinels)  # values that mean unknown, in every column of numbers
        self.rows: dict[str, Rows] = {}
        self._simulated: dict[str, dict[str, np.ndarray]] = {}
        self._opened: tuple[Any, Catalogue] | None = None  # the file's version, and its reader
        self._hash: tuple[Any, str] | None = None

    # --- what a component defines -------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        """Role -> column of the catalogue, of the columns to read: those declared.

        A component with alternatives, such as a parallax or a distance, chooses among them here.
        """
        return columns_to_read(self.declared, self.columns, catalogue, training)

    def open_path(self, path: str) -> Catalogue:
        """The file, or the files, as a catalogue with a row per object."""
        return open_catalogue(path, self.group)

    def open_table(self, table: Any) -> Catalogue:
        """A table in memory as a catalogue with a row per object."""
        return read_table(table)

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        """Physical tensors from columns named by role; raises ``ValueError`` for bad values.

        Columns hold possible values, or what is declared to take their place. By default each
        column of numbers is a tensor, float32.
        """
        return {
            role: torch.from_numpy(values).float()
            for role, values in columns.items()
            if role in self.declared and self.declared[role].kind != "text"
        }

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """The embedded simulation as a table; ``split`` is ``"fit"`` or ``"test"``."""
        raise self._not_defined("simulate")

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        """A training batch with the random changes of this step."""
        return batch

    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the model that the data decide."""
        return {}

    def inferred_settings(self) -> dict[str, Any]:
        """Constructor arguments of this module as found in the training data, for predictions."""
        return {}

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        with self.open("fit") as catalogue:
            roles = self.columns_of(catalogue, training=True)
            chosen = self._chosen_rows(catalogue)
            parts = [
                self._batch(row, columns, roles, training=True)
                for row, columns in self._read(catalogue, roles, 0, len(catalogue), chosen)
            ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, index in self._splits(len(next(iter(whole.values())))).items():
            self.rows[name] = {key: values[index] for key, values in whole.items()}
            self.rows[name]["row"] = torch.arange(len(index))
        for name in ("train", "val"):
            if not len(next(iter(self.rows[name].values()))):
                raise ValueError(f"no rows are left for the '{name}' split; the catalogue is small")

    def _keep(self, split: str, mask: Tensor) -> None:
        """The rows of ``split`` that are in ``mask`` (rows,), numbered anew."""
        self.rows[split] = {key: values[mask] for key, values in self.rows[split].items()}
        self.rows[split]["row"] = torch.arange(int(mask.sum()))

    def training_batch(self) -> Rows:
        """All training rows at once, without augmentation."""
        return self.rows["train"]

    def validation_batch(self) -> Rows:
        return self.rows["val"]

    def train_dataloader(self) -> DataLoader[Any]:
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

    def val_dataloader(self) -> DataLoader[Any]:
        world, rank = self._ranks()
        few = {name: values[:VALIDATED_ROWS] for name, values in self.rows["val"].items()}
        share = {name: values[rank::world] for name, values in few.items()}
        return DataLoader([share], batch_size=None)  # type: ignore[arg-type]

    # --- prediction ---------------------------------------------------------------------------

    def predict_dataloader(self) -> DataLoader[Any]:
        world, rank = self._ranks()
        stream = PredictionStream(self, rank, world)
        return DataLoader(stream, batch_size=None, collate_fn=identity_collate)

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[PredictionBatch]:
        """This rank's contiguous share of the rows, in order.

        Besides the tensors of `to_batch`, a batch holds ``row`` (int64, the row in the catalogue).
        """
        with self.open("test") as catalogue:
            if not len(catalogue):
                raise ValueError(f"{self.label} has no rows")
            roles = self.columns_of(catalogue, training=False)
            chosen = self._predicted_rows(catalogue)
            n = len(catalogue)
            start, stop = n * rank // world, n * (rank + 1) // world
            skipped: list[str] = []
            for chunk in self._read(catalogue, roles, start, stop, chosen):
                for row, columns, made in self._predictable(*chunk, roles, skipped):
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
        self,
        row: np.ndarray,
        columns: Mapping[str, np.ndarray],
        roles: Mapping[str, CatalogueColumn],
        skipped: list[str],
    ) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray], Rows]]:
        """A chunk as a batch, or with ``skip_bad`` in parts about the rows that are refused."""
        try:
            yield row, columns, self._batch(row, columns, roles, training=False)
        except ValueError as error:
            if not self.skip_bad or len(skipped) >= MAX_SKIPPED_ROWS:
                raise
            if len(row) == 1:
                skipped.append(str(error))
                return
            for half in np.array_split(np.arange(len(row)), 2):
                part = {name: values[half] for name, values in columns.items()}
                yield from self._predictable(row[half], part, roles, skipped)

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

    def _not_defined(self, hook: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define {hook}")

    def open(self, which: str) -> AbstractContextManager[Catalogue]:
        """The catalogue, or the simulation for ``which`` of "fit" and "test".

        A file is opened once, and again only where it has changed.
        """
        if self.table is not None:
            return self._as_declared(self.open_table(self.table))
        if self.path is not None:
            return nullcontext(self._file())
        if which not in self._simulated:
            self._simulated[which] = self.simulate(which)
        return read_table(self._simulated[which])

    def _file(self) -> Catalogue:
        version = self._version()
        if self._opened is None or self._opened[0] != version or version is None:
            if self._opened is not None:
                self._opened[1].close()
                self._opened = None
            catalogue = self.open_path(self.path or "")
            self._opened = version, self._as_declared(catalogue)
        return self._opened[1]

    def _version(self) -> Any:
        """Names, sizes and times of change of the files; None where there are none."""
        files = [(name, os.stat(name)) for name in files_of(self.path or "")]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files] or None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which another process opens for itself."""
        return {**self.__dict__, "_opened": None}

    def provenance(self) -> dict[str, Any]:
        if self.path is None:
            return super().provenance()
        with self.open("fit") as catalogue:  # first, for it says what is wrong with a path
            rows = len(catalogue)
        version = self._version()
        if self._hash is None or self._hash[0] != version:
            self._hash = version, sha256(self.path)
        cuts = {"cuts": dict(self.removed)} if self.removed else {}
        return {"path": str(self.path), "sha256": self._hash[1], "rows": rows, **cuts}

    def is_of_record(self, record: Mapping[str, Any]) -> bool:
        with self.open("fit") as catalogue:  # which tells most files apart without reading them
            same_length = len(catalogue) == record.get("rows", len(catalogue))
        return same_length and super().is_of_record(record)

    def _batch(
        self,
        row: np.ndarray,
        columns: Mapping[str, np.ndarray],
        roles: Mapping[str, CatalogueColumn],
        training: bool,
    ) -> Rows:
        """`to_batch` of the rows numbered ``row``, of checked columns."""
        columns = {k: v for k, v in columns.items() if not k.startswith("keep:")}
        try:
            for role, column in roles.items():
                cells = columns[role]
                columns[role] = column.values(cells, training)
                self._ask_about_unit(role, column, columns[role], training)
                self._ask_about_stand_ins(column, cells, columns[role])
            for role, declared in self.declared.items():
                optional = declared.need(training) == "optional" and not declared.truth
                if role not in columns and optional and declared.missing is not None:
                    columns[role] = np.full(len(row), declared.missing)
            return self.to_batch(columns, training)
        except BadValue as error:
            raise ValueError(f"{self.label}: {error.at(int(row[error.first]))}") from error
        except ValueError as error:
            raise ValueError(
                f"{self.label}, in the chunk of rows {row[0]:,} to {row[-1]:,}: {error}"
            ) from error

    def _ask_about_unit(
        self, role: str, column: CatalogueColumn, values: np.ndarray, training: bool
    ) -> None:
        """Where a unit is assumed and doubtful: an error in training, else a warning."""
        if self.is_simulation or not (doubt := column.unit_is_doubtful(values)):
            return
        text = f"{doubt} State it: data.units.{role}=<unit>"
        if training:
            raise ValueError(text)
        self.warn_once(f"{self.label}: {text}")

    def _ask_about_stand_ins(
        self, column: CatalogueColumn, cells: np.ndarray, values: np.ndarray
    ) -> None:
        """Where a possible value is repeated that surveys write for unknown, such as -999 km/s."""
        if self.is_simulation or column.column.kind != "number" or column.column.special:
            return
        if found := repeated_sentinels(cells[np.isfinite(values)], column.sentinels):
            self.warn_once(
                f"{self.label}: column '{column.name}' holds {found} in several rows, and it is "
                f"taken as measured. If it stands for unknown, set data.sentinels=[{found}]; this "
                f"applies to every column"
            )

    def _say_assumed_units(self, roles: Mapping[str, CatalogueColumn]) -> None:
        """Of columns that the user has named: those of the file have units in their names."""
        assumed = {
            f"'{column.name}' as {column.column.unit}": role
            for role, column in roles.items()
            if role in self.columns and column.unit is None and column.column.unit not in NO_CHOICE
        }
        if assumed and not self.is_simulation:
            self.print_once(
                f"{self.label}: without a unit, taken: {', '.join(assumed)}; another is stated by "
                f"data.units.{next(iter(assumed.values()))}=<unit>"
            )

    def _as_declared(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with vectors joined of numbered columns, and the units the user states."""
        vectors = {}
        for role, declared in self.declared.items():
            name = str(self.columns.get(role, declared.name))
            if declared.kind == "vector" and name not in catalogue.names:
                try:
                    columns = numbered_columns(catalogue.names, name)
                except ValueError as error:
                    raise ValueError(f"{self.label}: {error}") from error
                if columns:
                    vectors[name] = columns
        if vectors:
            catalogue = NumberedColumns(catalogue, vectors)
        for role, unit in self.units.items():
            column = self.declared.get(role) or self.declared.get(f"{role}_{{band}}")
            default = column.name if column else role
            pattern = re.sub(r"{\w+}", "*", str(self.columns.get(role, default)))
            for name in fnmatch.filter(catalogue.names, pattern):
                own = catalogue.units.get(name)
                if own is not None and own != unit:
                    self.warn_once(
                        f"{self.label}: column '{name}' has the unit {own}, and is taken as {unit} "
                        f"by data.units.{role}"
                    )
                catalogue.units[name] = unit
        return catalogue

    def _values(self, catalogue: Catalogue, role: str) -> np.ndarray | None:
        """All values of a declared column as prediction has them; None where it is not there."""
        column = located(self.declared, self.columns, catalogue, role)
        column = replace(column, sentinels=self.sentinels)
        if column.name not in catalogue.names:
            return None
        parts = [column.values(c[column.name], False) for c in catalogue.chunks([column.name])]
        return np.concatenate(parts)

    def columns_of(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        """`roles`, where all columns that the user has named are there.

        Of those that are not, truth that is not needed for predictions is passed over.
        """
        named = {
            role: str(self.columns[role])
            for role, column in self.declared.items()
            if role in self.columns
            and column.need(training) != "unused"
            and (training or not column.truth)
        }
        resolve([*catalogue.names, *catalogue.constants], named, self.label)
        roles = self.roles(catalogue, training)
        self._say_assumed_units(roles)
        read = {role: column.name for role, column in roles.items()}
        if_named = {r for r, column in self.declared.items() if column.need(training) == "named"}
        known = self._known_roles()
        for text in unused(catalogue.names, read, self.columns, known, self.keep, if_named):
            self.warn_once(f"{self.label}: {text}")
        return {r: replace(column, sentinels=self.sentinels) for r, column in roles.items()}

    def _known_roles(self) -> dict[str, str]:
        """Role -> default column, a star for what a family's braces stand for."""
        known = {}
        for role, column in self.declared.items():
            known[re.sub(r"{\w+}", "*", role)] = column.name
            if "_{" in role:  # the name of all columns of the family: data.columns.mag=MAG_{band}
                known[role.partition("_{")[0]] = column.name
        return known

    def _read(
        self,
        catalogue: Catalogue,
        roles: Mapping[str, CatalogueColumn],
        start: int,
        stop: int,
        chosen: np.ndarray | None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(row numbers, columns by role as they are in the catalogue), chunk by chunk."""
        wanted = {role: column.name for role, column in roles.items()}
        wanted |= {f"keep:{name}": name for name in self.keep}
        if self.group_by:
            wanted["group_by"] = self.group_by
        resolve(catalogue.names, wanted, self.label)
        names = list(dict.fromkeys(wanted.values()))
        row = start
        for chunk in catalogue.chunks(names, self.predict_batch_size, start, stop):
            self._refuse_booleans(catalogue, roles)
            n = len(next(iter(chunk.values())))
            rows = np.arange(row, row + n)
            row += n
            pick = slice(None) if chosen is None else chosen[rows]
            if len(rows[pick]):
                yield rows[pick], {role: chunk[name][pick] for role, name in wanted.items()}

    def _refuse_booleans(self, catalogue: Catalogue, roles: Mapping[str, CatalogueColumn]) -> None:
        """Those with blanks, which come as floats; `CatalogueColumn.values` refuses others."""
        for column in roles.values():
            if column.column.kind in ("number", "vector") and catalogue.is_boolean(column.name):
                raise ValueError(f"{self.label}: {no_numbers(column.name, 'b')}")

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Mask of the rows that the cuts keep, or None for all of them."""
        if not len(catalogue):
            raise ValueError(f"{self.label} has no rows")
        if not self.cuts:
            return None
        mask = np.ones(len(catalogue), bool)
        for name, expression in self.cuts.items():
            setting = name if name == "train_where" else f"cuts.{name}"
            before = int(mask.sum())
            mask &= where(catalogue, expression, f"data.{setting}")
            self.removed[name] = before - int(mask.sum())
            self.print_once(
                f"{self.label}: data.{setting}, '{expression}', removes {self.removed[name]:,} of "
                f"{before:,} rows"
            )
        if not mask.any():
            raise ValueError(f"{self.label}: no row meets all of the cuts: {self.cuts}")
        return mask

    def _predicted_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Mask of the test split of a training file; None where all rows are predicted."""
        if self.split == "all" or self.path is None:
            if self.cuts and self.path is not None:
                self.warn_once(
                    f"{self.label}: all rows are predicted; the cuts choose rows to train on"
                )
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


def _numbers(sentinels: Sequence[float] | float | None) -> tuple[float, ...]:
    if sentinels is None:
        return ()
    given = [sentinels] if isinstance(sentinels, int | float | str) else list(sentinels)
    try:
        return tuple(float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"data.sentinels={given}: expected numbers, such as data.sentinels=[-99.9,99.99]"
        ) from error


def identity_collate(batch: Any) -> Any:
    """Pass-through columns stay numpy arrays, text among them."""
    return batch
