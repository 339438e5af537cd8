"""Constant arrays on the device of the tensors that they are used with."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
