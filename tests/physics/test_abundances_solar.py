"""Solar scales: values against the papers, conversion between scales, recognition."""

from pathlib import Path

import numpy as np
import pytest

from orrery.physics.abundances.solar import SCALES, identify_scale, known_scale, offset, solar

S5 = Path(__file__).parents[3] / "shared/data/abundances/ajabacb6t6_mrt.txt"
ELEMENTS = ["C", "N", "O", "Na", "Mg", "Al", "Si", "Ca", "Ti", "Cr", "Fe", "Ni", "Ba", "Eu"]


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        # Asplund et al. (2009, table 1)
        ("asplund2009", {"C": 8.43, "O": 8.69, "Mg": 7.60, "Fe": 7.50, "Ba": 2.18, "Eu": 0.52}),
        # Asplund, Amarsi & Grevesse (2021, table 2)
        ("asplund2021", {"C": 8.46, "O": 8.69, "Mg": 7.55, "Fe": 7.46, "Ba": 2.27, "Sr": 2.83}),
        # Lodders, Palme & Gail (2009)
        ("lodders2009", {"C": 8.39, "O": 8.73, "Mg": 7.54, "Fe": 7.46, "Eu": 0.53}),
        # Grevesse & Sauval (1998, table 1)
        ("grevesse1998", {"C": 8.52, "N": 7.92, "O": 8.83, "Fe": 7.50, "Sr": 2.97}),
        # Anders & Grevesse (1989, table 2)
        ("anders1989", {"C": 8.56, "O": 8.93, "Mg": 7.58, "Fe": 7.67, "Eu": 0.51}),
    ],
)
def test_values_are_those_of_the_papers(scale, values):
    assert {element: solar(element, scale) for element in values} == values


def test_every_scale_has_the_elements_of_stellar_spectra():
    needed = (
        "Li C N O Na Mg Al Si P S K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Mo Ba La Ce Pr "
        "Nd Sm Eu Gd Dy Er Pb Th"
    )
    for scale in SCALES:
        for element in needed.split():
            assert -1 < solar(element, scale) < 9


def test_a_conversion_to_another_scale_and_back_changes_nothing():
    for relative_to in ("H", "Fe"):
        there = offset("Mg", "asplund2009", "anders1989", relative_to)
        back = offset("Mg", "anders1989", "asplund2009", relative_to)
        assert there == pytest.approx(-back)
    # a star of log eps(Fe) = 5.00 has [Fe/H] = -2.50 by Asplund 2009 and -2.67 by Anders 1989
    assert -2.50 + offset("Fe", "asplund2009", "anders1989") == pytest.approx(-2.67)
    assert offset("Fe", "asplund2009", "anders1989", "Fe") == 0
    assert offset("Mg", "asplund2009", "anders1989", "Fe") == pytest.approx(0.02 + 0.17)


def test_a_species_stands_for_its_element():
    assert solar("Ti II", "asplund2009") == solar("Ti", "asplund2009")
    assert solar("C-N", "asplund2009") == solar("N", "asplund2009")


@pytest.mark.parametrize(
    ("element", "scale", "words"),
    [
        ("Mg", "asplund2010", "near: asplund2009|near: asplund2021"),
        ("Mq", "asplund2009", "near: Mg"),
        ("U", "grevesse1998", "no value for U; asplund2009"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_near(element, scale, words):
    with pytest.raises(ValueError, match=words):
        solar(element, scale)


def test_a_name_of_a_scale_that_means_nothing_is_answered_with_all_of_them():
    with pytest.raises(ValueError, match="known are asplund2009, asplund2021"):
        known_scale("zzz")
    with pytest.raises(ValueError, match="'H' or 'Fe'"):
        offset("Mg", "asplund2009", "asplund2021", "Mg")


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_is_recognised_in_a_table_with_both_columns(scale):
    rng = np.random.default_rng(0)
    elements = ELEMENTS * 5
    x_h = np.round(rng.normal(-2, 0.5, len(elements)), 2)
    log_eps = np.round(x_h + [solar(e, scale) for e in elements] + rng.normal(0, 0.003, 70), 2)
    assert identify_scale(elements, log_eps, x_h) == scale


def test_no_scale_is_claimed_where_none_fits_or_where_several_do():
    x_h = np.full(len(ELEMENTS), -2.0)
    ours = np.array([solar(e, "asplund2009") for e in ELEMENTS])
    assert identify_scale(ELEMENTS, ours - 2.1, x_h) is None
    assert identify_scale(["O"], np.array([6.69]), np.array([-2.0])) is None  # 2009 and 2021 alike
    assert identify_scale(["O"], np.array([np.nan]), np.array([-2.0])) is None


@pytest.mark.skipif(not S5.exists(), reason="../shared/data is not here")
def test_s5_is_on_the_scale_of_asplund_2009():
    from orrery.tables import open_catalogue

    with open_catalogue(S5) as table:
        rows = next(iter(table.chunks(["Species", "logeps", "[X/H]"])))
    assert identify_scale(rows["Species"], rows["logeps"], rows["[X/H]"]) == "asplund2009"
