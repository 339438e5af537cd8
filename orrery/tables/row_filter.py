"""Which rows of a catalogue meet a condition."""

import operator
import re

import numpy as np

from .base import Catalogue
from .columns import resolve

COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def where(catalogue: Catalogue, condition: str) -> np.ndarray:
    """Mask of the rows that meet e.g. ``"secure == 1 and mag_i < 22.5"``."""
    mask = np.ones(len(catalogue), bool)
    for clause in re.split(r"\s+and\s+", condition.strip()):
        match = re.fullmatch(r"(\S+?)\s*(==|!=|<=|>=|<|>)\s*(\S+)", clause)
        if not match:
            raise ValueError(
                f"data.train_where: '{clause}' is not '<column> <comparison> <value>', such as "
                f"'secure == 1'; join several with ' and '"
            )
        column, comparison, value = match.groups()
        resolve(catalogue.names, {"train_where": column}, catalogue.path)
        values = np.concatenate([chunk[column] for chunk in catalogue.chunks([column])])
        other = float(value) if values.dtype.kind in "iufb" else value.strip("'\"")
        mask &= COMPARE[comparison](values, other)
    if not mask.any():
        raise ValueError(f"{catalogue.path}: no row meets data.train_where='{condition}'")
    return mask
