"""Names of species and of columns of abundances, as papers and surveys write them."""

import pytest

from orrery.physics.abundances.species import (
    ELEMENTS,
    Species,
    is_species,
    read_label,
    read_species,
)


@pytest.mark.parametrize(
    ("text", "element", "form"),
    [
        ("Mg", "Mg", ""),
        ("Ti II", "Ti", "II"),
        ("TiII", "Ti", "II"),
        ("Ti_II", "Ti", "II"),
        ("Fe1", "Fe", "I"),
        ("22.1", "Ti", "II"),
        ("26.0", "Fe", "I"),
        ("106.0", "C", "C-H"),
        ("C-H", "C", "C-H"),
        ("CH", "C", "C-H"),
        ("C-N", "N", "C-N"),
        ("C2", "C", "C-C"),
        ("NI", "N", "I"),
        ("V", "V", ""),
        ("mg", "Mg", ""),
    ],
)
def test_species_are_read_in_every_spelling(text, element, form):
    assert read_species(text) == Species(element, form)


def test_in_capitals_a_symbol_of_two_letters_goes_first():
    """APOGEE: CO_FE is cobalt, NI_FE nickel, CI_FE neutral carbon, TIII_FE ionised titanium."""
    found = {t: str(read_species(t, any_case=True)) for t in ("CO", "NI", "CI", "TIII", "C")}
    assert found == {"CO": "Co", "NI": "Ni", "CI": "C I", "TIII": "Ti II", "C": "C"}


def test_bands_give_the_element_that_is_not_hydrogen_and_of_cn_nitrogen():
    assert [read_species(m).element for m in ("C-H", "C-N", "NH", "OH")] == ["C", "N", "N", "O"]


@pytest.mark.parametrize(("text", "near"), [("Mq", "Mg, Mn"), ("Mgg", "Mg"), ("Tii", "Ti")])
def test_an_unknown_element_is_refused_with_what_is_near(text, near):
    with pytest.raises(ValueError, match=f"'{text}' is no element or species; near: {near}"):
        read_species(text)


def test_words_are_no_species():
    assert not any(is_species(word) for word in ("", "Indus_13", "star", "7.5", "X", "H"))


@pytest.mark.parametrize(
    ("column", "role"),
    [
        ("[Fe/H]", "fe_h"),
        ("e_[Fe/H]", "fe_h_error"),
        ("[Fe/H]_err", "fe_h_error"),
        ("e[Fe/H]", "fe_h_error"),
        ("l_[Mg/Fe]", "mg_limit"),
        ("FeH", "fe_h"),
        ("e_FeH", "fe_h_error"),
        ("feh", "fe_h"),
        ("[Mg/Fe]", "mg_fe"),
        ("Mg/Fe", "mg_fe"),
        ("MgFe", "mg_fe"),
        ("e_MgFe", "mg_fe_error"),
        ("MG_FE", "mg_fe"),
        ("MG_FE_ERR", "mg_fe_error"),
        ("FE_H", "fe_h"),
        ("FE_H_ERR", "fe_h_error"),
        ("Mg_fe", "mg_fe"),
        ("e_Mg_fe", "mg_fe_error"),
        ("mg_fe_error", "mg_fe_error"),
        ("fe_h", "fe_h"),
        ("A(Li)", "li_logeps"),
        ("A_Li", "li_logeps"),
        ("logeps_Mg", "mg_logeps"),
        ("log_eps(Mg)", "mg_logeps"),
        ("e_logeps_Mg", "mg_logeps_error"),
        ("[Ti II/Fe]", "ti_fe"),
        ("[TiII/H]", "ti_h"),
        ("[Ti/Fe]II", "ti_fe"),
        ("u_fe", "u_fe"),
        ("e_u_fe", "u_fe_error"),
        ("s_fe", "s_fe"),
        ("C_FE", "c_fe"),
        ("CO_FE", "co_fe"),
        ("mg_limit", "mg_limit"),
        ("eu_significance", "eu_significance"),
        ("mg_dteff", "mg_dteff"),
        ("ti_dmh", "ti_dmh"),
    ],
)
def test_columns_have_the_roles_that_their_names_mean(column, role):
    label = read_label(column)
    assert label is not None
    assert label.role == role


OTHERS = (
    "Star name Teff logg RAh DEm RVel Vmag SN mask [M/H] [alpha/Fe] alpha_fe X_H [X/Fe] J_H life "
    "flag_mg_fe nr_Mg_fe MG_FE_FLAG MG_FE_SPEC bp_rp logeps Age"
)


@pytest.mark.parametrize("column", OTHERS.split())
def test_other_columns_have_none(column):
    assert read_label(column) is None


def test_every_element_has_its_roles_read_back():
    for element in ELEMENTS:
        for quantity in ("h", "fe", "h_error", "fe_error", "limit", "significance", "dvt"):
            label = read_label(f"{element.lower()}_{quantity}")
            assert label is not None
            assert (label.species.element, label.quantity) == (element, quantity)


def test_an_unknown_element_in_brackets_is_refused_with_its_column():
    with pytest.raises(ValueError, match=r"column '\[Mq/Fe\]': 'Mq' is no element; near: Mg"):
        read_label("[Mq/Fe]")


def test_the_preferred_species_is_the_one_that_surveys_mean():
    def best(*species):
        return str(min((read_species(s) for s in species), key=lambda s: s.rank))

    assert best("Fe II", "Fe I") == "Fe I"
    assert best("Ti I", "Ti II") == "Ti II"
    assert best("Sr I", "Sr II") == "Sr II"
    assert best("C I", "C2", "C-H") == "C-H"
    assert best("Mg I", "Mg") == "Mg"
