"""Metrics of photometric redshifts, ours and the true model's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn import functional as F

from orrery.models.base import Data, Evaluation, PredictedRows, or_nothing
from orrery.models.layers import grid
from orrery.models.zephyr.real_galaxies import predict_real_galaxies, sentence
from orrery.physics.galaxies.local_calibration import (
    MAX_GROUPS,
    calibration_cells,
    faintest,
    local_pit,
)
from orrery.physics.galaxies.redshift_scores import nmad, outlier_fraction

if TYPE_CHECKING:
    from orrery.models.zephyr import Zephyr

SMALLER_IS_BETTER = frozenset(("nmad", "outlier_fraction", "crps", "nll", "cde_loss")) | frozenset(
    ("pit_ks", "pit_ks_raw", "tarp_ks", "local_pit_rms")
)


@runtime_checkable
class HasTruePosterior(Protocol):
    """Data that know the exact posterior of their objects, as a simulation does."""

    def true_posterior(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """True redshifts (n,) and densities (n, grid) of p(z | photometry) at ``z`` (grid,).

        None of a catalogue.
        """


def evaluate(model: "Zephyr", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of photometric redshifts.

    Figure data: ``examples``, the contribution of each source to p(z), (examples, n_grid), by
    source; ``real_galaxies`` of a model of the simulation, see `predict_real_galaxies`.
    """
    evaluation = Evaluation(metrics(rows))
    if not evaluation.metrics:
        return evaluation
    with torch.inference_mode():
        examples = {name: values.to(model.device) for name, values in rows.examples.items()}
        densities = or_nothing("examples.png", lambda: model.source_densities(examples))
    evaluation.figures["examples"] = {name: pz.cpu().numpy() for name, pz in densities.items()}
    evaluation.fitted_parameters = model.fitted_parameters() | data.truth()
    if true_rows := rows_of_true_posterior(data, model.edges):
        evaluation.baselines["true model"] = metrics(true_rows)
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    if data.is_simulation:
        real = or_nothing("real_galaxies.png", lambda: predict_real_galaxies(model))
        if real:
            evaluation.figures["real_galaxies"] = real
            evaluation.warnings.append(sentence(real))
    return evaluation


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of the rows whose redshift is known; empty if there are none."""
    known = np.isfinite(rows.get("z_true", np.empty(0)))
    if not known.any():
        return {}
    rows = {name: values[known] for name, values in rows.items() if len(values) == len(known)}
    z, pit = rows["z_true"].astype(float), rows["pit"].astype(float)
    dz = (rows["z_median"] - z) / (1 + z)
    values = {
        "n": len(z),
        "bias": float(np.median(dz)),
        "nmad": nmad(dz),
        "outlier_fraction": outlier_fraction(dz),
        "crps": float(np.mean(rows["crps"], dtype=float)),
        "nll": float(np.mean(rows["nll"], dtype=float)),
        "cde_loss": float(np.mean(rows["cde_loss"], dtype=float)),
        "pit_ks": _ks_distance(pit),
        "coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
        "coverage_95": float(np.mean(np.abs(pit - 0.5) < 0.475)),
    }
    values["tarp_ks"] = _ks_distance(rows["tarp"].astype(float))
    if "pit_raw" in rows:  # predicted rows, not those of the true posterior
        values["pit_ks_raw"] = _ks_distance(rows["pit_raw"].astype(float))
        cells = calibration_cells(rows["mag_ref"], rows["z_median"])
        values |= local_pit(pit, cells)
        values |= {"pit_faint": float(pit[faintest(cells)].mean())} if (cells >= 0).any() else {}
    return values


def rows_of_true_posterior(data: Data, edges: Tensor) -> dict[str, np.ndarray]:
    """The columns that `metrics` needs, from the true posterior; empty if the data know none."""
    truth = None
    if isinstance(data, HasTruePosterior):
        truth = data.true_posterior(grid.centres(edges).double())
    if truth is None:
        return {}
    z, pdf = truth
    mass = (pdf / pdf.sum(1, keepdim=True)).float()
    cdf = F.pad(mass.cumsum(1), (1, 0))
    rows = {"z_true": z.float(), **grid.scores(cdf, edges, z.float())}
    rows["tarp"] = grid.tarp(cdf, edges, z.float(), torch.arange(len(z)))
    rows["z_median"] = grid.quantile(cdf, edges, torch.tensor([[0.5]]))[:, 0]
    return {name: values.numpy() for name, values in rows.items()}


def _ks_distance(pit: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of PIT values from uniform."""
    return float(kstest(pit, "uniform", method="asymp").statistic)


def local_limits(metrics: Mapping[str, float]) -> list[str]:
    """For the card, of its metrics: a sentence if the PIT is not uniform in each cell."""
    if metrics.get("local_pit_p", 1.0) > 0.01:
        return []
    sentence = (
        "p(z) is calibrated for all galaxies together, not for each magnitude and redshift "
        f"(`local_pit_p` {metrics['local_pit_p']:.2g}, `local_pit_rms` "
        f"{metrics['local_pit_rms']:.2g})"
    )
    shift = metrics["pit_faint"] - 0.5
    if abs(shift) > 3 * (12 * metrics["n"] / MAX_GROUPS) ** -0.5:
        sentence += (
            f": that of the faintest is a little too {'low' if shift > 0 else 'high'}, their mean "
            f"PIT is {metrics['pit_faint']:.2f} where 0.50 is right"
        )
    return [sentence]
