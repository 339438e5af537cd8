"""Write a checkpoint as a folder for model hubs, or its network for other programs.

``python -m orrery export checkpoint=zephyr to=folder``
"""

import shutil
from difflib import get_close_matches
from pathlib import Path

import hydra
from omegaconf import DictConfig

from orrery import command_line, pretrained
from orrery.files import unfinished

FORMATS = ("safetensors", "onnx", "torch_export")


@hydra.main(version_base="1.3", config_path=str(command_line.CONFIGS), config_name="export")
@command_line.user_errors
def main(config: DictConfig) -> None:
    export(config.checkpoint, config.to, config.format)


def export(checkpoint: str | Path | None, to: str | Path | None, format: str) -> None:
    """Write a checkpoint, by path or name, to the new folder ``to``, in one of `FORMATS`.

    The folder is complete or not there. Raises ``ValueError`` for another format, a folder that
    exists, an unfinished run, and a component that has no network to export.
    """
    if format not in FORMATS:
        near = get_close_matches(str(format), FORMATS)
        raise ValueError(
            f"there is no format={format}; "
            + (f"near: {', '.join(near)}; " if near else "")
            + f"there are {', '.join(FORMATS)}"
        )
    path = pretrained.find(checkpoint)
    if to is None:
        raise ValueError("no folder is given to write to: to=<folder>")
    if Path(to).exists() or Path(to).is_symlink():
        raise ValueError(f"to={to} exists already; name another folder, or remove it first")

    from orrery.checkpoint import read_checkpoint, restore
    from orrery.hub_folder import write_folder
    from orrery.network_files import write_network

    read = read_checkpoint(path)
    model = restore(read, path=path)
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(to)
    try:
        part.mkdir()
        if format == "safetensors":
            write_folder(read, model, path.stem, part)
            read_checkpoint(part)
        else:
            write_network(model, format, part)
        part.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    names = sorted(file.name for file in Path(to).iterdir())
    print(f"{to}: {', '.join(names)}")


if __name__ == "__main__":
    main()
