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


class Periodic(nn.Module):
    """Each number x as ReLU(A [cos 2 pi c x, sin 2 pi c x] + b) with its own learned c, A and b.

    Gorishniy, Rubachev & Babenko (2022), "PLR". (members, batch, n) -> (members, batch, n * size).
    Low frequencies (a small ``scale``) keep the function smooth where data are few.
    """

    def __init__(self, members: int, n: int, frequencies: int, size: int, scale: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(members, 1, n, frequencies) * scale)
        gain = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(torch.randn(members, n, 2 * frequencies, size) * gain)
        self.bias = nn.Parameter(torch.zeros(members, n, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        # the batch is the innermost axis: it is long, and the others are short
        phase = x.mT[:, :, None] * (2 * math.pi * self.frequency[:, 0, ..., None])
        waves = torch.cat([phase.cos(), phase.sin()], 2)
        return F.relu(self.weight.mT @ waves + self.bias.mT).flatten(1, 2).mT


class Encoder(nn.Module):
    """Numbers and flags to ``width`` features, by a separate residual MLP per member.

    numbers (batch, n_numbers), standardised, and flags (batch, n_flags) -> (members, batch, width).
    """

    def __init__(
        self,
        members: int,
        n_numbers: int,
        n_flags: int,
        width: int,
        depth: int,
        frequencies: int = 8,
        embedding: int = 4,
        frequency_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.members = members
        self.periodic = Periodic(members, n_numbers, frequencies, embedding, frequency_scale)
        self.first = Linear(members, n_numbers * (1 + embedding) + n_flags, width)
        self.blocks = nn.Sequential(*(Residual(members, width) for _ in range(depth)))
        self.norm = LayerNorm(members, width)

    def forward(self, numbers: Tensor, flags: Tensor) -> Tensor:
        x, flags = (v.expand(self.members, *v.shape) for v in (numbers, flags))
        return self.norm(self.blocks(self.first(torch.cat([x, flags, self.periodic(x)], -1))))
