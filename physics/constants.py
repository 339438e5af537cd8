"""Constants of several subjects, and constant arrays on the device of other tensors."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of an astronomical unit (IAU 2012, 149597870.7 km) per Julian year: km/s of 1 mas/yr at 1 kpc, or
# of 1 AU/yr.
KM_S_PER_AU_YR = 149597870.7 / (365.25 * 86400)


def constant_like(like: Tensor, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``make(*arguments)`` on the device and of the dtype of ``like``.

    It is copied to a GPU once: to copy it in every training step the host would wait for the GPU.
    ``make``: a function of the module level, which always returns the same.
    """
    if like.device.type == "cpu":
        return make(*arguments).to(like)
    return _copied(make, arguments, like.device, like.dtype)


@functools.cache
def _copied(
    make: Callable[..., Tensor],
    arguments: tuple[Any, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    with torch.inference_mode(False):  # of validation, whose tensors have no gradients later
        return make(*arguments).to(device, dtype)
