"""Layers of an ensemble: members are the leading axis of the weights and are trained together.

One batched matrix product serves all members, which is several times faster than a loop over
small networks, and each member keeps its own weights and its own loss.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """(members, batch, n_in) -> (members, batch, n_out)."""

    def __init__(self, members: int, n_in: int, n_out: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, n_in, n_out) * gain / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.zeros(members, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class LayerNorm(nn.Module):
    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.gain + self.shift


class Residual(nn.Module):
    """x + MLP(norm(x)), nearly the identity at the start."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(members, width)
        self.inner = Linear(members, width, width, gain=math.sqrt(2))
        self.outer = Linear(members, width, width, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


class Encoder(nn.Module):
    """Residual MLP: (batch, n_in) -> (members, batch, width), a separate network per member."""

    def __init__(self, members: int, n_in: int, width: int, depth: int) -> None:
        super().__init__()
        self.members = members
        self.first = Linear(members, n_in, width)
        self.blocks = nn.Sequential(*(Residual(members, width) for _ in range(depth)))
        self.norm = LayerNorm(members, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.first(x.expand(self.members, *x.shape))))
