"""Trained models by name or path: ``from orrery import load``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: `train.py --help` must not wait for it
    pass

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def load(checkpoint: str | Path) -> Any:
    """A trained component by path, or by the name of a pretrained one (see `names`).

    Returns the component, in evaluation mode: ``load("zephyr").predict(table)`` for every one, and
    its own methods, such as ``load("gyro").age(prot=25.4, bp_rp0=0.82)``.
    """
    from orrery.checkpoint import read_checkpoint, restore

    path = find(checkpoint)
    return restore(read_checkpoint(path), path=path)


def names() -> list[str]:
    """The pretrained models that are shipped."""
    return sorted(path.stem for path in CHECKPOINTS.glob("*.ckpt"))


def find(checkpoint: str | Path | None) -> Path:
    """The file of a checkpoint given by path or by pretrained name."""
    shipped = f"pretrained models: {', '.join(names()) or 'none'}"
    if checkpoint is None:
        raise ValueError(f"no checkpoint is given: checkpoint=<path or name> ({shipped})")
    if str(checkpoint) in names():
        return CHECKPOINTS / f"{checkpoint}.ckpt"
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint '{checkpoint}' ({shipped})")
    return Path(checkpoint)
