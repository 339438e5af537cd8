"""The history of the galaxy that the stars of a structure formed in, as a posterior to write."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orrery.models.abundances.evolution import galaxy_of, infer_evolution
from orrery.models.abundances.mixture import Stars
from orrery.models.base import Batch, Posterior
from orrery.models.inference.diagnostics import ess, rhat
from orrery.physics.abundances.masses import halo_masses
from orrery.physics.chemical_evolution.one_zone import Galaxy, tracks

UNITS = {
    "efficiency": "1 / Gyr", "inflow_time": "Gyr", "duration": "Gyr", "ia_rate": "1 / solMass",
    "ia_minimum": "Gyr", "r_minimum": "Gyr", "scatter": "dex", "scatter_capture": "dex",
    "alpha_knee": "dex",
}  # fmt: skip
WARMUP, DRAWS, CHAINS = 400, 500, 4
MAX_RHAT = 1.02
FIGURE_TRACKS = 200


class StarsOfAGalaxy(Protocol):
    """Stars that formed in one galaxy; `datamodules.abundances.evolution.ChemicalEvolution`."""

    elements: Sequence[str]
    given_iron: bool
    clusters: int | None

    def observations(self) -> Batch:
        """All stars as one batch."""

    def truth(self) -> Mapping[str, float]:
        """True parameters of a simulated galaxy; empty for a table."""


def galaxy_posterior(data: StarsOfAGalaxy, seed: int) -> Posterior:
    """Posterior of a one-zone model, see `evolution`; halo masses where clusters are counted."""
    batch = data.observations()
    stars = Stars(batch["value"], batch["variance"], batch["responses"], batch["limit"])
    stars = stars.of_type(torch.float64)
    elements = tuple(data.elements)
    draws = infer_evolution(
        [stars], elements, seed, CHAINS, WARMUP, DRAWS, data.given_iron
    )  # fmt: skip
    draws = {name: x[0] for name, x in draws.items()}  # (chains, draws)
    finite = {name: x for name, x in draws.items() if bool(x.isfinite().all())}
    metrics = {
        "n": float((~stars.value.isnan()).any(1).sum()),
        "rhat_max": max(float(rhat(x)) for x in finite.values()),
        "ess_min": min(float(ess(x)) for x in finite.values()),
    }
    truth = data.truth()
    for name, x in draws.items():
        metrics[name] = float(x.median())
        low, high = np.quantile(x, [0.16, 0.84])
        metrics[f"{name}_low68"], metrics[f"{name}_high68"] = float(low), float(high)
        if name in truth:
            metrics[f"{name}_true"] = truth[name]
    warnings = []
    if metrics["rhat_max"] > MAX_RHAT:
        warnings.append(
            f"the chains have not converged: R-hat is {metrics['rhat_max']:.3f}, where below "
            f"{MAX_RHAT} is expected; intervals are not to be trusted"
        )
    if "alpha_knee" not in finite and "alpha_knee" in draws:
        share = float(draws["alpha_knee"].isinf().double().mean())
        warnings.append(f"in {share:.0%} of the draws [Mg/Fe] has no knee within a Hubble time")
    warnings += _masses(data, stars, metrics)
    figures = {"history": _figure(draws, stars, elements), "delays": _delays(draws)}
    arrays = {name: x.numpy() for name, x in draws.items()}
    units = {name: UNITS.get(name, "") for name in draws}
    return Posterior(arrays, units, metrics, warnings, figures=figures)


def _masses(data: StarsOfAGalaxy, stars: Stars, metrics: dict[str, float]) -> list[str]:
    """Adds the halo's masses to ``metrics``; a sentence where they disagree."""
    iron = stars.value[:, list(data.elements).index("Fe")]
    iron = iron[~iron.isnan()]
    if data.clusters is None or not len(iron):
        return []
    error = float(iron.std() / len(iron) ** 0.5) if len(iron) > 1 else 0.5
    masses = halo_masses(data.clusters, float(iron.mean()), error)
    for name in ("from_clusters", "from_metallicity"):
        mass = getattr(masses, name)
        metrics[f"log_halo_mass_{name}"], metrics[f"log_halo_mass_{name}_error"] = mass
    return [
        f"halo mass, log10 Msun: {masses.from_clusters.value:.1f} +- "
        f"{masses.from_clusters.error:.1f} from {data.clusters} globular clusters, "
        f"{masses.from_metallicity.value:.1f} +- {masses.from_metallicity.error:.1f} from the mean "
        f"[Fe/H] of these stars, which differ by {abs(masses.difference):.1f} dex"
    ]


def _figure(
    draws: Mapping[str, Tensor], stars: Stars, elements: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Tracks of draws, and the stars, as [X/Fe] against [Fe/H]."""
    names = [name for name in draws if name in Galaxy._fields]
    step = max(1, draws[names[0]].numel() // FIGURE_TRACKS)
    galaxy = galaxy_of({name: draws[name].flatten()[::step] for name in names})
    track = tracks(galaxy, elements)
    error = (stars.variance + stars.responses.square().sum(2)).sqrt()
    return {
        "elements": np.array(elements), "tracks": track.abundances.numpy(),
        "value": stars.value.numpy(), "error": error.numpy(), "limit": stars.limit.numpy(),
    }  # fmt: skip


def _delays(draws: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    names = ("ia_slope", "ia_minimum", "r_slope", "r_minimum", "alpha_knee")
    return {name: draws[name].flatten().numpy() for name in names if name in draws}
