"""Tables of synthetic galaxies: parameters with exact magnitudes, and with noisy fluxes."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.priors import Priors
from orrery.physics.sps.synthesis import Synthesis

DEPTH_SIGMA = 5.0  # of a depth
STREAMS = ("fit", "test", "exact")  # of random numbers, apart for each seed


def draw_parameters(priors: Priors, n: int, seed: int, stream: str, how: str) -> Tensor:
    """Parameters (n, p) of ``n`` galaxies; ``how``: see `Priors`."""
    number = len(STREAMS) * seed + STREAMS.index(stream)
    return priors.draw(n, torch.Generator().manual_seed(number), how)


def draw(
    synthesis: Synthesis, priors: Priors, n: int, seed: int, stream: str, how: str
) -> tuple[Tensor, Tensor]:
    """Parameters (n, p) and AB magnitudes (n, bands) of ``n`` galaxies; ``how``: see `Priors`."""
    parameters = draw_parameters(priors, n, seed, stream, how)
    with torch.no_grad():
        return parameters, synthesis.magnitudes(parameters)


def observe(
    magnitudes: np.ndarray, depth: np.ndarray, error_floor: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy fluxes and the errors of the sky, uJy, (n, bands), of exact AB ``magnitudes``.

    ``depth`` (bands,): magnitude of a source of 5 sigma. To the sky's noise comes that of
    ``error_floor`` (bands,), relative, which the errors do not hold: it is added to them where
    they are read, as for any catalogue. A galaxy's noise follows from its magnitudes and the seed.
    """
    flux = 10 ** (-0.4 * (magnitudes - AB_ZERO_POINT))
    sky = np.broadcast_to(10 ** (-0.4 * (depth - AB_ZERO_POINT)) / DEPTH_SIGMA, flux.shape)
    rows = np.ascontiguousarray(magnitudes, np.float32)
    noise = np.stack(
        [
            np.random.default_rng([seed, zlib.crc32(row.tobytes())]).standard_normal(len(row))
            for row in rows
        ]
    )
    return flux + noise * np.hypot(sky, error_floor * flux), sky.copy()


def table_of_seds(
    parameters: Tensor, magnitudes: Tensor, names: Sequence[str], bands: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of training rows: a parameter by its name, and ``mag_{band}``."""
    columns = dict(zip(names, parameters.numpy().T, strict=True))
    return columns | {f"mag_{b}": m for b, m in zip(bands, magnitudes.numpy().T, strict=True)}
