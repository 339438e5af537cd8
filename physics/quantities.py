"""Arguments of public functions: numbers, arrays, or astropy Quantities."""

from typing import Any

import numpy as np
from astropy import units as u


def in_unit(value: Any, unit: str) -> np.ndarray:
    """Float64, (...), in ``unit``, in which numbers and arrays are already.

    Raises ``ValueError`` for a Quantity that does not convert.
    """
    if isinstance(value, u.Quantity):
        try:
            value = value.to_value(unit)
        except u.UnitConversionError as error:
            raise ValueError(f"{value} does not convert to {unit}") from error
    return np.asarray(value, float)
