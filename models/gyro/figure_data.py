"""Arrays of the figures of `gyro`."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Data
from orrery.models.gyro.ages import COLOUR_GRID, LOG_PERIOD_GRID
from orrery.models.gyro.left_out import LeftOutScores
from orrery.models.gyro.stars import star_batch
from orrery.physics.rotation.seismic_stars import SUN

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro

GYROCHRONE_MYR = (15.0, 110.0, 430.0, 740.0, 2400.0, 3900.0)  # near which there are clusters


def figure_data(model: "Gyro", data: Data) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by figure: `gyrochrones`, `clusters` and `sun`, see there."""
    batch = data.training_batch() if data.rows else next(data.prediction_batches())
    return {
        "gyrochrones": gyrochrones(model, batch),
        "clusters": clusters(model, batch),
        "sun": sun(model),
    }


def gyrochrones(model: "Gyro", batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Densities of the period at a few ages, and stars.

    ``age`` (ages,), Myr; ``log_density`` (ages, periods, colours), ln per dex, at ``colour_grid``,
    mag, and ``log_period_grid``, log10 d. Of the stars ``colour``, ``log_period`` and ``log_age``
    (log10 Myr, NaN where unknown), (n,).
    """
    cells = [int((model.table.ages - math.log10(age)).abs().argmin()) for age in GYROCHRONE_MYR]
    unknown = torch.full_like(batch["colour"], torch.nan)
    return {
        "age": np.array(GYROCHRONE_MYR),
        "colour_grid": COLOUR_GRID.numpy(),
        "log_period_grid": LOG_PERIOD_GRID.numpy(),
        "log_density": model.table.values[:, :, cells].float().permute(2, 1, 0).numpy(),
        "colour": batch["colour"].numpy(),
        "log_period": batch["log_period"].numpy(),
        "log_age": batch.get("log_age", unknown).numpy(),
    }


def clusters(model: "Gyro", batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Ages of clusters by networks that hold them out, each (clusters,).

    ``log_age``, log10 Myr, and ``log_age_error``, dex, of the literature (NaN where unknown);
    ``offset`` from it, and ``low`` and ``high``, the 68% interval, dex, inf where not scored;
    ``is_benchmark``, bool.
    """
    scores = LeftOutScores(*model.left_out_scores.cpu().T)
    log_age = torch.tensor([*model.clusters.values()])
    errors = np.full(len(log_age), np.nan)
    if "log_age_error" in batch:
        for i in range(len(log_age)):
            errors[i] = batch["log_age_error"][batch["cluster"] == i].mean()
    return {
        "log_age": log_age.numpy(),
        "log_age_error": errors,
        "offset": scores.offset.numpy(),
        "low": scores.low.numpy(),
        "high": scores.high.numpy(),
        "is_benchmark": np.array(model.is_benchmark),
    }


def sun(model: "Gyro") -> dict[str, np.ndarray]:
    """The Sun's posterior: ``probability`` (n_grid,) of cells about ``log_age``, log10 Myr; and
    the age of the ``oldest_cluster``, Gyr."""
    batch = star_batch(SUN)
    posterior = model.predict_step(batch)["log_likelihood"] + model.star_log_prior(batch["colour"])
    return {
        "log_age": model.table.ages.numpy(),
        "probability": posterior[0].softmax(0).numpy(),
        "oldest_cluster": np.array(10 ** max(model.clusters.values()) / 1e3),
    }
