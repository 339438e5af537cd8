"""Train a component of the zoo, then score and plot it: ``python train.py model=zephyr``."""

import os
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import zoo


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
@zoo.user_errors
def main(config: DictConfig) -> float | None:
    if HydraConfig.get().mode.name == "MULTIRUN" and config.trainer.get("strategy") == "ddp":
        if "submitit" not in HydraConfig.get().launcher._target_:
            raise ValueError(
                "a sweep (-m) with trainer=ddp would start the whole sweep once per process; add "
                "hydra/launcher=submitit_slurm, or sweep with trainer=cpu or trainer=gpu"
            )
    # the quantity that a hyperparameter search over runs minimises
    return train(config, list(HydraConfig.get().overrides.task)).get("val_loss")


def train(config: DictConfig, overrides: list[str]) -> dict[str, float]:
    """Fit, calibrate, evaluate; returns the test metrics. ``overrides``: the command line's."""
    import lightning as L
    import torch
    from hydra.utils import instantiate

    from evaluate import evaluate
    from models.checkpoint import (
        RECORD,
        AtomicCheckpointIO,
        new_record,
        read_checkpoint,
        write_checkpoint,
    )

    zoo.quiet()
    if config.checkpoint:
        config = resumed(config, overrides)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    run_dir = Path(plain.pop("run_dir"))
    L.seed_everything(plain["seed"], workers=True, verbose=False)

    data = zoo.build(plain["data"])
    data.setup("fit")
    for section in ("model", "data"):
        plain[section] |= data.schema()
    model = zoo.build(plain["model"])
    if plain["trainer"]["precision"] not in model.precisions:
        raise ValueError(
            f"trainer.precision={plain['trainer']['precision']} is not safe for this component; "
            f"it allows {', '.join(model.precisions)}"
        )
    model.record = new_record(plain, data.provenance())
    if plain["init_from"]:
        zoo.load_weights(model, zoo.find(plain["init_from"]))
    elif not plain["checkpoint"]:
        model.prepare(data)

    if "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")
    trainer = instantiate(
        plain["trainer"],
        callbacks=[instantiate(node) for node in plain["callbacks"].values()],
        logger=instantiate(plain["logger"]),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run_dir,
    )
    if trainer.logger:
        trainer.logger.log_hyperparams(plain)
    trainer.fit(model, datamodule=data, ckpt_path=plain["checkpoint"])

    # the best epoch's weights, calibrated, are the result
    best = read_checkpoint(trainer.checkpoint_callback.best_model_path)
    model.load_state_dict(best["state_dict"])
    with torch.inference_mode():
        model.eval().calibrate(data)
    component = plain["model"]["_target_"].split(".")[1]
    metrics = evaluate(model, data, trainer, run_dir, f"{component} on {data.name}")
    metrics["val_loss"] = float(trainer.checkpoint_callback.best_model_score)
    if trainer.is_global_zero:
        model.record["metrics"] = metrics
        final = {"state_dict": model.state_dict(), "epoch": best["epoch"], RECORD: model.record}
        final |= {key: best[key] for key in ("global_step", "pytorch-lightning_version")}
        write_checkpoint(final, run_dir / "best.ckpt")
    return metrics


def resumed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run that ``config.checkpoint`` belongs to, to go on in its folder."""
    from models.checkpoint import RECORD, read_checkpoint

    path = zoo.find(config.checkpoint)
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds a finished model without its training state; resume from last.ckpt, or "
            f"fine-tune with init_from={path}"
        )
    stored = checkpoint[RECORD]["config"]
    for word in overrides:
        if word.startswith("model=") and f"models.{word[6:]}." not in stored["model"]["_target_"]:
            raise ValueError(f"{path} is a checkpoint of {stored['model']['_target_']}, not {word}")
    own = [
        word.lstrip("+") for word in overrides if word.lstrip("+").startswith(("model.", "data."))
    ]
    OmegaConf.set_struct(config, False)
    config.model, config.data, config.seed = stored["model"], stored["data"], stored["seed"]
    config.run_dir = str(path.parent)
    return OmegaConf.merge(config, OmegaConf.from_dotlist(own))  # type: ignore[return-value]


if __name__ == "__main__":
    zoo.open_groups("data.columns")
    main()
