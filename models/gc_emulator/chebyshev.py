"""Smooth functions as Chebyshev series, and their fast evaluation at many points.

A function of a few parameters and one coordinate is a tensor of its values at Chebyshev nodes. At
given parameters it becomes a polynomial on each of many short intervals of the coordinate
("pieces"), which cost one table look-up and a few products per point, at any degree of the series.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEGREE = 5  # of the polynomial of an interval


def nodes(n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The n Chebyshev nodes of the first kind in [low, high], falling, (n,) float64."""
    x = torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return 0.5 * (high + low) + 0.5 * (high - low) * x


def from_values(n: int) -> Tensor:
    """Matrix (n, n) from the values at `nodes` to the coefficients of the series."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(k[:, None] * math.pi * (k + 0.5) / n) * (2 / n)
    matrix[0] /= 2
    return matrix


def basis(x: Tensor, n: int) -> Tensor:
    """T_k(2 x - 1) of x in [0, 1] for k < n, (..., n)."""
    angle = torch.arccos((2 * x - 1).clamp(-1 + 1e-10, 1 - 1e-10))
    return torch.cos(angle[..., None] * torch.arange(n, dtype=x.dtype, device=x.device))


def pieces_from_series(n: int, intervals: int) -> Tensor:
    """Matrix (intervals, DEGREE + 1, n) from a series to polynomials on equal parts of [0, 1].

    The polynomial of an interval is sum_j c_j t^j with t from -1 to 1; it agrees with the series
    at the interval's own Chebyshev nodes.
    """
    local = nodes(DEGREE + 1, -1, 1).numpy()
    centre = (np.arange(intervals) + 0.5) / intervals
    x = centre[:, None] + local / (2 * intervals)
    values = np.polynomial.chebyshev.chebvander(2 * x - 1, n - 1)
    powers = np.linalg.inv(np.vander(local, increasing=True))
    return torch.from_numpy(np.einsum("jp,ipn->ijn", powers, values))


class _Pieces(torch.autograd.Function):
    """Piecewise polynomials: one look-up per point gives the value and both derivatives."""

    @staticmethod
    def forward(pieces: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        batch, intervals, terms = pieces.shape
        index = (x * intervals).long().clamp_(0, intervals - 1)
        t = 2 * (x * intervals - index) - 1
        if batch > 1:
            index = index + intervals * torch.arange(batch, device=x.device)[:, None]
        c = pieces.reshape(-1, terms).index_select(0, index.flatten()).unflatten(0, x.shape)
        value, slope = c[..., -1], (terms - 1) * c[..., -1]
        for j in range(terms - 2, -1, -1):
            value = torch.addcmul(c[..., j], value, t)
            if j:
                slope = torch.addcmul(j * c[..., j], slope, t)
        return value, 2 * intervals * slope, index, t

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, slope, index, t = output
        ctx.shape = inputs[0].shape
        ctx.mark_non_differentiable(slope, index, t)
        ctx.save_for_backward(slope, index, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        slope, index, t = ctx.saved_tensors
        by_pieces = by_x = None
        if ctx.needs_input_grad[0]:
            terms = [grad]
            for _power in range(1, ctx.shape[-1]):
                terms.append(terms[-1] * t)
            rows = torch.stack(terms, -1).flatten(0, -2)
            by_pieces = grad.new_zeros(ctx.shape).reshape(-1, ctx.shape[-1])
            by_pieces = by_pieces.index_add_(0, index.flatten(), rows).reshape(ctx.shape)
        if ctx.needs_input_grad[1]:
            by_x = grad * slope
        return by_pieces, by_x


def evaluate_pieces(pieces: Tensor, x: Tensor) -> Tensor:
    """The function of `pieces_from_series`, (batch, intervals, terms), at x (batch, n) in [0, 1].

    Outside [0, 1] the polynomial of the outer interval is continued.
    """
    return _Pieces.apply(pieces, x)[0]  # type: ignore[no-untyped-call,no-any-return]


def invert_pieces(pieces: Tensor, y: Tensor) -> Tensor:
    """x in [0, 1] where a falling function of `pieces_from_series` is ``y``, (batch, n).

    Newton's method from the knots; the last step carries the gradient. ``y`` is clamped
    to the range of the function.
    """
    with torch.no_grad():
        intervals, signs = pieces.shape[1], (-1.0) ** torch.arange(pieces.shape[2]).to(pieces)
        last = pieces[:, -1:].sum(2)
        knots = torch.cat([pieces @ signs, last], 1)
        y_in = torch.minimum(torch.maximum(y, last), knots[:, :1])
        right = torch.searchsorted(-knots, -y_in).clamp(1, intervals)
        low, high = knots.gather(1, right - 1), knots.gather(1, right)
        x = (right - 1 + (low - y_in) / (low - high)) / intervals
        for _ in range(2):
            value, slope, _, _ = _Pieces.apply(pieces, x)  # type: ignore[no-untyped-call]
            x = (x - (value - y_in) / slope).clamp(0, 1)
    value, slope, _, _ = _Pieces.apply(pieces, x)  # type: ignore[no-untyped-call]
    y_in = torch.minimum(torch.maximum(y, last), knots[:, :1])
    return x - (value - y_in) / slope.detach()
