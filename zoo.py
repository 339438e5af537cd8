"""The zoo from Python: ``from zoo import load; load("zephyr").predict(table)``."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: `train.py --help` must not wait for it
    from astropy.table import Table

HOME = Path(__file__).parent


def load(checkpoint: str | Path) -> "Predictor":
    """A trained model by path, or by the name of a pretrained one in ``checkpoints/``."""
    from models.checkpoint import read_checkpoint

    return Predictor(read_checkpoint(find(checkpoint)))


class Predictor:
    """A trained component, ready for tables. ``model`` is its LightningModule."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.config = checkpoint["orrery"]["config"]
        self.model = restore(checkpoint)

    def predict(self, table: Any, **data: Any) -> "Table":
        """Predictions as an astropy Table, a row per row of ``table``, in its order.

        ``table`` is an astropy Table, a DataFrame or a dict of arrays, with the columns that the
        checkpoint was trained on, or others that ``data`` names:
        ``predict(table, columns={"redshift": "ZSPEC"}, keep=["id"])``.
        """
        import torch
        from astropy.table import Table, vstack

        source = build({**self.config["data"], "path": None, "keep": (), **data})
        source.table, source.split = table, "all"
        parts = []
        with torch.inference_mode():
            for i, batch in enumerate(source.prediction_batches()):
                rows = self.model.predict_step(batch, i)
                parts.append(Table(batch["keep"] | {k: v.numpy() for k, v in rows.items()}))
        predictions = vstack(parts, metadata_conflicts="silent")
        for name, output in self.model.outputs.items():
            if name in predictions.colnames:
                predictions[name].unit = output.unit or None
                predictions[name].description = output.description
        predictions.meta.update(self.model.constants)
        return predictions


def names() -> list[str]:
    """The pretrained models that are shipped."""
    return sorted(path.stem for path in (HOME / "checkpoints").glob("*.ckpt"))


def find(checkpoint: str | Path | None) -> Path:
    """The file of a checkpoint given by path or by pretrained name."""
    shipped = f"pretrained models: {', '.join(names()) or 'none'}"
    if checkpoint is None:
        raise ValueError(f"say which checkpoint: checkpoint=<path or name> ({shipped})")
    if str(checkpoint) in names():
        return HOME / "checkpoints" / f"{checkpoint}.ckpt"
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint '{checkpoint}' ({shipped})")
    return Path(checkpoint)


def build(node: Mapping[str, Any], **more: Any) -> Any:
    """Make the component or data module that ``node["_target_"]`` names, and nothing else.

    A checkpoint's config is untrusted input: only classes that are defined in ``models`` or
    ``datamodules`` and are components or data modules are ever called.
    """
    from lightning import LightningDataModule, LightningModule

    target = str(node.get("_target_"))
    if not re.fullmatch(r"(models|datamodules)(\.[a-z]\w*)+\.[A-Z]\w*", target):
        raise ValueError(f"refused to build '{target}': it is not a class of models or datamodules")
    module, _, name = target.rpartition(".")
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no '{target}' in this version of the zoo: {error}") from error
    ours = inspect.isclass(made) and made.__module__.split(".")[0] in ("models", "datamodules")
    if not ours or not issubclass(made, LightningModule | LightningDataModule):
        raise ValueError(f"refused to build '{target}': it is not a component of the zoo")
    arguments = {k: v for k, v in {**node, **more}.items() if k != "_target_"}
    known = [p for c in made.__mro__ for p in inspect.signature(c.__init__).parameters]
    for key in arguments:
        if key not in known:
            near = get_close_matches(key, known, 3) or sorted(set(known) - {"self"})
            raise ValueError(f"{target} has no setting '{key}'; near: {', '.join(near)}")
    return made(**arguments)


def restore(checkpoint: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Any:
    """The trained model of a checkpoint, in evaluation mode; ``changes``: settings of the model."""
    model = build({**checkpoint["orrery"]["config"]["model"], **(changes or {})})
    model.load_state_dict(checkpoint["state_dict"])
    model.record = checkpoint["orrery"]
    return model.eval()


def data_for(record: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    """The data module to evaluate on: the checkpoint's own, with what the command line asked.

    A named ``data=`` section replaces the checkpoint's; ``data.path`` alone means all rows of
    that file; nothing at all means the test split of the data it was trained on.
    """
    from omegaconf import OmegaConf

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


def load_weights(model: Any, path: Path) -> None:
    """Start ``model`` from the weights of another checkpoint of the same component.

    Buffers (scaling, softening...) must agree in shape; parameters that do not, such as the
    head of another set of sources, keep their fresh values, and are named.
    """
    from models.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    theirs = checkpoint["orrery"]["config"]["model"]["_target_"]
    ours = f"{type(model).__module__}.{type(model).__name__}"
    if theirs != ours:
        raise ValueError(f"init_from: {path} holds {theirs}, and the model is {ours}")
    state, buffers = model.state_dict(), dict(model.named_buffers())
    fresh = []
    for name, values in checkpoint["state_dict"].items():
        if name in state and state[name].shape == values.shape:
            state[name] = values
        elif name in buffers:
            raise ValueError(
                f"init_from: {path} has {name} of shape {tuple(values.shape)}, yours needs "
                f"{tuple(buffers[name].shape)}: the two do not take the same inputs"
            )
        else:
            fresh.append(name)
    model.load_state_dict(state)
    print(f"weights of {path}" + (f"; started afresh: {', '.join(fresh)}" if fresh else ""))


def quiet() -> None:
    """Lightning without its messages, advertisements and warnings that are no news here."""
    import logging
    import warnings

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    for known in ("Checkpoint directory .* exists", ".*LeafSpec", ".*does not have many workers"):
        warnings.filterwarnings("ignore", known)


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
