"""The progress of a fit, and the results for an experiment tracker."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from orrery import progress


class ShowProgress(ProgressBar):
    """Reports rows and epochs from Lightning to the phase of the command (`orrery.progress`)."""

    def disable(self) -> None:
        """Called by Lightning in all processes but the first, where phases print nothing anyway."""

    def enable(self) -> None:
        """Called by Lightning in the first process; nothing to do."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rows, self.first_epoch = 0, trainer.current_epoch

    def on_train_batch_end(
        self, trainer: L.Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows += len(next(iter(batch.values()))) * trainer.world_size
        done = (batch_idx + 1) / trainer.num_training_batches
        if done < 1:  # else it is said at the end of the epoch, with its losses
            self._show_fit(trainer, done)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._show_fit(trainer, 1.0)

    def _show_fit(self, trainer: L.Trainer, part: float) -> None:
        phase, epochs = progress.current(), trainer.max_epochs
        if phase is None or not epochs:
            return
        phase.total = epochs - self.first_epoch
        done = trainer.current_epoch - self.first_epoch + part
        if phase.is_due(done):  # a loss is read off a GPU now and then, not at each step
            known = trainer.callback_metrics
            losses = [f"{k} {known[k]:.3f}" for k in ("train/loss", "val/loss") if k in known]
            epoch = f"epoch {trainer.current_epoch + 1} of {epochs}"
            note = f"{epoch}: {' '.join(losses)}" if losses else epoch
            phase.update(done, self.rows, note=note)

    def on_predict_start(self, *_: Any) -> None:
        self.rows = 0

    def on_predict_batch_end(
        self, trainer: L.Trainer, model: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.rows += len(batch["row"]) * trainer.world_size
        if phase := progress.current():
            phase.update(self.rows, self.rows)


class StopTogether(L.Callback):
    """SIGTERM stops all processes of a run at once.

    Lightning's own handler waits in a collective operation that the others never reach.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)

    def _listen(self, trainer: L.Trainer) -> None:
        installed = signal.getsignal(signal.SIGTERM)  # Lightning's, which calls ours at the end
        handlers = getattr(installed, "signal_handlers", [])
        stop = next((each for each in handlers if hasattr(each, "stops")), None)
        if stop is None or trainer.world_size == 1:
            return
        launcher = trainer.strategy.launcher

        def stop_all(number: int, frame: Any) -> None:
            if launcher is not None:
                launcher.kill(number)
            stop(number, frame)

        signal.signal(signal.SIGTERM, stop_all)


def offline_unless_asked() -> None:
    """wandb is online if WANDB_MODE says so, or there is a key (variable or `wandb login`)."""
    netrc = Path.home() / ".netrc"
    logged_in = netrc.is_file() and "wandb" in netrc.read_text()
    if not os.environ.get("WANDB_API_KEY") and not logged_in:
        os.environ.setdefault("WANDB_MODE", "offline")


def val_loss(trainer: Any, model: Any) -> dict[str, float]:
    """The validation loss of the resulting epoch; nothing where a finished run was resumed.

    Raises ``ValueError`` if the fit diverged.
    """
    least = trainer.checkpoint_callback.best_model_score
    loss = trainer.callback_metrics.get("val/loss") if model.fit.result == "last" else least
    if loss is None:
        return {}
    if not math.isfinite(float(loss)):
        raise ValueError("no epoch has a finite val/loss: the fit diverged; try a lower model.lr")
    return {"val_loss": float(loss)}


def track(trainer: Any, run_dir: Path, name: str, record: dict[str, Any]) -> None:
    """Log the test metrics, the figures, the card and the checkpoint to the trackers.

    TensorBoard, which has no files, gets all but the checkpoint.
    """
    metrics = {f"test/{key}": value for key, value in record["metrics"].items()}
    figures = sorted(run_dir.glob("*.png"))
    # without test rows there are no metrics
    files = [run_dir / file for file in ("best.ckpt", "model_card.md", "metrics.json")]
    files = [file for file in files if file.exists()]
    for logger in trainer.loggers:
        match logger:
            case WandbLogger():
                import wandb  # 1.1 s of CPU, which only a run with it needs

                run = logger.experiment
                run.summary.update(metrics)
                run.log({path.stem: wandb.Image(str(path)) for path in figures})
                artifact = wandb.Artifact(name, type="model", metadata=record)
                for file in files:
                    artifact.add_file(str(file))
                run.log_artifact(artifact)
                run.finish()
            case MLFlowLogger():
                for key, value in metrics.items():
                    if math.isfinite(value):  # its databases take no other
                        logger.experiment.log_metric(logger.run_id, key, value)
                for path in figures:
                    logger.experiment.log_artifact(logger.run_id, str(path), "figures")
                for file in files:
                    logger.experiment.log_artifact(logger.run_id, str(file), name)
            case TensorBoardLogger():
                for key, value in metrics.items():
                    logger.experiment.add_scalar(key, value, trainer.global_step)
                for path in figures:
                    pixels = imread(path)[..., :3]
                    logger.experiment.add_image(path.stem, pixels, dataformats="HWC")
                card = (run_dir / "model_card.md").read_text()
                logger.experiment.add_text("model_card", card)
                logger.experiment.flush()
