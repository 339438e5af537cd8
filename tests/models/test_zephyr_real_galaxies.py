"""The real galaxies that a run of simulated ones ends with."""

import numpy as np
import pytest

from orrery import load
from orrery.figures import zephyr as figures
from orrery.models.zephyr.real_galaxies import TABLE, predict_real_galaxies, sentence


@pytest.fixture(scope="module")
def real():
    return predict_real_galaxies(load("zephyr"))


def test_a_model_of_simulated_galaxies_fails_on_real_ones_and_says_so(real):
    z = real["z_true"]
    dz = np.abs(real["z_median"] - z) / (1 + z)
    of_real = np.abs(real["z_median_of_real"] - z) / (1 + z)
    assert len(z) == 300 and np.mean(of_real > 0.15) < 0.03 < 0.2 < np.mean(dz > 0.15)
    assert np.mean(real["ood"] > 0.9) > 0.9
    assert "1%" in sentence(real) and f"{np.mean(dz > 0.15):.0%} outliers" in sentence(real)


def test_they_are_drawn_beside_those_of_the_checkpoint_of_real_ones(real):
    fig = figures.real_galaxies(real)
    assert [len(axis.lines[0].get_xdata()) for axis in fig.axes] == [300, 300]
    assert "zephyr_cosmos" in fig.axes[1].get_title(loc="left")


def test_a_model_of_other_bands_has_none():
    assert predict_real_galaxies(load("zephyr_zcosmos")) == {}


def test_the_galaxies_name_their_source_and_licence():
    text = TABLE.read_text()
    assert "rail_shire" in text and "cosmos_galaxies.LICENSE" in text
    assert "MIT License" in TABLE.with_suffix(".LICENSE").read_text()
