"""Redshifts of real galaxies by a model of simulated ones, and by one of real ones."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table

from orrery import physics
from orrery.physics.galaxies.redshift_scores import outlier_fraction

if TYPE_CHECKING:
    from orrery.models.zephyr import Zephyr

TABLE = Path(physics.__file__).parent / "galaxies/cosmos_galaxies.ecsv"
BANDS = list("ugrizy")
OF_REAL_GALAXIES = "zephyr_cosmos"  # its test galaxies are those of the table

RARE = 0.9  # `ood` of a tenth of the galaxies that are like those of the training


def predict_real_galaxies(model: "Zephyr") -> dict[str, np.ndarray]:
    """Redshifts of 300 COSMOS galaxies by ``model`` and by the checkpoint of real ones.

    Columns, (galaxies,): ``z_true``, ``z_median`` and ``ood`` of ``model``, and
    ``z_median_of_real``; empty for a model of other bands. Neither model was trained on them.
    """
    from orrery.pretrained import load

    if model.bands != BANDS:
        return {}
    table = Table.read(TABLE)
    with warnings.catch_warnings():  # that they are unlike the simulation is what is shown
        warnings.simplefilter("ignore")
        own = model.predict(table, outputs=["z_median", "ood"])
        of_real = load(OF_REAL_GALAXIES).predict(table, outputs=["z_median"])
    columns = {
        "z_true": table["redshift"],
        "z_median": own["z_median"],
        "ood": own["ood"],
        "z_median_of_real": of_real["z_median"],
    }
    return {name: np.asarray(values, dtype=float) for name, values in columns.items()}


def sentence(real: Mapping[str, np.ndarray]) -> str:
    """What the figure says, of the columns of `predict_real_galaxies`."""
    z = real["z_true"]
    own, of_real = (
        outlier_fraction((real[name] - z) / (1 + z)) for name in ("z_median", "z_median_of_real")
    )
    return (
        f"real_galaxies.png: of {len(z)} real galaxies, this model of simulated ones has {own:.0%} "
        f"outliers, and says so ({np.mean(real['ood'] > RARE):.0%} have ood above {RARE}); "
        f"checkpoint={OF_REAL_GALAXIES}, of real ones, has {of_real:.0%}"
    )
