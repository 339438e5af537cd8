"""Checkpoints of older versions of `feniks` as those of today."""

from typing import Any

from torch import Tensor


def widening_with_spectrum(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 3: intervals of galaxies with a spectrum have factors of their own."""
    return config, {**state, "widening_with_spectrum": state["widening"].clone()}
