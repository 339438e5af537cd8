"""Angles between places on the sky."""

import math

import torch
from torch import Tensor


def sky_angle(ra: Tensor, dec: Tensor, ra_0: Tensor, dec_0: Tensor) -> Tensor:
    """Angles, radian, (...,), between places in deg that broadcast; exact for small ones too."""
    ra, dec, ra_0, dec_0 = (x * (math.pi / 180) for x in (ra, dec, ra_0, dec_0))
    square = torch.sin((dec - dec_0) / 2) ** 2
    square = square + torch.cos(dec) * torch.cos(dec_0) * torch.sin((ra - ra_0) / 2) ** 2
    return 2 * torch.asin(square.clamp(0, 1).sqrt())
