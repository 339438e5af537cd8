"""Conditional one-dimensional flows: a monotonic spline to a mixture of normals.

The flow has no weights of its own; a network gives its parameters, (..., n_parameters), per object.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from zuko.transforms import MonotonicRQSTransform

MIN_SLOPE = 1e-3  # of the spline; written here because zuko's own default has changed once
MIN_WIDTH = 3e-3  # of a base component, in units of the standardised variable
TAIL = 4.75  # widths of a base component beyond which it has a mass of 1e-6
LEAST_MASS = 1e-6  # inside a grid, of a flow that counts

Pick = Callable[[Tensor], Tensor]


class SplineFlow:
    """p(y | parameters): y -> u by a rational-quadratic spline (Durkan et al. 2019), u ~ mixture.

    The spline maps [-bound, bound] to itself and is the identity outside, so that the density has
    the Gaussian tails of its base. ``bins`` = 0 leaves the spline out: a mixture density network.
    ``backend``: "zuko" or "nflows", two implementations of the same spline with their own
    parametrisations.
    """

    def __init__(
        self, bins: int, components: int, bound: float = 5.0, backend: str = "zuko"
    ) -> None:
        if backend not in SPLINES:
            raise ValueError(f"flow backend '{backend}' is not one of {', '.join(SPLINES)}")
        self.bins, self.components, self.bound = bins, components, bound
        self.spline = SPLINES[backend]
        knots = [bins, bins, bins - 1] if bins else []
        self.sizes = [*knots, components, components, components]

    @property
    def n_parameters(self) -> int:
        return sum(self.sizes)

    def initial_bias(self) -> Tensor:
        """Parameters of a broad density whose components stand apart, (n_parameters,)."""
        bias = torch.zeros(self.n_parameters)
        if self.components > 1:
            bias[-2 * self.components : -self.components] = torch.linspace(
                -1.5, 1.5, self.components
            )
            bias[-self.components :] = -0.7
        return bias

    def log_prob(self, parameters: Tensor, y: Tensor) -> Tensor:
        """Log density at ``y``, which broadcasts against the leading axes of ``parameters``."""
        u, log_slope = self._to_base(parameters, y)
        log_weight, mean, width = self._base(parameters)
        r = (u[..., None] - mean) / width
        log_normal = -0.5 * r.square() - width.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(log_weight + log_normal, -1) + log_slope

    def cdf(self, parameters: Tensor, y: Tensor) -> Tensor:
        """Cumulative distribution at ``y``, shaped as in `log_prob`."""
        u, _ = self._to_base(parameters, y)
        log_weight, mean, width = self._base(parameters)
        return (log_weight.exp() * torch.special.ndtr((u[..., None] - mean) / width)).sum(-1)

    def mixture_on_grid(
        self, parameters: Tensor, weight: Tensor, y: Tensor, place: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """sum_m weight_m F_m at a rising grid ``y`` (n,) that all objects share: (..., n).

        F_m is the cdf of member m inside the grid, from 0 at its first point to 1 at its last; a
        member without mass inside adds nothing. ``parameters`` (members, ..., n_parameters),
        ``weight`` (members, ...). ``place`` is the inverse of the grid: place(y[i]) = i.

        Each flow is evaluated only where it has mass, which is a third of a grid or less.
        """
        if self.spline is not zuko_spline or not self.bins:
            cdf = self.cdf(parameters, y.view(-1, *[1] * (parameters.ndim - 1)))
            inside = (cdf - cdf[0]) / (cdf[-1] - cdf[0]).clamp_min(LEAST_MASS)
            return (inside * weight).sum(1).movedim(0, -1)
        knots, n = self._knots(parameters), len(y)
        low, high = place(knots.inv(self._reach(parameters)))
        points = points_between(low, high, place(knots.horizontal), n)

        def of_cell(values: Tensor) -> Tensor:
            return values.flatten().index_select(0, points.cell)

        def of_flow(values: Tensor) -> Tensor:
            return of_cell(values[..., None].expand(*values.shape, self.bins + 2))

        grids = weight[0].numel()
        y = y.repeat(grids).index_select(0, points.target)
        cdf = self._cdf(parameters, knots, y, of_cell, of_flow)
        mass = cdf.diff(prepend=cdf[:1])
        mass[points.first] = 0  # not of the flow before
        inside = (cdf[points.last] - cdf[points.first]).clamp_min(LEAST_MASS)
        mass = mass * of_flow(weight / inside)
        mixture = mass.new_zeros(grids * n).index_add_(0, points.target, mass)
        return mixture.view(*weight.shape[1:], n).cumsum(-1)

    def cdf_at_nodes(self, parameters: Tensor, y: Tensor) -> Tensor:
        """`cdf` at n points of each object, ``y`` (..., n): (..., n)."""
        if self.spline is not zuko_spline or not self.bins:
            return self.cdf(parameters, y.movedim(-1, 0)).movedim(0, -1)
        knots = self._knots(parameters)
        cell = torch.searchsorted(knots.horizontal.detach().contiguous(), y.detach().contiguous())
        return self._cdf(parameters, knots, y, lambda v: v.gather(-1, cell), lambda v: v[..., None])

    def cdf_on_grid(self, parameters: Tensor, y: Tensor) -> Tensor:
        """`cdf` at a grid ``y`` (n,) that all share: (..., n), with operations of fixed sizes.

        For exported networks; `mixture_on_grid` is faster.
        """
        if self.spline is not zuko_spline or not self.bins:
            return self.cdf(parameters, y.view(-1, *[1] * (parameters.ndim - 1))).movedim(0, -1)
        knots = self._knots(parameters)
        cell = torch.zeros((*parameters.shape[:-1], len(y)), dtype=torch.long)
        for knot in knots.horizontal.unbind(-1):  # exporters know no searchsorted
            cell = cell + (knot[..., None] < y).long()
        return self._cdf(parameters, knots, y, lambda v: v.gather(-1, cell), lambda v: v[..., None])

    def _knots(self, parameters: Tensor) -> MonotonicRQSTransform:
        widths, heights, slopes = parameters.split(self.sizes, -1)[:3]
        return MonotonicRQSTransform(widths, heights, slopes, bound=self.bound, slope=MIN_SLOPE)

    def _cdf(
        self,
        parameters: Tensor,
        knots: MonotonicRQSTransform,
        y: Tensor,
        of_cell: Pick,
        of_flow: Pick,
    ) -> Tensor:
        """`cdf` at points ``y`` of any shape.

        ``of_cell`` gives each point what (..., bins + 2) holds for its cell, ``of_flow`` what (...)
        holds for its flow.
        """
        log_weight, mean, width = self._base(parameters)
        x, v, d = knots.horizontal, knots.vertical, knots.derivatives
        if self.components == 1:  # the knots, which are fewer than the points, take the scaling
            return torch.special.ndtr(spline_in_cells(x, (v - mean) / width, d / width, y, of_cell))
        u = spline_in_cells(x, v, d, y, of_cell)
        parts = zip(*(p.unbind(-1) for p in (log_weight.exp(), mean, width)), strict=True)
        return sum(
            (of_flow(w) * torch.special.ndtr((u - of_flow(m)) / of_flow(s)) for w, m, s in parts),
            torch.zeros_like(u),
        )

    def _reach(self, parameters: Tensor) -> Tensor:
        """Between which u each flow has all its mass but `TAIL` on each side: (2, ...)."""
        _, mean, width = self._base(parameters)
        reach = TAIL * width
        return torch.stack([(mean - reach).amin(-1), (mean + reach).amax(-1)])

    def _to_base(self, parameters: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y.expand(torch.broadcast_shapes(y.shape, parameters.shape[:-1]))
        if not self.bins:
            return y, torch.zeros_like(y)
        widths, heights, slopes = parameters.split(self.sizes, -1)[:3]
        return self.spline(y, widths, heights, slopes, self.bound)

    def _base(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, width = parameters.split(self.sizes, -1)[-3:]
        return F.log_softmax(logits, -1), mean, F.softplus(width + 0.5) + MIN_WIDTH


class Points(NamedTuple):
    """Points of a grid of n that many flows share, (members, ...): each flow its own range."""

    first: Tensor  # (members, ...), where the points of a flow begin in the arrays below
    last: Tensor
    cell: Tensor  # (points,), of each point in the flat (members, ..., cells)
    target: Tensor  # (points,), of each point in the flat (..., n)


def points_between(low: Tensor, high: Tensor, knots: Tensor, n: int) -> Points:
    """The points of a grid from ``low`` to ``high`` (members, ...), by flow, and their cells.

    ``knots`` (members, ..., cells - 1). All are places in the grid, 0 to n - 1 or beyond. The knots
    are looked up in the grid and not the grid in the knots, for they are fewer.
    """
    # where rounding breaks the inverse of a steep spline: the whole grid, or a point at least
    low = low.floor().nan_to_num(0).clamp(0, n - 1).long()
    high = high.ceil().nan_to_num(n - 1).clamp(0, n - 1).long().maximum(low)
    count = high - low + 1
    stop = count.flatten().cumsum(0).view(count.shape)
    first, total = stop - count, int(count.sum())

    # a cell begins at the first point right of its knot, the leftmost one with the flow
    begin = (knots.ceil().nan_to_num(0) - low[..., None]).clamp_min(0)
    begin = F.pad(torch.minimum(begin, count[..., None]).long(), (1, 0)) + first[..., None]
    cell = torch.zeros(total + 1, dtype=torch.long, device=low.device)
    cell.scatter_add_(0, begin.flatten(), torch.ones_like(begin).flatten())
    cell[0] -= 1
    cell = cell.cumsum_(0)[:-1]

    # each point is one after the one before it, but for the first of a flow
    rows = torch.arange(low[0].numel(), device=low.device).view(low.shape[1:])
    start = (rows * n + low).flatten()
    end = start + count.flatten() - 1
    step = torch.ones_like(cell)
    step[first.flatten()] = start - F.pad(end, (1, 0))[:-1]
    return Points(first, stop - 1, cell, step.cumsum_(0))


def spline_in_cells(x: Tensor, v: Tensor, d: Tensor, y: Tensor, of_cell: Pick) -> Tensor:
    """The spline through the knots (x, v) with slopes d, each (..., knots), at the points ``y``.

    ``of_cell`` gives each point what (..., knots + 1) holds for its cell; cell k is left of knot k.
    Beyond the outer knots the spline goes on straight, which is one more cell of width one on each
    side. Equation 4 of Durkan et al. (2019).
    """
    one = torch.ones_like(x[..., :1])
    inverse_width = torch.cat([one, 1 / x.diff(dim=-1), one], -1)
    height = torch.cat([d[..., :1], v.diff(dim=-1), d[..., -1:]], -1)
    left_x = torch.cat([x[..., :1] - 1, x], -1)
    left_v = torch.cat([v[..., :1] - d[..., :1], v], -1)
    left_d, right_d = torch.cat([d[..., :1], d], -1), torch.cat([d, d[..., -1:]], -1)
    slope = height * inverse_width
    start = left_d / slope

    # what is constant in a cell is multiplied there: the points outnumber the cells
    xi = torch.addcmul(of_cell(-left_x * inverse_width), of_cell(inverse_width), y)
    rise = torch.addcmul(of_cell(height * start), of_cell(height * (1 - start)), xi) * xi
    run = torch.addcmul(xi, xi, xi, value=-1) * of_cell(start + right_d / slope - 2) + 1
    return torch.addcdiv(of_cell(left_v), rise, run)


Spline = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def zuko_spline(
    y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    transform = MonotonicRQSTransform(widths, heights, slopes, bound=bound, slope=MIN_SLOPE)
    return transform.call_and_ladj(y)


def nflows_spline(
    y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines.rational_quadratic import (
        unconstrained_rational_quadratic_spline,
    )

    def per_value(p: Tensor) -> Tensor:
        return p.expand(*y.shape, p.shape[-1])

    return unconstrained_rational_quadratic_spline(
        y.contiguous(),
        per_value(widths),
        per_value(heights),
        # zero is slope one, as it is for zuko
        per_value(slopes) + math.log(math.expm1(1 - MIN_SLOPE)),
        tails="linear",
        tail_bound=bound,
        min_derivative=MIN_SLOPE,
    )


SPLINES: dict[str, Spline] = {"zuko": zuko_spline, "nflows": nflows_spline}
