"""Sentences on the shares of a catalogue's rows that are flagged, or unlike the training set.

Flags of single rows are not enough: of a catalogue that is unlike the training set, few rows may be
beyond all training rows, and yet nearly all of them in its tail.
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np

from orrery.models.base import Metrics, Output

TAIL = 0.1  # of the training objects, whose ranks are at the unusual end
# A share is remarkable if it is this large, this many times the usual one, and above it by more
# than chance.
REMARKABLE_SHARE, REMARKABLE_RATIO, REMARKABLE_SIGMAS = 0.05, 2.0, 4.0
PREFIX = "share_"  # of metrics


def shares(columns: Mapping[str, Output], rows: Mapping[str, np.ndarray]) -> Metrics:
    """Fraction of the rows with each flag, and of those in the tail of each rank, by its name."""
    found: Metrics = {}
    for name, column in columns.items():
        if name not in rows or not len(rows[name]):
            continue
        values = rows[name]
        for i, bit in enumerate(column.bits):
            found[bit] = float(np.mean(values >> i & 1))
        if column.unusual:
            known = values[np.isfinite(values)]
            tail = known > 1 - TAIL if column.unusual == "high" else known < TAIL
            found |= {name: float(np.mean(tail))} if len(known) else {}  # it may not be given
    return found


def as_metrics(found: Mapping[str, float]) -> Metrics:
    """Shares as metrics of held-out rows, with which `remarks` compares those of a catalogue."""
    return {f"{PREFIX}{name}": share for name, share in found.items()}


def summary(columns: Mapping[str, Output], found: Mapping[str, float]) -> str:
    """One sentence: how many rows have each flag; empty for a component without flags."""
    bits = [bit for column in columns.values() for bit in column.bits]
    parts = [f"{bit} {_percent(found[bit])}" for bit in bits if found.get(bit)]
    return f"flags: {', '.join(parts) or 'none'}" if any(bit in found for bit in bits) else ""


def remarks(
    columns: Mapping[str, Output], found: Mapping[str, float], n: int, metrics: Mapping[str, float]
) -> list[str]:
    """A sentence for each share of ``n`` rows that is far above the usual one.

    ``metrics``: of the checkpoint on held-out rows; a share that they lack is taken as usual at 0,
    that of a rank as `TAIL`.
    """
    sentences: list[str] = []
    if not metrics:  # the model is new, and these are its own held-out rows
        return sentences
    for name, column in columns.items():
        usual = metrics.get(f"{PREFIX}{name}", TAIL)
        if column.unusual and _is_remarkable(found.get(name, 0.0), usual, n):
            end = f"above {1 - TAIL:g}" if column.unusual == "high" else f"below {TAIL:g}"
            sentences.append(
                f"this catalogue is unlike the training set: {_percent(found[name])} of the "
                f"{n:,} objects have {name} {end}, where {_percent(usual)} are usual; intervals "
                f"and probabilities need not hold for it: see the model card"
            )
        for bit, meaning in column.bits.items():
            usual = metrics.get(f"{PREFIX}{bit}", 0.0)
            if _is_remarkable(found.get(bit, 0.0), usual, n):
                sentences.append(
                    f"{_percent(found[bit])} of the {n:,} objects have the flag {bit}: {meaning} "
                    f"(of held-out objects: {_percent(usual)})"
                )
    return sentences


def unanswered(columns: Mapping[str, Output], rows: Mapping[str, np.ndarray]) -> bool:
    """Whether no row has a prediction: the first column is NaN in all of them."""
    first = rows.get(next(iter(columns)))
    return first is not None and len(first) > 0 and bool(np.isnan(first).all())


def _is_remarkable(share: float, usual: float, n: int) -> bool:
    error = sqrt(usual * (1 - usual) / n)
    return share > max(
        REMARKABLE_SHARE, REMARKABLE_RATIO * usual, usual + REMARKABLE_SIGMAS * error
    )


def _percent(share: float) -> str:
    """``12%``, ``0.3%``, ``99.6%``, ``100%``."""
    if share in (0.0, 1.0) or 0.01 <= share <= 0.99:
        return f"{100 * share:.0f}%"
    return f"{100 * share:.1f}%" if share > 0.5 else f"{100 * share:.2g}%"
