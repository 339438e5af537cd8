"""Wide binaries as users have them: other columns, other units, pairs that are none."""

import warnings

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import ROOT

from orrery.datamodules.mass_net import WideBinaryData
from orrery.physics.wide_binaries import population
from orrery.physics.wide_binaries.population import Population

PAIRS = population.simulate(300, Population(), 5)
FILE = ROOT.parent / "shared/data/mass/example_binary.fits"


def data(table: dict[str, np.ndarray], **settings) -> WideBinaryData:
    module = WideBinaryData(**settings)
    module.table, module.split = Table(table), "all"
    return module


def batch(table: dict[str, np.ndarray], **settings) -> dict[str, torch.Tensor]:
    return next(data(table, **settings).prediction_batches())


def without(*names: str, **changed: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values for name, values in PAIRS.items() if name not in names} | changed


def test_an_angle_gives_the_motion_that_positions_give():
    with_positions = batch(PAIRS, inflate_errors=False)
    positions = [f"{name}{i}" for name in ("ra", "dec") for i in "12"]
    angle = 10 ** with_positions["log_separation"].double().numpy()
    angle *= with_positions_parallax() / 1e3 / 3600
    other = batch(without(*positions, pairdistance=angle), inflate_errors=False)
    assert torch.allclose(with_positions["log_separation"], other["log_separation"], atol=1e-4)
    first, second = (b["motion"].norm(dim=1) for b in (with_positions, other))
    assert torch.allclose(first, second, rtol=0.02, atol=0.01)
    au = batch(without(*positions, sep_AU=10 ** other["log_separation"].double().numpy()))
    assert torch.allclose(au["log_separation"], other["log_separation"], atol=0.05)


def with_positions_parallax() -> np.ndarray:
    weights = 1 / np.stack([PAIRS["parallax_error1"], PAIRS["parallax_error2"]]) ** 2
    values = np.stack([PAIRS["parallax1"], PAIRS["parallax2"]])
    return (values * weights).sum(0) / weights.sum(0)


@pytest.mark.parametrize(
    ("role", "factor", "unit"), [("pairdistance", 3600.0, "arcsec"), ("sep_AU", 4.8e-6, "pc")]
)
def test_separations_in_another_unit_are_asked_about(role, factor, unit):
    au = 10 ** batch(PAIRS)["log_separation"].double().numpy()
    right = au if role == "sep_AU" else au * with_positions_parallax() / 1e3 / 3600
    wrong = PAIRS | {role: right * factor}
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match=rf"'{role}' is taken as.*data\.units\.{role}"),
    ):
        batch(wrong)
    stated = batch(wrong, units={role: unit})
    assert torch.allclose(stated["motion"], batch(PAIRS)["motion"])


def test_a_star_paired_with_itself_is_refused():
    same = {f"{name}2": PAIRS[f"{name}1"].copy() for name in ("ra", "dec")}
    with pytest.raises(ValueError, match="paired with itself"):
        batch(PAIRS | same)


def test_missing_errors_of_proper_motions_are_asked_for():
    with pytest.raises(ValueError, match="pmra_error2"):
        batch(without("pmra_error2"))


def test_a_parallax_below_zero_gives_no_mass_and_no_training():
    negative = PAIRS["parallax1"].copy()
    negative[3] = -0.5
    broken = PAIRS | {"parallax1": negative}
    found = batch(broken)
    assert not found["moves"][3] and not found["valid"][3].any()
    assert found["moves"][2] and torch.isfinite(found["motion"]).all()
    module = data(broken)
    with pytest.raises(ValueError, match=r"'parallax1'.*row 3"):
        module.setup("fit")


def test_one_parallax_of_the_pair_serves_both():
    names = ("parallax1", "parallax2", "parallax_error1", "parallax_error2")
    weight = 1 / PAIRS["parallax_error1"] ** 2 + 1 / PAIRS["parallax_error2"] ** 2
    one = without(*names, parallax=with_positions_parallax(), parallax_error=weight**-0.5)
    first, second = (batch(table, inflate_errors=False) for table in (PAIRS, one))
    assert torch.allclose(first["motion"], second["motion"], rtol=1e-4, atol=1e-5)
    assert torch.allclose(first["covariance"], second["covariance"], rtol=1e-3, atol=1e-7)


def test_colours_that_are_unknown_give_no_mass():
    colour = PAIRS["bp_rp2"].copy()
    colour[0] = np.nan
    found = batch(PAIRS | {"bp_rp2": colour})
    assert found["valid"][0].tolist() == [True, False]


def test_a_star_outside_the_diagram_is_named():
    faint = PAIRS["phot_g_mean_mag2"].copy()
    faint[4] = 29.5
    near = {name: PAIRS[name].copy() for name in ("parallax1", "parallax2")}
    for parallax in near.values():
        parallax[4] = 200.0
    with pytest.raises(ValueError, match=r"'phot_g_mean_mag2'.*absolute magnitude"):
        data(PAIRS | {"phot_g_mean_mag2": faint} | near).setup("fit")


def test_stars_need_a_colour_and_a_magnitude_alone():
    found = batch({"bp_rp": [0.82, 3.0, np.nan], "abs_g": [4.67, 11.0, 5.0]})
    assert found["valid"].tolist() == [True, True, False]
    apparent = batch({
        "bp_rp": [0.82], "phot_g_mean_mag": [9.67], "parallax": [10.0], "parallax_error": [0.5],
    })  # fmt: skip
    assert float(apparent["abs_g"]) == pytest.approx(4.67, abs=1e-5)
    assert float(apparent["abs_g_error"]) == pytest.approx(0.1086, abs=1e-3)


def test_reddening_that_is_named_is_taken_away():
    found = batch({"bp_rp": [1.0], "abs_g": [5.0], "ebv": [0.1]}, columns={"ebv": "ebv"})
    assert float(found["bp_rp"]) == pytest.approx(0.8661, abs=1e-4)
    assert float(found["abs_g"]) == pytest.approx(4.726, abs=1e-4)
    assert float(batch({"bp_rp": [1.0], "abs_g": [5.0], "ebv": [0.1]})["bp_rp"]) == 1.0


def test_pairs_that_the_selection_excludes_are_left_out_with_a_count():
    fast = PAIRS["pmra2"].copy()
    fast[:20] += 200
    module = data(PAIRS | {"pmra2": fast}, val_fraction=0.1, test_fraction=0)
    with pytest.warns(UserWarning, match=r"that move faster than data.largest_circular_mass=5"):
        module.setup("fit")
    assert sum(len(rows["row"]) for rows in module.rows.values()) <= 280


def test_an_unknown_setting_of_the_population_is_refused():
    with pytest.raises(ValueError, match="has no setting distanse"):
        WideBinaryData(population={"distanse": 100})


@pytest.mark.skipif(not FILE.is_file(), reason="real data are not here")
def test_the_published_catalogue_is_read_without_a_warning():
    module = WideBinaryData(path=str(FILE), split="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = next(module.prediction_batches())
    assert found["moves"].all() and found["valid"].all()
    published = torch.tensor([593.7, 568.9])
    assert torch.allclose(10 ** found["log_separation"], published, rtol=0.03)
    speed = found["motion"].norm(dim=1)
    assert (speed < 2.3).all()
