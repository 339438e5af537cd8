"""Pairs whose relative motion is not that of their orbit: unresolved triples, chance alignments.

|u| of the mass-scaled velocity u is normal about 1.0 with a width of 0.5, in any direction: the law
of Hwang et al. (2023, arXiv:2308.08584), who give 30 +- 15 km/s (AU / Msun)^.5. It is made of
rings: normals of width `RING_WIDTH` whose centres lie on circles of radii `RINGS`, so that it is
smooth at u = 0, and its convolution with noise is known.
"""

import numpy as np

SPEED, SPREAD = 1.0, 0.5
RINGS, RING_WIDTH = np.linspace(0.15, 2.85, 10), 0.25


def ring_weights() -> np.ndarray:
    """Weights of the rings, (10,), of sum 1."""
    weights = np.exp(-0.5 * (RINGS - SPEED) ** 2 / (SPREAD**2 - RING_WIDTH**2))
    return weights / weights.sum()


def sample(n: int, random: np.random.Generator) -> np.ndarray:
    """Vectors u of outliers, (n, 2)."""
    radius, angle = random.choice(RINGS, n, p=ring_weights()), random.uniform(0, 2 * np.pi, n)
    centre = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centre + RING_WIDTH * random.standard_normal((n, 2))
