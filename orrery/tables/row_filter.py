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


OR = r"\s+or\s+|\s*\|\s*"


def where(catalogue: Catalogue, condition: str, setting: str = "data.train_where") -> np.ndarray:
    """Mask of the rows that meet e.g. ``"secure == 1 and mag_i < 22.5 or mag_i < 20"``.

    "and" binds before "or", which may be written "|". ``setting`` is what messages call the
    condition. Raises ``ValueError`` for what is no comparison, for columns that are not there, and
    where no row meets the condition.
    """
    mask = np.zeros(len(catalogue), bool)
    for alternative in re.split(OR, condition.strip()):
        part = np.ones(len(catalogue), bool)
        for clause in re.split(r"\s+and\s+", alternative):
            part &= _compared(catalogue, clause, setting)
        mask |= part
    if not mask.any():
        raise ValueError(f"{catalogue.path}: no row meets {setting}='{condition}'")
    return mask


def _compared(catalogue: Catalogue, clause: str, setting: str) -> np.ndarray:
    match = re.fullmatch(r"(\S+?)\s*(==|!=|<=|>=|<|>)\s*(\S+|'[^']*'|\"[^\"]*\")", clause.strip())
    if not match:
        raise ValueError(
            f"{setting}: '{clause}' is not '<column> <comparison> <value>', such as "
            f"'secure == 1'; join several with ' and ' or ' or '"
        )
    column, comparison, value = match.groups()
    opened = column.startswith("(") and column not in catalogue.names
    if opened or (value.endswith(")") and "(" not in value):
        raise ValueError(
            f"{setting}: '{clause}' has parentheses, which are not read; 'and' binds before 'or': "
            "write 'a > 1 and c < 2 or b > 1 and c < 2' for '(a > 1 or b > 1) and c < 2'"
        )
    resolve(catalogue.names, {setting.removeprefix("data."): column}, catalogue.path)
    values = np.concatenate([chunk[column] for chunk in catalogue.chunks([column])])
    if values.dtype.kind not in "iufb":
        return np.asarray(COMPARE[comparison](values, value.strip("'\"")))
    try:
        return np.asarray(COMPARE[comparison](values, float(value)))
    except ValueError as error:
        raise ValueError(
            f"{setting}: column '{column}' holds numbers, which do not compare with '{value}'"
        ) from error
