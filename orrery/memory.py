"""Available memory, checked before hours are spent."""

import os

GB = 1e9


def refuse_too_large(needed: float, what: str, hint: str) -> None:
    """A ``ValueError`` if ``needed`` bytes are not free. Caches that could be given up count."""
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
