"""Atomic files and folders: they take their name when they are complete.

Light to import.
"""

import contextlib
import glob
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED = 24 * 3600  # seconds without a change after which an unfinished file has no writer


@contextlib.contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context with a name to write to; the file is renamed to ``path`` if no error occurs.

    After an error it is removed, and an older file ``path`` is unchanged. Each writer has a name
    of its own; what a killed one has left is removed. A link is written through to its target.
    """
    part = unfinished(path)
    try:
        yield part
        finish(part, path)
    finally:
        part.unlink(missing_ok=True)


def unfinished(path: str | os.PathLike[str]) -> Path:
    """The name of a file that shall become ``path``, by `finish`; abandoned ones are removed."""
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    # the same folder, because a rename is atomic only within one file system
    return target.with_name(f".{target.name}.{writer()}-{secrets.token_hex(4)}.part")


def finish(part: Path, path: str | os.PathLike[str]) -> None:
    """Give ``part`` its name, when all of it is on the disk."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, os.path.realpath(path))


def writer() -> str:
    """Name of this process, ``<machine>-<pid>``, which `is_gone` reads."""
    return f"{_machine()}-{os.getpid()}"


def is_gone(name: str) -> bool:
    """Whether the process of this name of `writer` has ended; False where that is not known."""
    machine, _, pid = name.partition("-")
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _machine() -> str:
    """What process numbers belong to: a machine since its last start, or a container on it."""
    name = platform.node()
    with contextlib.suppress(OSError):  # not Linux
        name += Path("/proc/sys/kernel/random/boot_id").read_text()
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _remove_abandoned(target: Path) -> None:
    """Remove unfinished files of ``target`` whose writer is dead."""
    hidden = f".{target.name}."
    for part in target.parent.glob(f"{glob.escape(hidden)}*.part"):
        name = part.name.removeprefix(hidden).rpartition("-")[0]
        with contextlib.suppress(OSError):  # another process was faster
            if part.is_dir():  # in which a writer works longer than its time of change tells
                if is_gone(name):
                    shutil.rmtree(part)
            elif is_gone(name) or time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
