"""How many training stars there are about a place of the Hertzsprung-Russell diagram."""

import torch
from torch import Tensor
from torch.nn import functional as F

BP_RP_START, BP_RP_CELL, N_BP_RP = -1.5, 0.1, 85
ABS_G_START, ABS_G_CELL, N_ABS_G = -8.0, 0.25, 112
NEAR_TEXT = "within 0.15 mag in BP - RP and 0.4 mag in M_G"  # a cell and its neighbours


def counts(bp_rp: Tensor, abs_g: Tensor) -> Tensor:
    """Number of stars, (n,), in and about each cell of the diagram, (N_BP_RP, N_ABS_G)."""
    grid = torch.zeros(N_BP_RP * N_ABS_G)
    x, y, inside = _cells(bp_rp, abs_g)
    grid.index_add_(0, (x * N_ABS_G + y)[inside], torch.ones(int(inside.sum())))
    around = F.avg_pool2d(grid.view(1, 1, N_BP_RP, N_ABS_G), 3, stride=1, padding=1)
    return 9 * around[0, 0]


def at(grid: Tensor, bp_rp: Tensor, abs_g: Tensor) -> Tensor:
    """The value of the cell in which each star lies, of any shape; 0 outside the grid."""
    x, y, inside = _cells(bp_rp, abs_g)
    return torch.where(inside, grid[x, y], 0.0)


def _cells(bp_rp: Tensor, abs_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = ((bp_rp - BP_RP_START) / BP_RP_CELL).floor().long()
    y = ((abs_g - ABS_G_START) / ABS_G_CELL).floor().long()
    inside = (x >= 0) & (x < N_BP_RP) & (y >= 0) & (y < N_ABS_G)
    return x.clamp(0, N_BP_RP - 1), y.clamp(0, N_ABS_G - 1), inside
