"""The zoo from Python: ``from orrery import load; load("zephyr").predict(table)``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: `train.py --help` must not wait for it
    from astropy.table import Table

HOME = Path(__file__).parent  # of the package, which holds the checkpoints


def load(checkpoint: str | Path) -> "Predictor":
    """A trained model by path, or by the name of a pretrained one in ``checkpoints/``."""
    from orrery.checkpoint import read_checkpoint

    return Predictor(read_checkpoint(find(checkpoint)))


class Predictor:
    """A trained component, ready for tables. ``model`` is its LightningModule."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        from orrery.checkpoint import restore

        self.config = checkpoint["orrery"]["config"]
        self.model = restore(checkpoint)

    def __getattr__(self, name: str) -> Any:
        """What only this component answers, such as ``load("dust").query(coords)``."""
        if name == "model":  # not there yet
            raise AttributeError(name)
        return getattr(self.model, name)

    def predict(self, table: Any, **data: Any) -> "Table":
        """Predictions as an astropy Table, a row per row of ``table``, in its order.

        ``table`` is an astropy Table, a DataFrame or a dict of arrays, with the columns that the
        checkpoint was trained on, or others that ``data`` names:
        ``predict(table, columns={"redshift": "ZSPEC"}, keep=["id"])``.
        """
        from astropy.table import Table, vstack

        from orrery.command_line import data_for

        asked = {"path": None, "group": None, "keep": [], "group_by": None, **data}
        source = data_for(self.model.record, asked)
        source.table, source.split = table, "all"
        if twice := [name for name in source.keep if name in self.model.outputs]:
            raise ValueError(f"keep: {', '.join(twice)}: predictions have this name; rename it")
        try:
            parts = [Table(rows) for rows in self._rows(source)]
        except ValueError as error:
            if "data." not in str(error):
                raise
            raise ValueError(
                f"{error}\nFrom Python, data.<setting> is an argument of predict: data.keep=[a] is "
                f"keep=['a'], and data.columns.a=b is columns={{'a': 'b'}}"
            ) from error
        predictions = vstack(parts, metadata_conflicts="silent")
        for name, output in self.model.outputs.items():
            if name in predictions.colnames:
                predictions[name].unit = output.unit or None
                predictions[name].description = output.description
        predictions.meta.update({k: c.values.squeeze() for k, c in self.model.constants.items()})
        return predictions

    def _rows(self, data: Any) -> Iterator[dict[str, Any]]:
        """Pass-through columns and predictions, as arrays, chunk by chunk."""
        import torch

        with torch.inference_mode():
            for i, batch in enumerate(data.prediction_batches()):
                rows = self.model.predict_step(batch, i)
                yield batch["keep"] | {name: values.numpy() for name, values in rows.items()}


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
