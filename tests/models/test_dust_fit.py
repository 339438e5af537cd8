"""How the dust map is fitted: noise of the first iterations, and stars far off."""

import lightning
import numpy as np
import pytest
import torch
from test_dust import SMALL, table

from orrery.datamodules.dust import DustData
from orrery.models.dust import Dust
from orrery.models.dust.variational import share_within_voxels


def fitted(data, **settings):
    dust = Dust(**SMALL, **settings)
    dust.prepare(data.setup("fit") or data)
    trainer = lightning.Trainer(
        max_epochs=dust.fit.epochs, accelerator="cpu", logger=False, barebones=True
    )
    trainer.fit(dust, datamodule=data)
    return dust


@pytest.mark.parametrize(("epochs", "noise"), [(6, [16, 8, 4, 2, 1, 1]), (3, [4, 2, 1])])
def test_the_noise_of_the_first_iterations_is_larger(epochs, noise, monkeypatch):
    inflation, linearise = [], Dust._linearise

    def watched(dust, batch, stars, mean, samples, *inflated):
        local = linearise(dust, batch, stars, mean, samples, *inflated)
        inflation.append(
            float((local.data.variance / dust._variance(batch, stars, samples)).mean())
        )
        return local

    monkeypatch.setattr(Dust, "_linearise", watched)
    fitted(DustData(**SMALL, n_stars=300, val_fraction=0), pairs=1, draws=1, epochs=epochs)
    assert inflation == pytest.approx(noise)


def test_stars_far_off_count_less_with_students_errors():
    """A tenth of the extinctions are 3 too large: on the others the map is the better for it."""
    spoilt = table()
    wrong = np.random.default_rng(0).random(len(spoilt)) < 0.1
    spoilt["extinction"][wrong] += 3
    errors = []
    for dof in (None, 3.0):
        data = DustData(**SMALL, val_fraction=0, test_fraction=0)
        data.table = spoilt
        dust = fitted(data, pairs=2, draws=4, epochs=4, noise_dof=dof)
        dust.eval().calibrate(data)
        batch = data.training_batch()
        kept = batch["extinction"] < 3
        rows = dust.predict_step(batch)
        errors.append(float((rows["extinction"][kept] - batch["extinction"][kept]).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_the_share_within_voxels_is_that_of_the_residuals():
    generator = torch.Generator().manual_seed(0)
    noise, squares = torch.full((20_000,), 0.01), torch.rand(20_000, generator=generator)
    for share in (0.0, 0.4):
        total = noise + share**2 * squares
        misfit = total * torch.randn(20_000, generator=generator).square()
        found = share_within_voxels(misfit, noise, squares, None)
        assert float(found) == pytest.approx(share, abs=0.02)
    chi2 = torch.randn(20_000, 4, generator=generator).square().mean(1)  # of Student's
    found = share_within_voxels(misfit / chi2, noise, squares, 4.0)
    assert float(found) == pytest.approx(0.4, abs=0.03)


def test_dust_nearer_than_the_map_is_not_in_its_first_shell():
    """A tenth more for every star: it is the extinction at the inner boundary."""
    raised = table()
    raised["extinction"] += 0.1
    data = DustData(**SMALL, val_fraction=0, test_fraction=0)
    data.table = raised
    dust = fitted(data, pairs=2, draws=4, epochs=4)
    dust.eval().calibrate(data)
    assert dust.fitted_parameters()["extinction_nearer"] == pytest.approx(0.1, abs=0.03)


def test_structure_within_voxels_is_in_the_errors_of_stars():
    """Extinctions that differ by half from star to star, by more than the errors."""
    lumpy = table()
    factor = 1 + 0.5 * np.random.default_rng(0).standard_normal(len(lumpy))
    lumpy["extinction"] *= factor
    data = DustData(**SMALL, val_fraction=0, test_fraction=0.3)
    data.table = lumpy
    dust = fitted(data, pairs=2, draws=4, epochs=6)
    dust.eval().calibrate(data)
    (batch,) = data.prediction_batches()
    rows = dust.predict_step(batch)
    within = rows["extinction_std_within"] / rows["extinction"]
    assert 0.2 < float(within.median()) < 1
    assert 0.6 < float(rows["pull"].square().mean()) < 1.6
