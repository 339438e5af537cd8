"""The embedded simulation: LSST-like galaxies, redshift labels of known quality, exact p(z)."""

import numpy as np
import torch
from torch import Tensor

from orrery.physics.galaxies import population
from orrery.physics.galaxies.photometry import LSST_BANDS
from orrery.physics.galaxies.redshift_labels import CATASTROPHIC, SIGMA, SOURCES, label_sources

MAX_POSTERIORS = 2000  # objects whose exact p(z) is computed


def simulated_table(n: int, seed: int, split: str) -> dict[str, np.ndarray]:
    """Columns ``flux_<band>``, ``flux_err_<band>``, uJy, and ``redshift`` of galaxies.

    ``split``: "fit", where redshifts are labels of the three sources in the column ``source``, and
    galaxies of the ``n`` without a label are left out; or "test", where they are true.
    """
    generator = _generator(seed, split)
    galaxies = population.simulate(n, generator)
    table = {"redshift": galaxies["z"].numpy()}
    if split == "fit":
        labels, _ = label_sources(galaxies, generator)
        labelled = labels["source"] >= 0
        galaxies = {name: values[labelled] for name, values in galaxies.items()}
        table["redshift"] = labels["label"][labelled].numpy()
        table["source"] = np.array(SOURCES)[labels["source"][labelled].numpy()]
    for i, band in enumerate(LSST_BANDS):
        table[f"flux_{band}"] = galaxies["flux"][:, i].numpy()
        table[f"flux_err_{band}"] = galaxies["flux_err"][:, i].numpy()
    return table


def simulated_posterior(n: int, seed: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """True redshift (m,) and exact p(z) (m, grid) at ``z`` (grid,) of the first test galaxies.

    ``n``: how many test galaxies are drawn; m is at most `MAX_POSTERIORS`.
    """
    galaxies = population.simulate(n, _generator(seed, "test"))
    galaxies = {name: values[:MAX_POSTERIORS] for name, values in galaxies.items()}
    return galaxies["z"], population.posterior(galaxies["flux"], galaxies["flux_err"], z)


def true_label_noise() -> dict[str, float]:
    """Scatter of labels, in units of 1 + z, and catastrophic fraction of each source."""
    noise = {}
    for source, sigma, fraction in zip(SOURCES, SIGMA, CATASTROPHIC, strict=True):
        noise[f"label_sigma_{source}_true"] = sigma
        noise[f"label_catastrophic_{source}_true"] = fraction
    return noise


def _generator(seed: int, split: str) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + (split == "test"))
