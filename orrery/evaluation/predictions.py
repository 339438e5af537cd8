"""Predicted rows on their way to a file and to the metrics, in constant memory."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from orrery.datamodules.batches import Carried
from orrery.evaluation import flagged
from orrery.memory import return_free
from orrery.models.base import Component, Constant, Output, PredictedRows, Stack
from orrery.tables import HatsCatalogue, HatsWriter, Writer, open_catalogue, sink_for
from orrery.tables.hats import ROW

SCORED_ROWS = 1_000_000  # a longer catalogue is scored on every k-th row
SCALARS = "scalars"  # in place of the names of columns: those of one number per row
BATCHES_BETWEEN = 8  # after which free memory is returned
EXAMPLES = 256  # rows, evenly spread, whose input and arrays (densities) are kept for figures


class Column:
    """A growing array of numbers, in memory that is allocated once.

    Thousands of small arrays, kept between the large ones of the batches, would fragment the heap,
    more so the larger the catalogue.
    """

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._memory, self._n = np.empty(max(size, 1), dtype), 0

    def append(self, values: np.ndarray) -> None:
        n = self._n + len(values)
        while n > len(self._memory):
            self._memory = np.concatenate([self._memory, np.empty_like(self._memory)])
        self._memory[self._n : n] = values
        self._n = n

    @property
    def values(self) -> np.ndarray:
        return self._memory[: self._n]


class Predictions(L.Callback):
    """Writes predicted rows to ``path`` in row order, and keeps what metrics and figures need.

    With several processes each writes its contiguous share to a part file; the first one joins
    them. The final name appears only when the file is complete.
    """

    def __init__(
        self,
        n_rows: int,
        path: str | Path | None,
        columns: Sequence[str] | str | None,
        keep: Sequence[str],
        units: Mapping[str, str],
        meta: Mapping[str, str],
        partitions: HatsCatalogue | None = None,
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.partitions = partitions
        # what cannot be written is refused before anything is predicted
        is_file = self.path is not None and partitions is None
        self.holds_vectors = not is_file or sink_for(self.path or "").holds_vectors
        self.left_out: list[str] = []
        self.only_scalars = columns == SCALARS
        self.columns = None if isinstance(columns, str) else columns
        if isinstance(columns, str) and not self.only_scalars:
            raise ValueError(
                f"columns={columns}: expected names, columns=[{columns}], or {SCALARS}"
            )
        self.keep = list(keep)
        self.units, self.meta = dict(units), dict(meta)  # to `meta`, what is found is added
        self.remarks: list[str] = []  # of the whole catalogue
        self.n_rows = n_rows
        self.stride = -(-n_rows // SCORED_ROWS)
        self.example_stride = self.stride * -(-n_rows // (EXAMPLES * self.stride))
        self.scalars: dict[str, Column] = {}
        self.examples: dict[str, list[np.ndarray]] = {}
        self.inputs: dict[str, list[np.ndarray]] = {}  # of the examples
        self.stack: Stack | None = None
        self.carried = Carried({}, None)  # of the batch that is predicted
        self.writer: Writer | HatsWriter | None = None
        self.groups = False  # whether any row had a group
        self.written = 0  # rows, in the end of all processes

    # --- Lightning's hooks --------------------------------------------------------------------

    def on_predict_start(self, trainer: L.Trainer, model: Any) -> None:
        self.world, self.rank = trainer.world_size, trainer.global_rank
        self.stack = model.stack()
        if self.path is None:
            return
        known = list(model.columns)
        for name in self.columns or ():
            if name not in known:
                raise ValueError(f"columns: there is no output '{name}'; there are {known}")
        if twice := [name for name in self.keep if name in (self.columns or known)]:
            raise ValueError(
                f"data.keep: {', '.join(map(repr, twice))} has the name of a prediction; "
                f"rename it in the catalogue, or leave the prediction out: "
                f"columns=[{','.join(n for n in known if n not in twice)}]"
            )
        job = [uuid.uuid4().hex[:8]]  # two jobs of one output do not mix
        if self.world > 1:
            dist.broadcast_object_list(job)
        self.job = job[0]
        self.part = self.path if self.world == 1 else self._part(self.rank)

    def on_predict_batch_start(
        self, trainer: L.Trainer, model: Any, batch: dict[str, Any], batch_idx: int, *_: Any
    ) -> None:
        """Take ``carried`` out of the batch; try one row first, so that errors come at once."""
        self.carried = batch.pop("carried")
        nowhere = self.path is None and self.carried.group is None
        if batch_idx or not (nowhere or not self.holds_vectors or self.only_scalars):
            return
        row = to_numpy(model.predict_step(_select(batch, np.arange(1)), 0))
        has_truth = any(n.endswith("_true") for n in row) or row.keys() >= model.columns.keys()
        if nowhere and not has_truth:
            raise ValueError(
                f"{trainer.datamodule.label} has no truth to score against; "  # type: ignore
                f"ask for predictions: output=<file>"
            )
        vectors = [n for n, v in {**row, **self.carried.columns}.items() if v.ndim > 1]
        if self.only_scalars:
            self.left_out = [name for name in vectors if name in row]
        if not self.holds_vectors:
            asked = [*(self.columns or ()), *self.keep]
            if refused := [name for name in vectors if name in asked]:
                raise ValueError(f"output={self.path}: {no_vectors(refused)}")
            self.left_out = [] if self.columns else vectors

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        model: Any,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        *_: Any,
    ) -> None:
        rows = to_numpy(outputs)
        number = batch["row"].cpu().numpy()
        scored = number % self.stride == 0
        is_example = number % self.example_stride == 0
        for name, values in (rows | {"is_example": is_example}).items():
            if values.ndim == 1:
                if name not in self.scalars:
                    self.scalars[name] = Column(-(-self.n_rows // self.stride), values.dtype)
                self.scalars[name].append(values[scored])
        if is_example.any():
            for name, values in rows.items():
                if values.ndim > 1:
                    self.examples.setdefault(name, []).append(values[is_example])
            for name, values in to_numpy(_select(batch, np.flatnonzero(is_example))).items():
                self.inputs.setdefault(name, []).append(values)
        if self.stack is not None and self.carried.group is not None:
            self.groups = True
            self.stack.add(self.carried.group, batch, outputs)
        if self.path is not None:
            if self.writer is None:
                partitions = self.partitions if self.world == 1 else None
                self.writer = self._new_writer(self.part, model, partitions).__enter__()
            names = [name for name in self.columns or rows if name in rows]
            chosen = {name: rows[name] for name in names if name not in self.left_out}
            chosen = labelled(chosen, model.columns)
            of_partitions = {} if self.partitions is None else {ROW: number}
            self.writer.write({**of_partitions, **self.carried.columns, **chosen})
            self.written += len(number)
        if batch_idx % BATCHES_BETWEEN == BATCHES_BETWEEN - 1:
            return_free()

    def on_predict_end(self, trainer: L.Trainer, model: Any) -> None:
        self._remark_on_all(trainer, model)
        if self.writer is not None:  # None: this process had no rows
            self.writer.__exit__(None, None, None)
            self.writer = None
        if self.left_out and self.rank == 0 and not self.holds_vectors:
            print(f"not written: {no_vectors(self.left_out)}")
        if self.path is not None and self.world > 1:
            written = [0] * self.world
            dist.all_gather_object(written, self.written)
            self.written = sum(written)
            failed: list[Exception | None] = [self._join(model, written) if not self.rank else None]
            dist.broadcast_object_list(failed)
            if failed[0] is not None:
                raise failed[0]

    def on_exception(self, trainer: L.Trainer, model: Any, exception: BaseException) -> None:
        if self.writer is not None:
            self.writer.__exit__(type(exception), exception, exception.__traceback__)
            self.writer = None

    # --- results ------------------------------------------------------------------------------

    def _remark_on_all(self, trainer: L.Trainer, model: Component) -> None:
        """What flags and ranks say of the whole catalogue; refuses one without any answer."""
        self.rows = self._rows()
        label = trainer.datamodule.label  # type: ignore[attr-defined]
        self.shares = flagged.shares(model.columns, self.rows)
        self.summary = flagged.summary(model.columns, self.shares)
        if flagged.unanswered(model.columns, self.rows):
            raise ValueError(
                f"{label}: no row has a prediction, and nothing is written; {self.summary}. Is "
                f"each column the right one, in the right unit? data.columns.<role>=<column>"
            )
        self.remarks = flagged.remarks(
            model.columns, self.shares, self.n_rows, model.record["metrics"]
        )
        found = {"flags": self.summary, "remarks": "; ".join(self.remarks)}
        self.meta |= {key: text for key, text in found.items() if text}

    def _rows(self) -> PredictedRows:
        """Scalars of the scored rows, arrays and input of the examples, of every process.

        The examples come first, so that row i of an array belongs to row i of the scalars.
        """
        scored = {name: [column.values] for name, column in self.scalars.items()}
        mine = (scored, self.examples, self.inputs)
        parts: list[Any] = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, mine)
        scalars, examples, inputs = (joined([part[i] for part in parts]) for i in range(3))
        first = np.argsort(~scalars.pop("is_example"), kind="stable")
        rows = PredictedRows({name: values[first] for name, values in scalars.items()} | examples)
        rows.examples = {name: torch.from_numpy(values) for name, values in inputs.items()}
        return rows

    def stacked(self) -> Stack | None:
        """What all processes have stacked by group; None if nothing was."""
        if self.stack is None:
            return None
        stacks: list[Any] = [self.stack] * self.world
        if self.world > 1:
            dist.all_gather_object(stacks, self.stack)
            self.stack.merge(stack for i, stack in enumerate(stacks) if i != self.rank)
        return self.stack if self.groups else None

    # --- files --------------------------------------------------------------------------------

    def _new_writer(
        self, path: Path, model: Component, partitions: HatsCatalogue | None = None
    ) -> Writer | HatsWriter:
        settings = written_with(model.outputs, self.meta, self.keep, self.units)
        if partitions is not None:
            return HatsWriter(path, partitions, **settings)
        return Writer(path, **settings)

    def _part(self, rank: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.{self.job}.rank{rank}.parquet")

    def _join(self, model: Component, written: Sequence[int]) -> Exception | None:
        """All parts become one; what went wrong, after which they are still there."""
        assert self.path is not None
        parts = {self._part(rank): n for rank, n in enumerate(written) if n}
        try:
            with self._new_writer(self.path, model, self.partitions) as writer:
                for part, n in parts.items():
                    if not part.exists():
                        raise OSError(
                            f"{part}, written by another process, is not visible from here: "
                            f"output must be in a folder that all nodes share"
                        )
                    with open_catalogue(part) as catalogue:
                        if len(catalogue) != n:
                            raise OSError(f"{part} holds {len(catalogue):,} of {n:,} rows")
                        for chunk in catalogue.chunks(catalogue.names):
                            writer.write(chunk)
        except (OSError, ValueError) as error:
            return type(error)(
                f"{error}; the parts written by all processes are kept in its folder"
            )
        for part in parts:
            part.unlink()
        return None


def table_writer(
    path: str | Path,
    outputs: Mapping[str, Output | Constant],
    meta: Mapping[str, str],
    carried: Sequence[str] = (),
    carried_units: Mapping[str, str] | None = None,
) -> Writer:
    """A writer of predicted columns with their units, meaning and places in an HDF5 file."""
    return Writer(path, **written_with(outputs, meta, carried, carried_units))


def written_with(
    outputs: Mapping[str, Output | Constant],
    meta: Mapping[str, str],
    carried: Sequence[str] = (),
    carried_units: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Arguments of a `Writer` for predicted columns.

    Carried columns stand in the HDF5 group of the first output.
    """
    columns = {name: o for name, o in outputs.items() if isinstance(o, Output)}
    group = next(iter(columns.values())).location.rpartition("/")[0]
    places = {name: f"{group}/{name}" if group else name for name in carried}
    return {
        "units": {
            **(carried_units or {}),
            **{name: o.unit for name, o in columns.items() if o.unit},
        },
        "descriptions": {name: o.text for name, o in columns.items()},
        "locations": {**places, **{n: o.location for n, o in columns.items() if o.location}},
        "constants": {o.location: o.values for o in outputs.values() if isinstance(o, Constant)},
        "meta": meta,
    }


def joined(parts: Sequence[Mapping[str, list[np.ndarray]]]) -> dict[str, np.ndarray]:
    """The pieces of each name end to end."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {
        name: np.concatenate([v for part in parts for v in part.get(name, [])]) for name in names
    }


def no_vectors(names: Sequence[str]) -> str:
    """Part of a message: these columns need a format that holds arrays."""
    return (
        f"{', '.join(names)}, a vector per object, which CSV cannot hold; FITS, HDF5, Parquet and "
        f"ECSV can"
    )


def labelled(
    rows: Mapping[str, np.ndarray], columns: Mapping[str, Output]
) -> dict[str, np.ndarray]:
    """The rows with labels in place of their numbers, where outputs have any; "" for -1."""
    names = {name: np.array([*columns[name].labels, ""]) for name in rows if columns[name].labels}
    return {name: names[name][v] if name in names else v for name, v in rows.items()}


def _select(batch: Mapping[str, Any], rows: np.ndarray) -> dict[str, torch.Tensor]:
    index = torch.from_numpy(rows)
    return {name: values[index.to(values.device)] for name, values in batch.items()}


def to_numpy(rows: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.detach().cpu().numpy() for name, values in rows.items()}
