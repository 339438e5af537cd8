"""The metrics of the photometric-redshift benchmark, against closed forms of a Gaussian."""

import csv

import numpy as np
import pytest

from orrery.benchmarks.photoz_data import corrupted
from orrery.benchmarks.photoz_metrics import photoz_metrics
from orrery.evaluation.baselines import peers

GRID = np.arange(621) * 0.005
SIGMA = 0.1


@pytest.fixture(scope="module")
def gaussian_scores() -> dict[str, float]:
    """Calibrated Gaussians: each truth is drawn from its own p(z)."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.8, 2.2, 4000)
    truth = mean + SIGMA * rng.standard_normal(4000)
    pdf = np.exp(-0.5 * ((GRID - mean[:, None]) / SIGMA) ** 2)
    return photoz_metrics(pdf, GRID, truth)


def test_scores_of_calibrated_gaussians_are_the_closed_forms(gaussian_scores):
    assert gaussian_scores["crps"] == pytest.approx(SIGMA / np.sqrt(np.pi), rel=0.03)
    assert gaussian_scores["nll"] == pytest.approx(
        np.log(SIGMA * np.sqrt(2 * np.pi * np.e)), abs=0.04
    )
    assert gaussian_scores["cde_loss"] == pytest.approx(-0.5 / (SIGMA * np.sqrt(np.pi)), rel=0.03)


def test_calibrated_gaussians_have_uniform_pit_and_nominal_coverage(gaussian_scores):
    assert gaussian_scores["coverage_68"] == pytest.approx(0.68, abs=0.03)
    assert gaussian_scores["coverage_95"] == pytest.approx(0.95, abs=0.02)
    assert gaussian_scores["pit_ks"] < 1.63 / np.sqrt(4000)  # the 1 % point of the KS law


def test_crps_of_a_spike_is_its_distance_from_the_truth():
    pdf = np.zeros((1, len(GRID)))
    pdf[0, 200] = 1.0  # z = 1
    assert photoz_metrics(pdf, GRID, np.array([1.5]))["crps"] == pytest.approx(0.5, abs=0.005)


def test_truth_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="leave the grid"):
        photoz_metrics(np.ones((1, len(GRID))), GRID, np.array([4.0]))


def test_corrupted_redshifts_keep_their_clean_third_and_are_repeatable():
    train = {"redshift": np.linspace(0.2, 2.5, 1000)}
    table = corrupted(train, GRID)
    clean = table["source"] == 0
    assert clean.sum() == 300
    assert (table["redshift"][clean] == train["redshift"][clean]).all()
    assert (table["redshift"][~clean] != train["redshift"][~clean]).all()
    assert (table["redshift"] == corrupted(train, GRID)["redshift"]).all()


def test_committed_rows_are_baselines_of_an_evaluation_of_the_same_file_alone():
    with open("benchmarks/zephyr.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    forest = next(row for row in rows if row["set"] == "zcosmos" and row["method"] == "rf")
    baselines = peers("zephyr", forest["test_sha256"], ["crps", "ood"])
    assert baselines["rf"] == {"crps": float(forest["crps"])}
    assert "zephyr" not in baselines
    assert peers("zephyr", "0" * 64, ["crps"]) == {}
    assert peers("zephyr", None, ["crps"]) == {}
