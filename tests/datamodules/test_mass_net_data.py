"""Wide binaries as users have them: other columns, other units, pairs that are none."""

import math
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


def test_one_reddening_of_the_pair_serves_both_and_one_star_alone_is_refused():
    table = PAIRS | {"EBV": np.full(300, 0.1)}
    found, plain = batch(table, columns={"ebv": "EBV"}), batch(PAIRS)
    assert torch.allclose(found["bp_rp"], plain["bp_rp"] - 0.1339, atol=1e-5)
    with pytest.raises(ValueError, match="expected ebv1 and ebv2"):
        batch(table, columns={"ebv1": "EBV"})


def test_an_unknown_reddening_that_is_named_gives_no_mass():
    found = batch(
        {"bp_rp": [1.0, 1.0], "abs_g": [5.0, 5.0], "ebv": [0.1, np.nan]}, columns={"ebv": "ebv"}
    )
    assert found["valid"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("names", "factor", "match"),
    [
        (("ra1", "ra2", "dec1", "dec2"), math.pi / 180, "median separation"),
        (("pmra1", "pmra2", "pmdec1", "pmdec2"), 1e-3, r"v sqrt\(s / G Msun\).*proper motions"),
    ],
)
def test_pairs_in_another_unit_are_asked_about(names, factor, match):
    broken = PAIRS | {name: PAIRS[name] * factor for name in names}
    with pytest.raises(ValueError, match=match):
        data(broken).setup("fit")
    with pytest.warns(UserWarning, match=match):
        batch(broken)


def test_an_angle_in_arcsec_without_a_unit_is_asked_about():
    near = {name: np.full(3, value) for name, value in (("parallax1", 20.0), ("parallax2", 20.0))}
    table = {name: values[:3] for name, values in PAIRS.items() if name[:-1] not in ("ra", "dec")}
    with pytest.warns(UserWarning, match="are they arcsec"):
        batch(table | near | {"pairdistance": np.array([2.0, 4.0, 9.0])})


def test_equal_stars_without_positions_are_refused():
    twins = {f"{name[:-1]}2": PAIRS[name] for name in PAIRS if name.endswith("1")}
    table = {name: v for name, v in (PAIRS | twins).items() if name[:-1] not in ("ra", "dec")}
    with pytest.raises(ValueError, match="paired with itself"):
        batch(table | {"pairdistance": np.full(300, 0.002)})


def test_a_poor_parallax_gives_no_motion():
    poor = PAIRS["parallax_error1"].copy(), PAIRS["parallax_error2"].copy()
    for error in poor:
        error[0] = 0.6 * PAIRS["parallax1"][0]
    found = batch(PAIRS | dict(zip(("parallax_error1", "parallax_error2"), poor, strict=True)))
    assert found["moves"].tolist()[:2] == [False, True]


def test_a_radial_velocity_of_minus_999_is_unknown():
    found = batch(PAIRS | {"dr2_radial_velocity1": np.full(300, -999.0)})
    assert torch.equal(found["motion"], batch(PAIRS)["motion"])


def test_one_parallax_that_is_named_twice_is_one_measurement():
    names = ("parallax1", "parallax2", "parallax_error1", "parallax_error2")
    table = without(*names, plx=with_positions_parallax(), e_plx=0.03 * np.ones(300))
    once = {"parallax": "plx", "parallax_error": "e_plx"}
    twice = {f"{role}{i}": name for role, name in once.items() for i in (1, 2)}
    first, second = (batch(table, columns=columns) for columns in (once, twice))
    assert torch.allclose(first["covariance"], second["covariance"])


def test_stars_are_weighed_with_the_columns_of_a_training_on_pairs():
    """The checkpoint knows the names of the pairs' columns, which a catalogue of stars lacks."""
    columns = {"bp_rp1": "BPRP1", "bp_rp2": "BPRP2", "pmra1": "PM1", "parallax": "PLX"}
    found = batch({"bp_rp": [0.82], "abs_g": [4.67]}, columns=columns)
    assert found["valid"].tolist() == [True]
    with pytest.raises(ValueError, match="'BPRP2'"):
        batch({"bp_rp": [0.82], "abs_g": [4.67], "BPRP1": [0.5]}, columns=columns)


def test_columns_of_pairs_that_are_named_make_a_catalogue_one_of_pairs():
    with pytest.raises(ValueError, match="bp_rp2: no column"):
        batch(without("bp_rp2"), columns={"bp_rp1": "bp_rp1"})


def test_positions_that_are_named_are_not_passed_over():
    with pytest.raises(ValueError, match="dec2: no column"):
        batch(without("dec2", sep_AU=np.full(300, 500.0)), columns={"ra1": "ra1"})


def test_a_population_too_faint_to_be_seen_is_refused():
    with pytest.raises(ValueError, match="no simulated pair is brighter"):
        population.simulate(10, Population(faintest=-9), 0)


def test_an_unknown_setting_of_the_population_is_refused():
    with pytest.raises(ValueError, match="has no setting distanse"):
        WideBinaryData(population={"distanse": 100})
    with pytest.raises(ValueError, match="has no setting largest_circular_mass"):
        WideBinaryData(population={"largest_circular_mass": 2.0})


def test_a_selection_by_a_mass_below_zero_is_refused():
    with pytest.raises(ValueError, match="largest_circular_mass=-5"):
        WideBinaryData(largest_circular_mass=-5)


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
