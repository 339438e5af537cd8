"""The stars of a fit: their paths only through the shells that a star may be in.

Shells nearer than those are crossed completely, and their extinction is one sum per pixel. Stars
are in groups of about the same shells, so that each group is a dense problem.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.query import edges, interpolation
from orrery.models.dust.stars import Interpolation
from orrery.physics.dust.extinction import (
    Paths,
    mean_and_variance,
    open_shells,
    paths,
    voxel_squares,
)
from orrery.physics.gaussian_process.icr import Grid

# of a star in `alike`, whatever its shells
SHELLS_OF_WORK = 8
STARS_AT_ONCE = 8192  # whose paths, or densities along all shells, are in memory


class Group(NamedTuple):
    """Stars that may be in the shells ``first`` to ``last`` - 1; see `StarGroups`."""

    stars: Tensor  # (n,), their numbers
    between: Interpolation
    first: int
    last: int
    # 1, the share of the shells before ``first``, and mean paths, pc: (n, 1 + last - first)
    lengths: Tensor


class StarGroups(NamedTuple):
    """Mean paths of the light of stars through the shells from the Sun to the edge of the map.

    The first shell is inside the inner boundary.
    """

    bounds: Tensor  # of the shells, (shells + 1,), pc
    parallax: Tensor  # (stars,), mas
    error: Tensor
    groups: list[Group]  # by their first shell

    def integral(self, rho: Tensor) -> Tensor:
        """Over the mean paths, (samples, stars), of ``rho`` (samples, pixels, shells)."""
        widths = self.bounds.diff().to(rho)
        total = rho.new_empty(len(rho), len(self.parallax))
        for i, one in enumerate(rho):
            below, shell = one.new_zeros(len(one)), 0  # the extinction of the shells before
            for stars, between, first, last, lengths in self.groups:
                below = below + one[:, shell:first] @ widths[shell:first]
                shell = first
                values = torch.cat([below[:, None], one[:, first:last]], 1)
                total[i].index_copy_(0, stars, (between.apply(values) * lengths).sum(1))
        return total

    def integral_adjoint(self, by_star: Tensor) -> Tensor:
        """Its transpose: (samples, pixels, shells) of ``by_star`` (samples, stars)."""
        widths = self.bounds.diff().to(by_star)
        n_pixels = len(self.groups[0].between.first)
        total = by_star.new_zeros(len(by_star), n_pixels, len(widths))
        starts = [0, *(group.first for group in self.groups)]
        for one, gradient in zip(by_star, total, strict=True):
            below = one.new_zeros(n_pixels)
            for (before, _), group in zip(
                reversed(list(pairwise(starts))), reversed(self.groups), strict=True
            ):
                stars, between, first, last, lengths = group
                by_pixel = between.adjoint(one.index_select(0, stars)[:, None] * lengths)
                gradient[:, first:last] += by_pixel[:, 1:]
                below += by_pixel[:, 0]
                gradient[:, before:first] += below[:, None] * widths[before:first]
        return total

    def scatter(self, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``rho``, `mean_and_variance`'s variance and `voxel_squares`, (samples, stars)."""
        widths = self.bounds.diff().to(rho)
        variance, squares = rho.new_empty(2, len(rho), len(self.parallax))
        for group in self.groups:
            for start in range(0, len(group.stars), STARS_AT_ONCE):
                chosen = slice(start, start + STARS_AT_ONCE)
                stars, last = group.stars[chosen], group.last
                through = self._paths(group, chosen, widths)
                for i, one in enumerate(rho):
                    along = group.between.apply(one[:, :last], chosen)
                    variance[i, stars] = mean_and_variance(along, through, widths[:last])[1]
                    squares[i, stars] = voxel_squares(along, through)
        return variance, squares

    def _paths(self, group: Group, chosen: slice, widths: Tensor) -> Paths:
        """Of the ``chosen`` stars of ``group``, through all shells up to its last one."""
        stars, first = group.stars[chosen], group.first
        bounds = self.bounds[first : group.last + 1]
        squares = paths(bounds, self.parallax[stars], self.error[stars]).squares.to(widths)
        crossed = widths[:first].expand(len(stars), -1)
        return Paths(
            torch.cat([crossed, group.lengths[chosen, 1:]], 1),
            torch.cat([0.5 * crossed.square(), squares], 1),
        )


def group_stars(
    grid: Grid, direction: Tensor, parallax: Tensor, error: Tensor, dtype: torch.dtype
) -> StarGroups:
    """``direction`` (stars, 3); ``parallax`` and ``error``, mas; paths are in ``dtype``."""
    bounds = edges(grid).to(parallax)
    first, last = open_shells(bounds, parallax, error)
    groups = []
    for stars in alike(first, last, grid.shape[0]):
        start, stop = int(first[stars].min()), int(last[stars].max())
        lengths = torch.ones(len(stars), 1 + stop - start, dtype=dtype, device=parallax.device)
        for part, of_part in zip(
            lengths.split(STARS_AT_ONCE), stars.split(STARS_AT_ONCE), strict=True
        ):
            through = paths(bounds[start : stop + 1], parallax[of_part], error[of_part])
            part[:, 1:] = through.lengths
        between = interpolation(grid, direction[stars], dtype)
        groups.append(Group(stars, between, start, stop, lengths))
    return StarGroups(bounds, parallax, error, sorted(groups, key=lambda group: group.first))


def alike(first: Tensor, last: Tensor, n_pixels: int) -> list[Tensor]:
    """Numbers of the stars in groups of about the same shells, ``first`` to ``last`` - 1, (stars,).

    Groups are divided in two as long as that makes the work less: a star of a group costs as many
    steps as the group has shells, and `SHELLS_OF_WORK`, and a pixel half as many.
    """

    def work(n: Tensor, first: Tensor, last: Tensor) -> Tensor:
        return (n + n_pixels // 2) * (last - first + SHELLS_OF_WORK)

    def divided(stars: Tensor) -> list[Tensor]:
        """In two, or not."""
        n = torch.arange(1, len(stars), device=stars.device)
        least = work(torch.tensor(len(stars)), first[stars].min(), last[stars].max())
        best = [stars]
        for key in (first, last):
            order = stars[key[stars].argsort(stable=True)]
            back = order.flip(0)
            one = work(n, first[order].cummin(0)[0][:-1], last[order].cummax(0)[0][:-1])
            other = work(n, first[back].cummin(0)[0][:-1], last[back].cummax(0)[0][:-1])
            both = one + other.flip(0)
            if len(n) and bool(both.min() < least):
                least, k = both.min(), int(both.argmin()) + 1
                best = [order[:k], order[k:]]
        return best

    done, left = [], [torch.arange(len(first), device=first.device)]
    while left:
        parts = divided(left.pop())
        if len(parts) > 1:
            left += parts
        else:
            done += parts
    return done


def memory(groups: list[Tensor], first: Tensor, last: Tensor, n_pixels: int) -> int:
    """Bytes of the `StarGroups` of stars in these ``groups``, of `alike`, in float32."""
    n = 4 * n_pixels * len(groups)  # the first star of every pixel
    for stars in groups:
        lengths = 1 + int(last[stars].max() - first[stars].min())
        # its number, four pixels and weights, both ways, parallax and error
        n += len(stars) * (4 * lengths + 8 + 2 * 4 * (4 + 4) + 2 * 8)
    return n
