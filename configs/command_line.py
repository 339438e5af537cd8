"""What a command line asks for, checked and merged with what a checkpoint holds.

Light to import: `train.py --help` must not wait for torch.
"""

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def user_errors(door: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a door so that a user's mistake is a message and a non-zero exit, not a traceback."""

    @functools.wraps(door)
    def wrapped(config: Any) -> Any:
        try:
            return door(config)
        except (ValueError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            print(f"\nerror: {error}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped


def open_groups(*groups: str) -> None:
    """Let the command line set keys of these config sections that their YAML does not list."""
    pattern = rf"^(?=({'|'.join(groups)})\.)"
    sys.argv[1:] = [re.sub(pattern, "++", word) for word in sys.argv[1:]]


def refuse_sweep_of_ddp(config: DictConfig) -> None:
    """Lightning starts the other processes by the same command, and with -m that is the sweep."""
    hydra = HydraConfig.get()
    sweep = hydra.mode is not None and hydra.mode.name == "MULTIRUN"
    if (
        sweep
        and config.trainer.get("strategy") == "ddp"
        and "submitit" not in hydra.launcher._target_
    ):
        raise ValueError(
            "a sweep (-m) with trainer=ddp would start the whole sweep once per process; add "
            "hydra/launcher=submitit_slurm, or sweep with trainer=cpu or trainer=gpu"
        )


def resumed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run that ``config.checkpoint`` belongs to, to go on in its folder."""
    from models.checkpoint import RECORD, read_checkpoint
    from zoo import find

    path = find(config.checkpoint)
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


def data_for(record: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    """The data module to evaluate on: the checkpoint's own, with what the command line asked.

    A named ``data=`` section replaces the checkpoint's; ``data.path`` alone means all rows of
    that file; nothing at all means the test split of the data it was trained on.
    """
    from models.checkpoint import build

    stored = {} if "_target_" in asked else record["config"]["data"]
    settings: Any = OmegaConf.to_container(OmegaConf.merge(stored, asked))
    if asked.get("path"):
        settings["split"] = asked.get("split", "all")
    data = build(settings)
    if data.path and not asked.get("path"):
        trained_on = record["data"]
        where = f"{data.path} ({trained_on['rows']:,} rows, sha256 {trained_on['sha256'][:12]}...)"
        if not Path(data.path).is_file():
            raise FileNotFoundError(
                f"this model was trained on {where}, which is not here, and may not be shipped; "
                f"origin: {data.origin or 'not recorded'}. Name a catalogue: data.path=<file>"
            )
        if data.provenance()["sha256"] != trained_on["sha256"]:
            raise ValueError(
                f"this model was trained on {where}, and the file has changed since, so that its "
                f"test rows are no longer known; name a catalogue: data.path=<file>"
            )
    return data


def quiet() -> None:
    """Lightning without its messages, advertisements and warnings that are no news here."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    for known in (
        "Checkpoint directory .* exists",
        ".*LeafSpec",
        "The number of training batches",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", known)
