"""Metrics of stellar ages, ours and the true model's, on stars of known age."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from orrery.models.base import Data, Evaluation, PredictedRows, or_nothing
from orrery.models.gyro.ages import summaries
from orrery.models.gyro.figure_data import figure_data
from orrery.models.gyro.stars import star_batch
from orrery.models.layers import grid
from orrery.physics.rotation.seismic_stars import STARS

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro

MEDIAN = {"age_q50": 0.5}
SMALLER_IS_BETTER = frozenset(("nll", "cluster_age_rms_dex", "benchmark_rms_dex"))


@runtime_checkable
class HasTrueDensity(Protocol):
    """Data that know the exact density of their periods, as a simulation does."""

    def true_log_density(self) -> Callable[..., np.ndarray] | None:
        """ln p per dex, of the arguments of `physics.rotation.gyrochrones.log_density`.

        None of a catalogue.
        """


@torch.no_grad()
def evaluate(model: "Gyro", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of stellar ages; for the figure data see `figure_data`."""
    evaluation = Evaluation(metrics(rows))
    if not evaluation.metrics:
        return evaluation
    evaluation.fitted_parameters = model.fitted_parameters() | data.truth()
    if true_rows := rows_of_true_density(model, data):
        evaluation.baselines["true model"] = metrics(true_rows)
    evaluation.figures = or_nothing("figures", lambda: figure_data(model, data))
    batch = next(data.prediction_batches())
    evaluation.timings = {
        "stars_per_second": (lambda: model.predict_step(batch), len(batch["row"]))
    }
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of stars whose age is known; empty if there are none."""
    known = np.isfinite(rows.get("pit", np.empty(0)))
    if "age_true" not in rows or not known.any():
        return {}
    pit = rows["pit"][known]
    return {
        "n": int(known.sum()),
        "nll": float(np.mean(rows["nll"][known], dtype=float)),
        "star_coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
    }


def seismic_metrics(model: "Gyro") -> dict[str, float]:
    """Of stars with asteroseismic ages: rms of log10 age, and coverage of the 68% intervals."""
    offset, covered = [], []
    for star in STARS:
        row = model.predict_step(star_batch(star))
        low, median, high = (float(row[name]) for name in ("age_q16", "age_q50", "age_q84"))
        offset.append(np.log10(median / star.age))
        covered.append(low < star.age < high)
    rms = float(np.sqrt(np.mean(np.square(offset))))
    return {"benchmark_rms_dex": rms, "benchmark_coverage_68": float(np.mean(covered))}


def rows_of_true_density(model: "Gyro", data: Data) -> dict[str, np.ndarray]:
    """The columns that `metrics` needs, from the true density and the model's prior.

    Empty if the data know none.
    """
    log_density = data.true_log_density() if isinstance(data, HasTrueDensity) else None
    if log_density is None:
        return {}
    ages, parts = model.table.ages.double().numpy(), []
    for batch in data.prediction_batches():
        names = ("log_period", "colour", "log_period_error", "colour_error", "mem_prob")
        log_age = batch["log_age"].numpy()[:, None]
        period, colour, *errors = (batch[name].double().numpy()[:, None] for name in names)
        log_p = log_density(period, ages, colour, *errors)
        posterior = summaries(
            torch.from_numpy(log_p).float(),
            model.star_log_prior(batch["colour"]),
            model.edges,
            MEDIAN,
        )
        pit = grid.scores(posterior["cdf"], model.edges, batch["log_age"])["pit"]
        parts.append(
            {
                "age_true": 10 ** (batch["log_age"].numpy() - 3),
                "pit": pit.numpy(),
                "nll": -log_density(period, log_age, colour, *errors)[:, 0],
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
