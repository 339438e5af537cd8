"""Tables over the Hertzsprung-Russell diagram: numbers of training stars, and masses."""

import torch
from torch import Tensor
from torch.nn import functional as F

BP_RP_START, BP_RP_CELL, N_BP_RP = -1.5, 0.1, 85
ABS_G_START, ABS_G_CELL, N_ABS_G = -8.0, 0.25, 112
FINE_BP_RP, FINE_ABS_G = 0.02, 0.05  # mag, cells of the table of masses
NEAR_TEXT = "within 0.15 mag in BP - RP and 0.4 mag in M_G"  # a cell and its neighbours


def counts(bp_rp: Tensor, abs_g: Tensor, weight: Tensor, reach: int = 1) -> Tensor:
    """Sum of the weights of stars (n,) in each cell and ``reach`` about it, (N_BP_RP, N_ABS_G)."""
    x, y, inside = _cells(bp_rp, abs_g)
    cell = (x * N_ABS_G + y)[inside]
    grid = torch.bincount(cell, weight[inside].double(), N_BP_RP * N_ABS_G).float()
    width = 2 * reach + 1
    around = F.avg_pool2d(grid.view(1, 1, N_BP_RP, N_ABS_G), width, stride=1, padding=reach)
    return width**2 * around[0, 0]


def at(grid: Tensor, bp_rp: Tensor, abs_g: Tensor) -> Tensor:
    """The value of the cell in which each star lies, of any shape; 0 outside the grid."""
    x, y, inside = _cells(bp_rp, abs_g)
    return torch.where(inside, grid[x, y], 0.0)


def _cells(bp_rp: Tensor, abs_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = ((bp_rp - BP_RP_START) / BP_RP_CELL).floor().long()
    y = ((abs_g - ABS_G_START) / ABS_G_CELL).floor().long()
    inside = (x >= 0) & (x < N_BP_RP) & (y >= 0) & (y < N_ABS_G)
    return x.clamp(0, N_BP_RP - 1), y.clamp(0, N_ABS_G - 1), inside


def fine_grid() -> tuple[Tensor, Tensor]:
    """BP - RP (n,) and M_G (m,) of the nodes of the table of masses, mag."""
    n_x = round(N_BP_RP * BP_RP_CELL / FINE_BP_RP) + 1
    n_y = round(N_ABS_G * ABS_G_CELL / FINE_ABS_G) + 1
    x = BP_RP_START + FINE_BP_RP * torch.arange(n_x)
    return x, ABS_G_START + FINE_ABS_G * torch.arange(n_y)


def interpolated(table: Tensor, bp_rp: Tensor, abs_g: Tensor) -> Tensor:
    """Bilinear between nodes, (batch, k), of a table (n, m, k); its edge beyond it."""
    n, m, k = table.shape
    x = ((bp_rp - BP_RP_START) / FINE_BP_RP).clamp(0.0, n - 1 - 1e-3)
    y = ((abs_g - ABS_G_START) / FINE_ABS_G).clamp(0.0, m - 1 - 1e-3)
    i, j = x.long(), y.long()
    dx, dy = (x - i)[:, None], (y - j)[:, None]
    flat, at = table.view(-1, k), i * m + j
    low = torch.lerp(flat[at], flat[at + 1], dy)
    return torch.lerp(low, torch.lerp(flat[at + m], flat[at + m + 1], dy), dx)
