"""The class that every component derives from; its docstring is the recipe."""

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

if TYPE_CHECKING:
    from astropy.table import Table
    from pandas import DataFrame

RECORD = "orrery"  # the entry of a checkpoint that holds a component's `record`

Batch = Mapping[str, Tensor]
Rows = Mapping[str, np.ndarray]
Metrics = dict[str, float]
# (config, state_dict) of a checkpoint of one schema version -> those of the next
Migration = Callable[[dict[str, Any], dict[str, Tensor]], tuple[dict[str, Any], dict[str, Tensor]]]


class Output(NamedTuple):
    """One predicted column, (rows,) or (rows, ...): unit (astropy's spelling) and meaning.

    - ``location``: its place in an HDF5 file.
    - ``axes``: names of its further dimensions, such as ("draw", "parameter"); a `Constant` of that
      name holds what stands along one.
    - ``dtype``: of its numbers; of flags int32.
    - ``bits``: of a column of flags, the name and meaning of each bit, the lowest first.
    - ``labels``: of whole numbers, what each stands for, from 0 on; it is written in its place, and
      nothing for -1.
    - ``unusual``: of a rank, a number that is uniform from 0 to 1 for objects like those trained
      on, the end at which objects are unlike them. `orrery.evaluation.flagged` tests it.
    """

    unit: str
    description: str
    location: str = ""
    axes: tuple[str, ...] = ()
    bits: Mapping[str, str] = {}
    labels: tuple[str, ...] = ()
    unusual: Literal["", "high", "low"] = ""
    dtype: str = "float32"

    @property
    def text(self) -> str:
        """The description, with bits and axes."""
        bits = "; ".join(
            f"{1 << i} {name}, {meaning}" for i, (name, meaning) in enumerate(self.bits.items())
        )
        text = f"{self.description}: {bits}" if bits else self.description
        return f"{text} ({', '.join(('row', *self.axes))})" if self.axes else text


class Constant(NamedTuple):
    """An array that is written once with the predictions, and its place in an HDF5 file."""

    values: np.ndarray
    location: str


@dataclass(frozen=True)
class Fit:
    """How a component is optimised: AdamW, whose rate rises, then falls to zero along a cosine.

    A component with an optimiser of its own overrides Lightning's ``configure_optimizers``.
    """

    epochs: int = 1
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.0  # of matrices
    high_lr: frozenset[str] = frozenset()  # names of parameters that learn five times faster
    clip: float | None = 5.0  # norm of the gradient, against a single bad batch
    result: str = "best"  # epoch that is the result: of the least val/loss, or "last"
    precisions: tuple[str, ...] = ("32-true",)  # of the trainer's, those that are safe


@dataclass
class Evaluation:
    """What `Component.evaluate` returns. Metrics are empty where the data hold no truth."""

    metrics: Metrics = field(default_factory=dict)  # of these data; flat keys, plain numbers
    fitted_parameters: Metrics = field(default_factory=dict)  # of the model, whatever the data
    baselines: dict[str, Metrics] = field(default_factory=dict)  # "true model": the same metrics
    warnings: list[str] = field(default_factory=list)  # sentences for the user
    figures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # arrays by figure
    timings: dict[str, tuple[Callable[[], object], float]] = field(default_factory=dict)
    smaller_is_better: frozenset[str] = frozenset()  # names of metrics


