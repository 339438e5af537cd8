"""Redshift labels of known quality for simulated galaxies, from three sources as in real training.

Every galaxy is the target of one survey, drawn at random, and gets a label if it passes that
survey's selection. So one source's selection never leaks into another's, and the labelled galaxies
of a source that selects on observed magnitude alone keep the true p(z | photometry).
"""

import torch
from torch import Tensor

from orrery.physics.galaxies.galaxy_colours import Z_MAX
from orrery.physics.galaxies.photometry import AB_ZERO_POINT, LSST_BANDS

SOURCES = ("spec", "grism", "manyband")
SIGMA = (0.0005, 0.003, 0.02)  # of (label - z) / (1 + z), when not catastrophic
CATASTROPHIC = (0.005, 0.05, 0.10)  # fraction of labels uniform over [0, Z_MAX]
TARGETED = (0.25, 0.25, 0.50)  # share of all galaxies


def label_sources(
    galaxies: dict[str, Tensor], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Labels for the galaxies of `physics.galaxies.population.simulate`, and the truth about their
    quality.

    Returns ({label, source, catastrophic}, {source: (sigma, catastrophic fraction)}). label: (n,),
    NaN without one; source: (n,), index in SOURCES, -1 without a label; catastrophic: (n,), bool.

    The label is z + sigma (1 + z) times a normal deviate, reflected at zero so that it stays a
    redshift; or, with the catastrophic fraction, uniform over [0, Z_MAX] whatever z is.
    """
    z = galaxies["z"]
    n = len(z)

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    surveys = torch.tensor(TARGETED, dtype=torch.float64).cumsum(0)
    target = torch.searchsorted(surveys, uniform()).clamp_max(len(SOURCES) - 1)
    success = success_rates(galaxies).gather(1, target.unsqueeze(1)).squeeze(1)
    source = torch.where(uniform() < success, target, -1)

    sigma = torch.tensor(SIGMA, dtype=torch.float64)[target]
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    measured = (z + sigma * (1 + z) * noise).abs()
    fraction = torch.tensor(CATASTROPHIC, dtype=torch.float64)[target]
    catastrophic = (uniform() < fraction) & (source >= 0)
    label = torch.where(catastrophic, Z_MAX * uniform(), measured)
    label = torch.where(source >= 0, label, torch.nan)
    truth = {name: (SIGMA[k], CATASTROPHIC[k]) for k, name in enumerate(SOURCES)}
    return {"label": label, "source": source, "catastrophic": catastrophic}, truth


def success_rates(galaxies: dict[str, Tensor]) -> Tensor:
    """Probability (n, 3) that a galaxy targeted by each survey gets a redshift.

    spec: observed i < 22.5, with an efficiency that falls through 21.8; manyband: observed i < 25;
    both depend on the observed magnitude only. grism: observed i < 24 and emission lines, so it
    depends on the true type t, which the photometry knows only in part: its p(z | photometry) is
    that of line emitters.
    """
    mag_i = AB_ZERO_POINT - 2.5 * torch.log10(galaxies["flux"][:, LSST_BANDS.index("i")])
    spec = torch.sigmoid((21.8 - mag_i) / 0.3) * (mag_i < 22.5)
    grism = 0.9 * torch.sigmoid((galaxies["t"] - 0.6) / 0.05) * (mag_i < 24.0)
    manyband = 0.95 * (mag_i < 25.0)
    return torch.stack([spec, grism, manyband], dim=1)
