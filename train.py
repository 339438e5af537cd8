"""Train a component of the zoo, then score and plot it: ``python train.py model=zephyr``."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from orrery import command_line, pretrained, progress, runs
from orrery.files import written_atomically


@hydra.main(version_base="1.3", config_path=str(command_line.CONFIGS), config_name="train")
@command_line.user_errors
def main(config: DictConfig) -> float | None:
    command_line.refuse_sweep_of_ddp(config)
    # the quantity that a hyperparameter search over runs minimises
    return train(config, list(HydraConfig.get().overrides.task)).get("val_loss")


def train(config: DictConfig, overrides: list[str]) -> dict[str, float]:
    """Fit, calibrate, evaluate; returns the test metrics. ``overrides``: the command line's."""
    command_line.refuse_missing_file(config)
    with progress.phase("starting PyTorch"):
        import lightning as L
        from hydra.utils import instantiate

        from orrery import checkpoint as checkpoints
        from orrery import tracking
        from orrery.evaluation.evaluate import evaluate
        from orrery.model_card import model_card

    command_line.silence_lightning()
    if config.checkpoint:
        config = runs.resumed(config, overrides)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    run_dir = Path(plain.pop("run_dir"))
    L.seed_everything(plain["seed"], workers=True, verbose=False)

    data = checkpoints.build(plain["data"])
    runs.refuse_without_rows(data)
    with progress.phase("simulating" if data.is_simulation else f"reading {data.label}"):
        data.setup("fit")
    plain["model"] |= data.model_arguments()
    plain["data"] |= (decided := data.inferred_settings())
    model = checkpoints.build(plain["model"])
    model.refuse_incomplete()
    model.refuse_unknown_units()
    command_line.set_precision(model, plain["trainer"]["precision"])
    if plain["trainer"]["max_epochs"] is None:
        plain["trainer"]["max_epochs"] = model.fit.epochs
    described = {key: plain[key] for key in ("model", "data", "trainer", "seed", "init_from")}
    model.record = checkpoints.new_record(described, data.provenance(), decided, type(model))
    if plain["checkpoint"]:
        runs.refuse_other_data(model.record, plain["checkpoint"])
    else:
        with progress.phase("preparing"):
            model.prepare(data)
    if plain["init_from"]:
        path = pretrained.find(plain["init_from"])
        record = checkpoints.read_checkpoint(path)[checkpoints.RECORD]
        runs.refuse_leak(model.record, record, path)
        checkpoints.load_weights(model, path)

    tracking.offline_unless_asked()
    if model.fit.result == "last":
        plain["callbacks"]["checkpoint"] |= {"monitor": "epoch", "mode": "max"}
    trainer = instantiate(
        plain["trainer"],
        callbacks=[
            *(instantiate(node) for node in plain["callbacks"].values()),
            tracking.StopTogether(),
        ],
        logger=instantiate(plain["logger"]),
        plugins=[checkpoints.AtomicCheckpointIO()],
        default_root_dir=run_dir,
    )
    if trainer.is_global_zero and not plain["checkpoint"]:
        runs.claim_run_folder(run_dir)
    if trainer.logger:
        trainer.logger.log_hyperparams(plain)
    with progress.phase("training"):
        trainer.fit(model, datamodule=data, ckpt_path=plain["checkpoint"])
    validated = tracking.val_loss(trainer, model)
    # the best epoch's weights, calibrated, are the result: without training state or local paths
    best = checkpoints.read_checkpoint(trainer.checkpoint_callback.best_model_path)
    model.load_state_dict(best["state_dict"])
    with progress.phase("calibrating"):
        model.eval().calibrate(data)
    final = {key: best[key] for key in ("epoch", "global_step", "pytorch-lightning_version")}
    final |= {"state_dict": model.state_dict(), checkpoints.RECORD: model.record}
    if trainer.is_global_zero:  # before it is scored: what goes wrong there costs no model
        checkpoints.write_checkpoint(final, run_dir / "best.ckpt")
    component = checkpoints.component_name(plain["model"]["_target_"])
    metrics: dict[str, float] = {}
    if data.n_predicted():  # data.test_fraction=0 leaves no test rows
        metrics = evaluate(model, data, trainer, run_dir, f"{component} on {data.label}")
    model.record["metrics"] = metrics = metrics | validated
    if trainer.is_global_zero:
        checkpoints.write_checkpoint(final, run_dir / "best.ckpt")
        with written_atomically(run_dir / "model_card.md") as part:
            part.write_text(model_card(component, model))
        tracking.track(trainer, run_dir, component, model.record)
    return metrics


if __name__ == "__main__":
    command_line.allow_unlisted_keys(
        "data.columns", "data.cuts", "data.units", "data.population", "data.errors"
    )
    command_line.refuse_unknown_choices()
    command_line.run(main)
