"""Score a checkpoint, or apply it to a catalogue: ``python evaluate.py checkpoint=zephyr``."""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from orrery import command_line, pretrained, progress, runs


@hydra.main(version_base="1.3", config_path=str(command_line.CONFIGS), config_name="evaluate")
@command_line.user_errors
def main(config: DictConfig) -> None:
    command_line.refuse_missing_file(config)
    path = pretrained.find(config.checkpoint)
    with progress.phase("starting PyTorch"):
        import lightning as L
        from hydra.utils import instantiate

        from orrery import tracking
        from orrery.checkpoint import read_checkpoint, restore
        from orrery.datamodules.base import CatalogueData
        from orrery.datamodules.dataset import Dataset, GenerationRequest, GroupedData, JointData
        from orrery.evaluation.evaluate import compare, evaluate, generate, infer, write_sky_map_of

    command_line.silence_lightning()
    checkpoint = read_checkpoint(path)
    # a data section may speak of the model's settings, which are those of the checkpoint
    own = {"model": checkpoint["orrery"]["config"]["model"]}
    merged = OmegaConf.merge(own, config)
    asked: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    changes = {key: asked["model"][key] for key in config.get("model") or {}}
    L.seed_everything(asked["seed"], workers=True, verbose=False)
    model = restore(checkpoint, changes, path)
    model.draw_seed = asked["seed"]
    of_data = asked.get("data") or {}
    is_own = "_target_" not in of_data and not of_data.get("path")  # what it was trained on
    is_map = is_own and write_sky_map_of(model, asked["output"], asked["columns"], path.stem)
    if is_map:
        asked |= {"output": None, "columns": None}
    try:
        data: Dataset = runs.data_for(checkpoint["orrery"], of_data, command_line.typed("data"))
    except (FileNotFoundError, runs.ChangedSince) as error:
        if not is_map:
            raise
        print(f"note: not scored: {error}")
        return
    runs.refuse_overwriting(asked["output"], data)
    command_line.set_precision(model, asked["trainer"]["precision"])
    trainer = instantiate(
        {**asked["trainer"], "max_epochs": -1},
        callbacks=[tracking.ShowProgress(), tracking.StopTogether()],
        logger=False,
        default_root_dir=asked["run_dir"],
    )
    title = f"{path.stem} on {data.label}"
    run_dir = Path(asked["run_dir"])
    match data:
        case GenerationRequest():
            generate(model, data, title, asked["output"], asked["columns"])
        case JointData():
            infer(model, data, run_dir, title, asked["seed"], asked["output"])
        case GroupedData():
            compare(model, data, run_dir, title, asked["seed"], asked["output"])
        case CatalogueData():
            evaluate(model, data, trainer, run_dir, title, asked["output"], asked["columns"])


if __name__ == "__main__":
    command_line.allow_unlisted_keys("data", "model")
    command_line.refuse_unknown_choices()
    command_line.run(main)
