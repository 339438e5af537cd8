"""Spherical functions by tables: as exact as float64 needs, and as cheap as a few products.

The potential of a spherical component may take an incomplete gamma function or logarithms. A
table of polynomials of y = r^2 replaces it: y, not r, so that forces need no square root.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A cell is 1/128 of an octave of y, equally wide within the octave: the leading bits of a float64
# are its number. Polynomials of degree 4 leave a relative error of 2e-13.
CELL_BITS = 7
DEGREE = 4
LOWEST_OCTAVE, HIGHEST_OCTAVE = -40, 40  # r from 1e-6 to 1e6 kpc

_SHIFT = 52 - CELL_BITS
_BIAS = 1023
_FIRST = (_BIAS + LOWEST_OCTAVE) << CELL_BITS
_CELLS = (HIGHEST_OCTAVE - LOWEST_OCTAVE) << CELL_BITS


@dataclass(frozen=True, eq=False)
class RadialTable:
    """A smooth function of y = r^2, r from 1e-6 to 1e6 kpc; outside it is that of the last cell."""

    coefficients: tuple[Tensor, ...]  # of powers of y minus the cell's lower edge, each (cells,)

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor]) -> "RadialTable":
        """Table of a function from y (n,), kpc^2, float64, to (n,)."""
        edges = ((torch.arange(_CELLS) + _FIRST) << _SHIFT).view(torch.float64)
        width = torch.exp2(torch.floor(torch.log2(edges))) / 2**CELL_BITS
        nodes = 0.5 - 0.5 * torch.cos(
            torch.pi * (torch.arange(DEGREE + 1, dtype=torch.float64) + 0.5) / (DEGREE + 1)
        )
        y = edges[:, None] + width[:, None] * nodes
        values = function(y.reshape(-1)).reshape(y.shape)
        powers = nodes[:, None] ** torch.arange(DEGREE + 1)
        scaled = torch.linalg.solve(powers, values.T)
        return cls(tuple(c / width**k for k, c in enumerate(scaled)))

    def __call__(self, y: Tensor) -> Tensor:
        """The function at y, kpc^2, float64; differentiable."""
        coefficients, offset = self._at(y)
        result = coefficients[DEGREE]
        for k in reversed(range(DEGREE)):
            result = torch.addcmul(coefficients[k], result, offset)
        return result

    def with_derivative(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The function at y and its derivative with respect to y (to a relative 1e-10)."""
        coefficients, offset = self._at(y)
        derivative = coefficients[DEGREE]
        result = torch.addcmul(coefficients[DEGREE - 1], derivative, offset)
        for k in reversed(range(DEGREE - 1)):
            derivative = torch.addcmul(result, derivative, offset)
            result = torch.addcmul(coefficients[k], result, offset)
        return result, derivative

    def _at(self, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Coefficients in the cells of y, and the distance of y from the cells' lower edges."""
        cell, offset = _cell(y)
        tables = self.coefficients
        if y.device.type != "cpu":
            tables = tuple(table.to(y.device) for table in tables)
        if y.ndim == 1:  # by far the most common: calls cost as much as the arithmetic
            return [torch.index_select(table, 0, cell) for table in tables], offset
        flat = cell.reshape(-1)
        return [torch.index_select(table, 0, flat).view(y.shape) for table in tables], offset


def _cell(y: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the cell of y and the distance of y from the cell's lower edge."""
    number = y.detach().contiguous().view(torch.int64) >> _SHIFT
    edge = (number << _SHIFT).view(torch.float64)
    return (number - _FIRST).clamp_(0, _CELLS - 1), y - edge
