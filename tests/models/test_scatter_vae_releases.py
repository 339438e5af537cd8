"""Coefficients of another data release than DR3: DR4 will have 51 of BP and 55 of RP."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import ROOT, train

from orrery import load
from orrery.checkpoint import load_weights
from orrery.datamodules.scatter_vae.columns import correlations_of_file
from orrery.datamodules.scatter_vae.export import export
from orrery.pretrained import find
from orrery.runs import data_for
from orrery.tables import Writer

REAL = ROOT.parent / "shared/data/xp/xp_coefficients_real.fits"
N = {"bp": 51, "rp": 55}


@pytest.fixture(scope="module")
def dr4(stars):
    """A table of one column per number, without correlations."""
    table = Table({"source_id": stars["source_id"]})
    for band, n in N.items():
        for i in range(n):
            table[f"{band}_coeff_{i}"] = stars[f"{band}_coefficients"][:, i]
            table[f"e_{band}_coeff_{i}"] = stars[f"{band}_coefficient_errors"][:, i]
    return table


@pytest.fixture(scope="module")
def model(dr4, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dr4")
    dr4.write(folder / "dr4.fits")
    words = [f"data.path={folder}/dr4.fits", "data.batch_size=64", "model.epochs=2"]
    with pytest.warns(UserWarning, match="uncorrelated"):
        train("scatter_vae", folder / "run", *words, evaluated=False)
    return load(folder / "run/best.ckpt")


@pytest.mark.filterwarnings("ignore:.*uncorrelated")
def test_the_number_of_functions_is_that_of_the_file(model, dr4, tmp_path):
    assert model.bands == N and load(find("scatter_vae")).bands == {"bp": 55, "rp": 55}
    rows = model.predict(dr4[:20], keep=["source_id"])
    assert rows["reconstruction"].shape == (20, 106) and "spectrum" not in rows.colnames
    assert np.isfinite(rows["chi2"]).all()
    dr4 = dr4[:40].copy()
    dr4["bp_coeff_12"][7] += 300 * dr4["e_bp_coeff_12"][7]
    found = model.outliers(dr4, n=2)
    assert found["row"][0] == 7 and found["coefficient_1"][0] == "bp_12"
    assert found["residual_1"][0] > 0 and "low_1" not in found.colnames
    assert model.similar(dr4[3], dr4, n=1)["row"][0] == 3


@pytest.mark.filterwarnings("ignore:.*uncorrelated")
def test_another_number_is_refused(model, dr4, stars):
    few = Table({name: values[:4] for name, values in stars.items()})
    with pytest.raises(ValueError, match=r"'bp_coefficients' has 55 .*expected 51: .*on 51.*rele"):
        model.predict(few)
    with pytest.raises(ValueError, match=r"'bp_coefficients' has 51 .*expected 55: .*on 55.*rele"):
        load("scatter_vae").predict(dr4[:4])
    with pytest.raises(ValueError, match=r"init_from: .*55 of bp \+ 55 of rp .*51 of bp \+ 55 of"):
        load_weights(model, find("scatter_vae"))


@pytest.mark.filterwarnings("ignore:.*uncorrelated")
def test_functions_that_are_not_known_are_not_taken_for_those_of_dr3(model, dr4, stars, tmp_path):
    rows = model.predict(dr4[:5])
    names = ("reconstruction", "reconstruction_factor", "scatter")
    with Writer(tmp_path / "xp.hdf5") as writer:
        writer.write({name: np.asarray(rows[name]) for name in names})
    with pytest.raises(ValueError, match=r"106 coefficients per star, expected 55 \+ 55"):
        export(tmp_path / "xp.hdf5", tmp_path / "xp.csv")
    packed = {f"{band}_coefficient_correlations": np.zeros((3, 1275)) for band in N}
    with Writer(tmp_path / "packed.hdf5") as writer:
        writer.write(packed)
    with pytest.raises(ValueError, match="1275 numbers per star, expected 1485"):
        correlations_of_file(str(tmp_path / "packed.hdf5"))


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
@pytest.mark.filterwarnings("ignore:.*uncorrelated")
def test_real_stars_are_described_by_the_checkpoint_that_learned_from_others_of_them():
    real, simulated = load("scatter_vae_real"), load("scatter_vae")
    data = data_for(real.record, {"path": str(REAL), "split": "test"})
    (held_out,) = data.prediction_batches()
    with torch.inference_mode():
        ours, others = (model.predict_step(held_out) for model in (real, simulated))
    assert float(ours["within_68"].mean()) == pytest.approx(0.683, abs=0.02)
    assert float(ours["within_95"].mean()) == pytest.approx(0.95, abs=0.01)
    assert float(ours["chi2"].median()) < 1.05 < 3 < float(others["chi2"].median())
