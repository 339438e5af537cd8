"""Trained models by name or path: ``from orrery import load``."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from orrery.exported_files import CONFIG, NETWORKS, WEIGHTS

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def load(checkpoint: str | Path) -> Any:
    """A trained component by path, or by the name of a pretrained one (see `names`).

    A path is that of a ``.ckpt``, or of a folder of ``python -m orrery export``.

    Returns the component, in evaluation mode: ``load("zephyr").predict(table)`` for every one, and
    its own methods, such as ``load("gyro").age(prot=25.4, bp_rp0=0.82)``.
    """
    from orrery.checkpoint import read_checkpoint, restore  # torch takes seconds to import

    path = find(checkpoint)
    return restore(read_checkpoint(path), path=path)


def names() -> list[str]:
    """The pretrained models that are shipped."""
    return sorted(path.stem for path in CHECKPOINTS.glob("*.ckpt"))


def find(checkpoint: str | Path | None) -> Path:
    """The file or folder of a checkpoint given by path or by pretrained name."""
    shipped = f"pretrained models: {', '.join(names()) or 'none'}"
    if checkpoint is None:
        raise ValueError(f"no checkpoint is given: checkpoint=<path or name> ({shipped})")
    if str(checkpoint) in names():
        return CHECKPOINTS / f"{checkpoint}.ckpt"
    path = Path(checkpoint)
    if path.is_dir():
        _refuse_other_folders(path)
    elif not path.is_file():
        near = get_close_matches(str(checkpoint), names())
        hint = f"near: {', '.join(near)}; " if near else ""
        raise FileNotFoundError(f"there is no checkpoint '{checkpoint}' ({hint}{shipped})")
    return path


def weights_file(path: Path) -> Path:
    """The file that holds the weights of a checkpoint, which is a file or a folder."""
    return path / WEIGHTS if path.is_dir() else path


def _refuse_other_folders(folder: Path) -> None:
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if not missing:
        return
    if (folder / "best.ckpt").is_file():
        hint = f"it is the folder of a run, whose model is {folder / 'best.ckpt'}"
    elif any((folder / name).is_file() for name in NETWORKS.values()):
        hint = "it holds a network for other programs; export without format= for a checkpoint"
    else:
        hint = "python -m orrery export writes such a folder"
    raise FileNotFoundError(
        f"there is no checkpoint in the folder {folder}: it has no {', '.join(missing)}; {hint}"
    )
