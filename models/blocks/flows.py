"""Conditional one-dimensional flows: a monotonic spline to a mixture of normals.

The flow has no weights of its own; a network gives its parameters, (..., n_parameters), per object.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from zuko.transforms import MonotonicRQSTransform

MIN_SLOPE = 1e-3  # of the spline; written here because zuko's own default has changed once
MIN_WIDTH = 3e-3  # of a base component, in units of the standardised variable


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

    def cdf_on_grid(self, parameters: Tensor, y: Tensor) -> Tensor:
        """`cdf` on a rising grid ``y`` (n,) that all objects share: (..., n).

        The knots are looked up in the grid and not the grid in the knots: ten times faster.
        """
        if self.spline is not zuko_spline or not self.bins:
            return self.cdf(parameters, y.view(-1, *[1] * (parameters.ndim - 1))).movedim(0, -1)
        knots = self._knots(parameters)
        above = torch.searchsorted(y, knots.horizontal.contiguous())  # first grid point of each
        cell = torch.zeros(*above.shape[:-1], len(y) + 1, dtype=torch.long, device=y.device)
        cell = cell.scatter_add_(-1, above, torch.ones_like(above)).cumsum(-1)[..., :-1]
        return self._base_cdf(parameters, spline_in_cells(knots, cell, y))

    def cdf_at_nodes(self, parameters: Tensor, y: Tensor) -> Tensor:
        """`cdf` at n points of each object, ``y`` (..., n): (..., n)."""
        if self.spline is not zuko_spline or not self.bins:
            return self.cdf(parameters, y.movedim(-1, 0)).movedim(0, -1)
        knots = self._knots(parameters)
        cell = torch.searchsorted(knots.horizontal.detach().contiguous(), y.detach().contiguous())
        return self._base_cdf(parameters, spline_in_cells(knots, cell, y))

    def _knots(self, parameters: Tensor) -> MonotonicRQSTransform:
        widths, heights, slopes = parameters.split(self.sizes, -1)[:3]
        return MonotonicRQSTransform(widths, heights, slopes, bound=self.bound, slope=MIN_SLOPE)

    def _base_cdf(self, parameters: Tensor, u: Tensor) -> Tensor:
        """Cumulative base distribution of each object at ``u`` (..., n)."""
        log_weight, mean, width = (p.unsqueeze(-2) for p in self._base(parameters))
        if self.components == 1:
            return torch.special.ndtr((u - mean[..., 0]) / width[..., 0])
        return (log_weight.exp() * torch.special.ndtr((u[..., None] - mean) / width)).sum(-1)

    def _to_base(self, parameters: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y.expand(torch.broadcast_shapes(y.shape, parameters.shape[:-1]))
        if not self.bins:
            return y, torch.zeros_like(y)
        widths, heights, slopes = parameters.split(self.sizes, -1)[:3]
        return self.spline(y, widths, heights, slopes, self.bound)

    def _base(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, width = parameters.split(self.sizes, -1)[-3:]
        return F.log_softmax(logits, -1), mean, F.softplus(width + 0.5) + MIN_WIDTH


def spline_in_cells(knots: MonotonicRQSTransform, cell: Tensor, y: Tensor) -> Tensor:
    """The spline at ``y`` (..., n), whose points lie in the cells ``cell``: (..., n).

    Cell k is left of knot k; beyond the outer knots the spline is the identity, which is one more
    cell of slope one on each side. Equation 4 of Durkan et al. (2019).
    """
    x, v, d = knots.horizontal, knots.vertical, knots.derivatives
    one = torch.ones_like(x[..., :1])
    inverse_width = torch.cat([one, 1 / x.diff(dim=-1), one], -1)
    height = torch.cat([one, v.diff(dim=-1), one], -1)
    left_x, left_v = (torch.cat([k[..., :1] - 1, k], -1) for k in (x, v))
    left_d, right_d = torch.cat([one, d], -1), torch.cat([d, one], -1)
    slope = height * inverse_width

    def of_cell(values: Tensor) -> Tensor:
        return values.gather(-1, cell)

    # what is constant in a cell is multiplied there: the points outnumber the cells twenty to one
    xi = torch.addcmul(of_cell(-left_x * inverse_width), of_cell(inverse_width), y)
    rise = torch.addcmul(of_cell(height * left_d), of_cell(height * (slope - left_d)), xi) * xi
    rest = torch.addcmul(xi, xi, xi, value=-1)
    run = torch.addcmul(of_cell(slope), of_cell(left_d + right_d - 2 * slope), rest)
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
