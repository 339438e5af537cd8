"""Checkpoints of earlier versions load, and predict what they predicted then."""

import numpy as np
import pytest
from conftest import ROOT

from orrery import load, names
from orrery.checkpoint import RECORD, read_checkpoint, schema_version
from orrery.physics.gaia_xp import xp_mock

# of version 0.1.0, commit 66b3fa7: train.py model=scatter_vae experiment=scatter_vae_quick
# model.width=8 data.n_train=400 data.n_test=50 model.epochs=1 model.polish=1
OLD = ROOT / "tests/frame/data/scatter_vae_0.1.ckpt"
CHI2 = [0.9024783372879028, 1.3425804376602173, 1.0526213645935059]  # of that version


def test_a_checkpoint_of_version_0_1_predicts_the_same():
    model = load(OLD)
    stars = xp_mock.simulate(3, np.random.default_rng(0))
    np.testing.assert_allclose(model.predict(stars)["chi2"], CHI2, rtol=1e-5)


@pytest.mark.parametrize("name", names())
def test_every_shipped_checkpoint_has_the_settings_of_this_version(name):
    checkpoint = read_checkpoint(ROOT / f"checkpoints/{name}.ckpt")
    model = load(name)
    assert checkpoint[RECORD]["schema_version"] == schema_version(type(model))
    assert model.state_dict().keys() == checkpoint["state_dict"].keys()
