"""Stars among the pixels of the map, and the paths of their light through its shells."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from orrery.physics.dust.extinction import Paths


class Interpolation:
    """Values of pixels at the directions of stars, between those of the four pixels about each.

    ``pixels`` and ``weights`` (stars, 4), of `physics.gaussian_process.healpix.bilinear`.
    """

    def __init__(self, pixels: Tensor, weights: Tensor, n_pixels: int) -> None:
        # of the transpose: the stars about each pixel, pixel by pixel
        order = torch.argsort(pixels.flatten(), stable=True)
        count = torch.bincount(pixels.flatten(), minlength=n_pixels)
        self.pixels, self.weights = pixels.int(), weights
        self.stars, self.first = (order // 4).int(), (count.cumsum(0) - count).int()
        self.star_weights = weights.flatten()[order]

    def apply(self, values: Tensor, chosen: slice = slice(None)) -> Tensor:
        """(stars, n) of ``values`` (pixels, n), or of the ``chosen`` stars."""
        weights = self.weights[chosen].to(values)
        return embedding_bag(self.pixels[chosen], values, mode="sum", per_sample_weights=weights)

    def adjoint(self, by_star: Tensor) -> Tensor:
        """The transpose of `apply`: (pixels, n) of ``by_star`` (stars, n)."""
        weights = self.star_weights.to(by_star)
        return embedding_bag(
            self.stars, by_star, self.first, mode="sum", per_sample_weights=weights
        )


class Stars(NamedTuple):
    """Where stars are, and the paths of their light: of some thousands, for predictions.

    A fit has `models.dust.groups.StarGroups`, which take less memory. "Shells" are those from us to
    the edge of the map: the first is inside its inner boundary.
    """

    pixel: Tensor  # (stars,), that each is in
    between: Interpolation
    paths: Paths

    def along(self, rho: Tensor) -> Tensor:
        """The density along each sightline, (samples, stars, shells), of that of all pixels."""
        along = rho.new_empty(len(rho), len(self.pixel), rho.shape[2])
        for i, one in enumerate(rho):  # not stacked, which would take the memory twice
            along[i] = self.between.apply(one)
        return along

    def integral(self, rho: Tensor) -> Tensor:
        """Over the mean paths, (samples, stars), of ``rho`` (samples, pixels, shells)."""
        lengths = self.paths.lengths
        return torch.stack([(self.between.apply(one) * lengths).sum(1) for one in rho])