def or_nothing(what: str, make: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """What ``make`` computes for a figure or a remark; if it fails, a warning and nothing."""
    try:
        return make()
    except Exception as error:
        warnings.warn(f"{what} could not be made: {type(error).__name__}: {error}", stacklevel=2)
        return {}


class PredictedRows(dict[str, np.ndarray]):
    """Predicted rows by column, and of the first of them all that figures need.

    Scalar columns have a value per scored row; array columns only of the first rows, the examples,
    whose input is ``examples``.
    """

    examples: Batch


@runtime_checkable
class Data(Protocol):
    """A data module as every component sees it; `datamodules.base.CatalogueData` is one.

    What only some data know, such as the true posterior of a simulation, is a protocol of its own
    beside the evaluation that asks for it.
    """

    @property
    def label(self) -> str:
        """Name of the data in messages."""

    @property
    def is_simulation(self) -> bool:
        """Whether rows are drawn by `simulate`, not read from a file or a table."""

    @property
    def rows(self) -> Mapping[str, Batch]:
        """Training rows by split, "train" and "val"; empty before ``setup("fit")``."""

    def training_batch(self) -> Batch:
        """All training rows, (rows, ...)."""

    def validation_batch(self) -> Batch:
        """All validation rows, (rows, ...)."""

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Rows to predict, in order: the share of process ``rank`` of ``world``."""

    def n_predicted(self) -> int:
        """Number of rows of `prediction_batches`."""

    def truth(self) -> Metrics:
        """True values of fitted parameters, by metric name; empty where they are not known."""


class Stack(Protocol):
    """What ``data.group_by`` adds up, a total per group; `models.layers.stack` has one."""

    @property
    def units(self) -> Mapping[str, str]:
        """Of the table's columns."""

    def add(self, groups: np.ndarray, batch: Batch, rows: Mapping[str, Tensor]) -> None:
        """Add the rows of a batch to their ``groups``, (batch,)."""

    def merge(self, others: Iterable[Any]) -> None:
        """Add what other processes have stacked."""

    def table(self) -> dict[str, np.ndarray]:
        """Columns of ``stacked.ecsv``; empty if no row had a group."""


class Component(L.LightningModule):
    """A method of the zoo: a LightningModule that the frame trains, evaluates and applies.

    To write one, define

    1. ``loss(batch)``: the scalar to minimise, mean over the batch.
    2. ``predict_step(batch)``: a dict of tensors, a row per object.
    3. ``outputs``: name, unit and meaning of each of them.
    4. ``evaluate(rows, data)``: the field's own metrics, where truth is known.

    and, where it has any,

    5. ``prepare(data)``, before the fit: scaling, from ``data.training_batch()``.
    6. ``calibrate(data)``, after it: recalibration, from ``data.validation_batch()``.
    7. ``fit``: how it is optimised, the argument of ``super().__init__``.
    8. ``stack()``: what ``data.group_by`` adds up.
    9. ``domain_of_validity()``: for which objects it is valid, for the model card.
    10. ``reinitialised_on_finetune(name, settings)``: weights that ``init_from`` does not take.
    11. ``migrations``: how checkpoints of older versions become today's.
    12. ``prediction_settings``: its settings that may be changed after the fit.
    13. ``may_be_zero``: its whole-number settings that may be 0; others are 1 or more.

    A batch is a dict of tensors by physical name, and so are predicted rows. ``__init__`` takes
    plain scalars, strings, lists and dicts only, so that a checkpoint is loaded with
    ``weights_only=True``; what the data decide (bands, sources...) are arguments too, and come from
    the data module's ``model_arguments()``. What ``prepare`` and ``calibrate`` compute are buffers,
    so that a checkpoint takes and gives physical units.

    More than rows: see `InfersJointly`, `MakesSkyMap`, `ComparesGroups`, `Generates` and
    `ExportsNetwork`. A component that lacks one of them refuses the command that needs it.
    """

    migrations: ClassVar[Sequence[Migration]] = ()
    prediction_settings: ClassVar[frozenset[str]] = frozenset()
    may_be_zero: ClassVar[frozenset[str]] = frozenset(("seed",))  # whole-number settings

    record: dict[str, Any]  # of its checkpoint: config, data, versions, metrics
    draw_seed: int = 0  # of random draws among predictions

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self.fit = fit
        self.record = {}

    # --- what a component defines -------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, scalar. Deterministic: augmentation belongs to the data module."""
        raise NotImplementedError

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """A row per object of the batch: the columns of `outputs`, (batch,) or (batch, ...).

        Columns of the truth (``z_true``) are there only where the batch has it.
        """
        raise NotImplementedError

    @property
    def outputs(self) -> Mapping[str, Output | Constant]:
        """Columns of `predict_step` in the order in which they are written, and constant arrays."""
        raise NotImplementedError

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        """Metrics, figure data and warnings, from predicted rows and their data module."""
        raise NotImplementedError

    def prepare(self, data: Data) -> None:
        """Before the fit, on every rank: set buffers from ``data.training_batch()``."""

    def calibrate(self, data: Data) -> None:
        """After the fit, on every rank: set buffers from ``data.validation_batch()``."""

    def stack(self) -> Stack | None:
        """An empty `Stack`, or None if ``data.group_by`` has no meaning here."""
        return None

    def domain_of_validity(self) -> list[str]:
        """For which objects the model is valid, a sentence each, for the model card."""
        return []

    def reinitialised_on_finetune(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether ``init_from`` leaves this tensor of the state as initialised.

        ``settings``: of the model whose weights are taken.
        """
        return False

    # --- what they share ----------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, Output]:
        """The predicted columns among `outputs`."""
        return {name: o for name, o in self.outputs.items() if isinstance(o, Output)}

    @property
    def constants(self) -> dict[str, Constant]:
        """The constant arrays among `outputs`."""
        return {name: o for name, o in self.outputs.items() if isinstance(o, Constant)}

    def predict(
        self, table: Any, outputs: Sequence[str] | str | None = None, **data: Any
    ) -> "Table | DataFrame":
        """Predictions, a row per row of ``table``, in its order.

        ``table``: an astropy Table, a DataFrame or a dict of arrays, with the columns that the
        checkpoint was trained on, or others that ``data`` names:
        ``predict(table, columns={"redshift": "ZSPEC"}, keep=["id"])``.
        ``outputs``: which of `outputs` to return, or "scalars", those of one number per row.

        Returns an astropy Table; of a DataFrame a DataFrame, with its index, that has every column
        of ``outputs``, blank where the input cannot answer it, so that `predict` is a function for
        Dask's and lsdb's ``map_partitions``: an empty frame gives the types, and runs no model.
        """
        from orrery.evaluation.in_memory import predict_frame, predict_table

        pandas = sys.modules.get("pandas")  # which is not needed for tables of other kinds
        is_frame = pandas is not None and isinstance(table, pandas.DataFrame)
        return (predict_frame if is_frame else predict_table)(self, table, outputs, data)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """What Dask takes for the identity of these weights and settings."""
        digest = hashlib.sha256(repr((self.record, self.draw_seed)).encode())
        for name, values in self.state_dict().items():
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return type(self).__qualname__, digest.hexdigest()

    @classmethod
    def refuse_incomplete(cls) -> None:
        """Raise if a required method is missing, before the fit rather than after it."""
        needed = ("loss", "predict_step", "outputs", "evaluate")
        if missing := [name for name in needed if getattr(cls, name) is getattr(Component, name)]:
            raise TypeError(
                f"{cls.__module__}.{cls.__name__} does not define {', '.join(missing)}; a "
                f"component defines {', '.join(needed)}"
            )

    def refuse_unknown_units(self) -> None:
        """Raise if an output has a unit that astropy does not know, before the fit."""
        from astropy import units as u

        for name, output in self.columns.items():
            try:
                u.Unit(output.unit)
            except ValueError as error:
                raise ValueError(
                    f"{type(self).__name__}: output '{name}' has the unit '{output.unit}', which "
                    f"astropy does not know: {error}"
                ) from error

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(next(iter(batch.values())))
        self.log("val/loss", self.loss(batch), prog_bar=True, sync_dist=True, batch_size=size)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """`Fit`'s AdamW: the rate rises over 10% of the run; weight decay is for matrices."""
        fit = self.fit
        groups: dict[str, list[torch.nn.Parameter]] = {"matrix": [], "plain": [], "high_lr": []}
        for name, parameter in self.named_parameters():
            kind = "matrix" if name.endswith("weight") else "plain"
            groups["high_lr" if name in fit.high_lr else kind].append(parameter)
        settings: list[dict[str, Any]] = [
            {"params": groups["matrix"], "weight_decay": fit.weight_decay},
            {"params": groups["plain"]},
            {"params": groups["high_lr"], "lr": 5 * fit.lr},
        ]
        optimizer = torch.optim.AdamW(settings, lr=fit.lr, betas=(0.9, 0.99), weight_decay=0.0)
        per_epoch = self.trainer.estimated_stepping_batches / (self.trainer.max_epochs or 1)
        steps = fit.epochs * per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """By the component's `Fit`, not by the trainer: a Newton step is not clipped."""
        if self.fit.clip is not None:
            self.clip_gradients(optimizer, self.fit.clip, "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = self.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record = checkpoint[RECORD]


def _rate(done: float, warm: float = 0.1) -> float:
    """Learning rate as a fraction of its peak when a fraction ``done`` of the run is over."""
    if done < warm:
        return 0.05 + 0.95 * done / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))


# --- capabilities: what a component may do besides predicting rows ------------------------------


class Posterior(NamedTuple):
    """A posterior inferred from all rows together: draws by name, diagnostics, figure data."""

    draws: Mapping[str, np.ndarray]  # (chains, draws)
    units: Mapping[str, str]  # astropy's spelling
    metrics: Mapping[str, float]
    warnings: Sequence[str] = ()
    # other groups of ArviZ: posterior_predictive, (chains, draws, n), observed_data, (n,)...
    groups: Mapping[str, Mapping[str, np.ndarray]] = {}
    figures: Mapping[str, Mapping[str, np.ndarray]] = {}


@runtime_checkable
class InfersJointly(Protocol):
    """One posterior of all rows of ``data``, written by ``output=posterior.nc``."""

    def infer(self, data: Any, folder: Path | None, seed: int) -> Posterior:
        """``folder``: where an interrupted run saves its state and resumes; None: nowhere."""


class Comparison(NamedTuple):
    """Groups of rows compared with each other: a table, numbers, sentences and figure data."""

    rows: Mapping[str, np.ndarray]  # (pairs,) each: columns of the table
    outputs: Mapping[str, Output]  # unit and meaning of each
    metrics: Mapping[str, float] = {}
    warnings: Sequence[str] = ()
    figures: Mapping[str, Mapping[str, np.ndarray]] = {}


@runtime_checkable
class ComparesGroups(Protocol):
    """Compares the groups of rows of ``data``, written by ``output=comparison.ecsv``."""

    def compare(self, data: Any, seed: int) -> Comparison:
        """``data``: a `datamodules.dataset.GroupedData`, whose batches carry their groups."""


@runtime_checkable
class MakesSkyMap(Protocol):
    """The model is a map of the sky, written by ``output=map.fits`` without a catalogue."""

    def sky_map(self, columns: list[str] | None) -> dict[str, Any]:
        """The arrays of `orrery.evaluation.sky_map.write_sky_map`; empty if not asked for."""


class ObjectRequest(Protocol):
    """How many objects to draw, and the seed; `datamodules.dataset.GenerationRequest` is one."""

    n: int
    seed: int


@runtime_checkable
class Generates(Protocol):
    """Draws objects, written by ``evaluate.py checkpoint=... data=<request> output=mock.fits``."""

    def generated(self, request: ObjectRequest) -> Iterable[dict[str, np.ndarray]]:
        """``request.n`` rows, chunk by chunk: the columns of `generated_columns`."""

    def generated_columns(self, request: ObjectRequest) -> Mapping[str, Output | Constant]:
        """Name, unit and meaning of each column, and constant arrays."""


class Input(NamedTuple):
    """An input of an exported network, (rows,) or (rows, ...): unit, meaning, and an example.

    - ``example``: a few rows that are valid, two or more.
    - ``low``, ``high``: the range for which the network was made; numbers, or one per entry of
      ``axes``.
    - ``axes``: names of the further dimensions, see `Exported`.
    """

    unit: str
    description: str
    example: Tensor
    low: float | Sequence[float] | None = None
    high: float | Sequence[float] | None = None
    axes: tuple[str, ...] = ()


class Exported(NamedTuple):
    """A network as other programs may run it: a row of inputs gives a row of outputs.

    ``module`` takes the tensors of ``inputs`` in their order, and returns a tuple, the outputs in
    theirs; nothing in it may depend on the number of rows, or branch by their values.
    """

    module: torch.nn.Module
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    axes: Mapping[str, Sequence[str] | Tensor] = {}  # what stands along each named axis
    remarks: Sequence[str] = ()  # sentences: what of `Component.predict` is not in the network
    without_onnx: str = ""  # why ONNX does not hold it; empty: it does


@runtime_checkable
class ExportsNetwork(Protocol):
    """Has a network that can be written for other programs, without the zoo's code."""

    def exported(self) -> Exported:
        """Raises ``ValueError``, with the reason, where these settings have no such network."""
