"""What every component of the zoo shares."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from orrery.checkpoint import RECORD
from orrery.models.layers.stack import Stack

Batch = Mapping[str, Any]


class Output(NamedTuple):
    """One predicted column: its unit (astropy's spelling), meaning, and place in an HDF5 file."""

    unit: str
    description: str
    location: str = ""


class Constant(NamedTuple):
    """An array written once with the predictions, and its place in an HDF5 file."""

    values: np.ndarray
    location: str


class Product(NamedTuple):
    """What was inferred from many rows: posterior draws by name, and what is known of them."""

    draws: Mapping[str, np.ndarray]  # (chains, draws)
    units: Mapping[str, str]  # astropy's spelling
    metrics: Mapping[str, float]
    remarks: Sequence[str] = ()  # what a user should know of this fit
    # other groups of ArviZ: posterior_predictive, (chains, draws, n), observed_data, (n,)...
    groups: Mapping[str, Mapping[str, np.ndarray]] = {}
    shown: Mapping[str, np.ndarray] = {}  # what figures show besides the draws


NEEDED = ("loss", "predict_step", "outputs", "metrics")  # what a component must define


class Component(L.LightningModule):
    """A LightningModule of the zoo. A component adds what is `NEEDED`.

    ``__init__`` takes plain scalars, strings, lists and dicts only, so that a checkpoint can be
    loaded with ``weights_only=True``. What the data decide (bands, sources...) are arguments too,
    and come from the data module's ``schema()``.

    `prepare` stands before the fit (scaling), `calibrate` after it (recalibration); what they
    compute are buffers, so that a checkpoint takes and gives physical units.
    """

    record: dict[str, Any]
    draw_seed: int = 0  # of the draws among predictions: that of evaluate.py
    # what weights and buffers mean: one more whenever those of before would be read wrongly
    format: int = 1
    last_is_best = False  # whether the result is the last epoch, not that of the least val/loss
    smaller_is_better: frozenset[str] = frozenset()
    keep_location: str = "{name}"  # of pass-through columns in an HDF5 file
    stacked_column: str | None = None  # the density that data.group_by stacks
    fast: frozenset[str] = frozenset()  # names of parameters that need a higher learning rate
    stack_units: Mapping[str, str] = {}  # of the columns of `stack_table`
    precisions: tuple[str, ...] = ("32-true",)  # those that are safe for it
    clip: float | None = 5.0  # norm of the gradient, against a single bad batch

    def __init__(self, lr: float, weight_decay: float, epochs: int) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.epochs = lr, weight_decay, epochs
        self.record = {}

    # --- what a component defines -------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, scalar. Deterministic: augmentation belongs to the data module."""
        raise NotImplementedError

    def starts_afresh(self, name: str, theirs: Mapping[str, Any]) -> bool:
        """Whether ``init_from`` leaves this part of the state as it is; ``theirs``: settings.

        Raises ``ValueError`` where the other model does not take the same inputs.
        """
        return False

    def prepare(self, data: Any) -> None:
        """Before the fit, on every rank: set buffers from ``data.training_batch()``."""

    def calibrate(self, data: Any) -> None:
        """After the fit, on every rank: set buffers from ``data.validation_batch()``."""

    @property
    def outputs(self) -> dict[str, Output]:
        """The columns that `predict_step` gives, in the order in which they are written."""
        raise NotImplementedError

    @property
    def constants(self) -> dict[str, Constant]:
        """Arrays that belong to all rows together, such as the grid of a density."""
        return {}

    def metrics(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The field's own figures of merit from predicted rows; empty when they hold no truth."""
        return {}

    def remarks(self, rows: Mapping[str, np.ndarray]) -> list[str]:
        """What a person should be told about these predictions, a sentence each."""
        return []

    def new_stack(self) -> Stack | None:
        """Where ``stacked_column`` is gathered by group; None for a component without one."""
        return Stack() if self.stacked_column else None

    def to_stack(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """What `stacked_column` counts for in a group, (batch, n); NaN for objects that do not."""
        return rows[str(self.stacked_column)]

    def stack_table(self, stacked: Stack) -> dict[str, np.ndarray]:
        """The stacked densities as columns of a table, for ``stacked.ecsv``."""
        raise NotImplementedError

    def learned(self) -> dict[str, float]:
        """Parameters of the fit that mean something, reported with the metrics."""
        return {}

    def whole(self, columns: list[str] | None) -> dict[str, Any]:
        """What the model itself is, such as a map, for ``output=`` without a catalogue."""
        return {}

    def judged(self, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Figures of merit that rows do not hold, such as a map's, and what its figures show."""
        return {}, {}

    def scope(self) -> list[str]:
        """For which objects the model holds, a sentence each, for the model card."""
        return []

    def examples(self, batch: Batch) -> dict[str, Tensor]:
        """Further arrays of a few objects, (batch, ...), for the figures; not written to files."""
        return {}

    def timed(self, batch: Batch) -> dict[str, tuple[Callable[[], object], int]]:
        """What evaluation times, by metric: a function, and how many objects it serves."""
        return {"objects_per_second": (lambda: self.predict_step(batch, 0), len(batch["row"]))}

    def infer(self, data: Any, folder: Path, seed: int) -> Product:
        """What all rows of ``data`` say together; what is interrupted goes on from ``folder``."""
        raise ValueError(f"{type(self).__name__} answers rows, not data={type(data).__name__}")

    def true_model(self, data: Any) -> dict[str, np.ndarray]:
        """Rows which the true model of a simulation gives for test objects; empty if unknown."""
        return {}

    # --- what they share ----------------------------------------------------------------------

    @classmethod
    def refuse_incomplete(cls) -> None:
        """Before the fit: what is missing shows otherwise after it."""
        if missing := [name for name in NEEDED if getattr(cls, name) is getattr(Component, name)]:
            raise TypeError(
                f"{cls.__module__}.{cls.__name__} does not define {', '.join(missing)}; a "
                f"component defines {', '.join(NEEDED)}"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(next(iter(batch.values())))
        self.log("val/loss", self.loss(batch), prog_bar=True, sync_dist=True, batch_size=size)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW whose rate rises over 10% of the run and falls to zero along a cosine.

        Weight decay is for matrices; parameters that `fast` names learn five times faster.
        """
        groups: dict[str, list[torch.nn.Parameter]] = {"matrix": [], "plain": [], "fast": []}
        for name, parameter in self.named_parameters():
            kind = "fast" if name in self.fast else "matrix" if name.endswith("weight") else "plain"
            groups[kind].append(parameter)
        settings: list[dict[str, Any]] = [
            {"params": groups["matrix"], "weight_decay": self.weight_decay},
            {"params": groups["plain"]},
            {"params": groups["fast"], "lr": 5 * self.lr},
        ]
        optimizer = torch.optim.AdamW(
            settings,
            lr=self.lr,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        per_epoch = self.trainer.estimated_stepping_batches / (self.trainer.max_epochs or 1)
        steps = self.epochs * per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Of the component, not of the trainer: a Newton step has none."""
        if self.clip is not None:
            self.clip_gradients(optimizer, self.clip, "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = self.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record = checkpoint[RECORD]


def _rate(done: float, warm: float = 0.1) -> float:
    """Learning rate as a share of its peak when a share ``done`` of the run is over."""
    if done < warm:
        return 0.05 + 0.95 * done / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))
