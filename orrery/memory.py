"""Memory: a check that there is enough before a long run, and the return of freed memory."""

import ctypes
import os

GB = 1e9


def refuse_too_large(needed: float, what: str, hint: str) -> None:
    """Raise ``ValueError`` if ``needed`` bytes are not free; reclaimable caches count as free."""
    free = _free()
    if needed > free:
        raise ValueError(
            f"{what} takes about {needed / GB:,.1f} GB, and {free / GB:,.1f} GB are free: {hint}"
        )


def _free() -> float:
    """Bytes."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux: all that the machine has
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def return_free() -> None:
    """Return freed heap memory to the operating system; does nothing without glibc.

    Arrays of varying sizes, allocated and freed for each batch, fragment the heap: by more than a
    gigabyte after two million rows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
