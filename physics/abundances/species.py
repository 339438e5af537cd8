"""Names of chemical species and of columns of abundances, as papers and surveys write them.

An element's column is named by a role: ``mg_h`` is [Mg/H], ``mg_fe`` [Mg/Fe], ``mg_logeps``
log eps(Mg) = 12 + log N(Mg)/N(H); ``mg_h_error`` its error; ``mg_limit`` the flag of a limit.
"""

import difflib
import re
from functools import cache
from typing import NamedTuple

_SYMBOLS = (  # by atomic number, from 1 on
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U"
)
_BY_NUMBER = tuple(_SYMBOLS.split())
ELEMENTS = tuple(e for e in _BY_NUMBER if e != "H")
_FOLDED = {symbol.lower(): symbol for symbol in ELEMENTS}

# Molecule -> the element whose abundance its bands give
MOLECULES = {
    "C-H": "C", "CH": "C", "C-C": "C", "C2": "C", "C-N": "N", "CN": "N", "N-H": "N", "NH": "N",
    "O-H": "O", "OH": "O",
}  # fmt: skip
_MOOG_MOLECULES = {106: "C-H", 606: "C-C", 607: "C-N", 107: "N-H", 108: "O-H"}
_IONS = {"": "", "I": "I", "II": "II", "III": "III", "1": "I", "2": "II", "3": "III"}

# Elements whose lines in cool stars are those of the ion. Ti is among them, because Ti II is close
# to local thermodynamic equilibrium and Ti I is not (Bergemann 2011, MNRAS 413, 2184); iron is not,
# because most surveys mean Fe I by [Fe/H].
_IONISED = "Be Sc Ti Sr Y Zr Nb Ba La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Th U"
IONISED = frozenset(_IONISED.split())

# Numerators of columns that are no element: [M/H], [alpha/Fe], [s/Fe]
_NUMERATORS = "m me z a alpha alphas x el xi r rs i"
_NO_ELEMENTS = frozenset(_NUMERATORS.split())


class Species(NamedTuple):
    """An element, and what it was measured by: "I" neutral, "II" ion, "C-H" molecule, "" unsaid."""

    element: str
    form: str

    @property
    def rank(self) -> int:
        """0 for the form that is taken where there are several, then 1, 2...

        An unsaid form first; of C, N and O a molecule before atoms, C-H before C2; else the ion
        of `IONISED` elements, and the neutral atom of others.
        """
        order = ["", "C-H", "C-N", "N-H", "O-H", "C-C"]
        order += ["II", "I", "III"] if self.element in IONISED else ["I", "II", "III"]
        return order.index(self.form)

    def __str__(self) -> str:
        return (
            f"{self.element} {self.form}"
            if self.form in ("I", "II", "III")
            else (self.form or self.element)
        )


class Label(NamedTuple):
    """What a column of abundances holds.

    ``quantity``: "h", "fe" or "logeps", the same with "_error"; "limit" or "significance" of a
    limit; "diron",
    "dteff", "dlogg", "dvt", "dmh", the responses to [Fe/H] and to stellar parameters.
    """

    species: Species
    quantity: str

    @property
    def role(self) -> str:
        return f"{self.species.element.lower()}_{self.quantity}"


def near_elements(text: str) -> str:
    """A hint for a misspelled element, such as "; near: Mg, Mn"; empty if none is near."""
    word = re.split(r"[\s_\d]", text.strip())[0].lower()
    ratio = {n: difflib.SequenceMatcher(None, word, n).ratio() for n in _FOLDED}
    near = [n for n in _FOLDED if ratio[n] >= 0.5]
    near.sort(key=lambda n: (-ratio[n], n[0] != word[:1]))
    return f"; near: {', '.join(_FOLDED[n] for n in near[:4])}" if near else ""


def read_species(text: str, any_case: bool = False) -> Species:
    """The species of a name: "Ti II", "TiII", "Ti_II", "Ti2", "22.1" (MOOG), "C-H", "Mg".

    ``any_case``: it may be in capitals, as in APOGEE's columns. Then a symbol of two letters goes
    first: NI is nickel, and CI neutral carbon.

    Raises ``ValueError`` with near matches for what is no element.
    """
    found = _species(text.strip(), any_case)
    if found is None:
        raise ValueError(f"'{text}' is no element or species{near_elements(text)}")
    return found


def is_species(text: str) -> bool:
    return _species(text.strip(), any_case=False) is not None


def _species(text: str, any_case: bool) -> Species | None:
    if text in MOLECULES:
        return Species(MOLECULES[text], _hyphened(text))
    if match := re.fullmatch(r"(\d{1,3})\.([012])\d*", text):
        number, ion = int(match[1]), int(match[2])
        if number in _MOOG_MOLECULES:
            return Species(MOLECULES[_MOOG_MOLECULES[number]], _MOOG_MOLECULES[number])
        if 2 <= number <= len(_BY_NUMBER):
            return Species(_BY_NUMBER[number - 1], ("I", "II", "III")[ion])
        return None
    match = re.fullmatch(r"([A-Z][a-z]?)[\s_]*(I{1,3}|[123])?", text)
    if match and match[1] in ELEMENTS and not any_case:
        return Species(match[1], _IONS[match[2] or ""])
    if not (any_case or text.isupper() or text.islower()):
        return None
    for size in (2, 1):
        symbol, rest = _FOLDED.get(text[:size].lower()), text[size:].strip(" _").upper()
        if symbol and len(text) >= size and rest in _IONS:
            return Species(symbol, _IONS[rest])
    return None


def _hyphened(molecule: str) -> str:
    return {"C2": "C-C"}.get(molecule, molecule if "-" in molecule else "-".join(molecule))


_X = r"(?P<x>[A-Za-z]{1,2}(?:[\s_]?(?:I{1,3}|[123]))?|[A-Za-z]{1,6})"
_RATIOS = (  # bracketed, then others: [Mg/Fe], Mg/Fe, Mg_Fe, MgFe
    re.compile(rf"\[\s*{_X}\s*/\s*(?P<to>Fe|H)\s*\](?:\s*_?(?P<ion>I{{1,3}}))?"),
    re.compile(rf"{_X}/(?P<to>Fe|H)"),
    re.compile(r"(?P<x>[A-Za-z]{1,2}(?:I{1,3}|i{1,3}|[123])?)_(?P<to>fe|h)", re.I),
    re.compile(r"(?!life)(?P<x>[A-Za-z]{1,2}(?:I{1,3})?)(?P<to>fe)", re.I),
    re.compile(r"(?P<x>fe)(?P<to>h)", re.I),
    re.compile(r"(?P<x>[A-Z][a-z])(?P<to>H)"),
)
_LOGEPS = (
    re.compile(rf"(?:A|log\s?_?e(?:ps(?:ilon)?)?|eps)\s*\(\s*{_X}\s*\)", re.I),
    re.compile(r"(?:A|log_?e(?:ps(?:ilon)?)?|eps)_(?P<x>[A-Za-z]{1,2}(?:I{1,3}|[123])?)", re.I),
    re.compile(r"(?P<x>[A-Za-z]{1,2}(?:I{1,3}|[123])?)_(?:logeps|log_eps|eps)", re.I),
)
_ALONE = re.compile(r"(?P<x>[A-Za-z]{1,2}(?:_?I{1,3})?)", re.I)
# What stands before or after a name -> what the column then is
_BEFORE = (
    (re.compile(r"(?:e|err|error|sigma|sig|unc|u|s)_", re.I), "error"),
    (re.compile(r"e(?=\[)|err(?=\[)|error(?=\[)", re.I), "error"),
    (re.compile(r"(?:l|lim|limit|ul|f_lim)_|l(?=\[)", re.I), "limit"),
)
_AFTER = (
    (re.compile(r"_?(?:errors?|err|unc|sigma|sig|std)|_e", re.I), "error"),
    (re.compile(r"_(?:limit|lim|ul|upperlimit)", re.I), "limit"),
    (re.compile(r"_(?:significance|nsigma)", re.I), "significance"),
    (re.compile(r"_(diron|dteff|dlogg|dvt|dmh)", re.I), "response"),
)


@cache  # the names of a table are read several times while it is opened
def read_label(name: str) -> Label | None:
    """What the column ``name`` holds; None for what is no abundance.

    Known are [Mg/Fe], MgFe, Mg_fe, MG_FE, mg_h, [Ti II/H], A(Li), logeps_Mg; their errors e_..,
    .._ERR, .._error; the limit flags l_.. and .._limit; and the roles themselves.

    Raises ``ValueError`` with near matches for an unknown element in brackets, [Mq/Fe].
    """
    text = name.strip()
    if found := _value(text):
        return found
    for pattern, quantity in _BEFORE:
        if (match := pattern.match(text)) and (found := _value(text[match.end() :])):
            return _with(found, quantity)
    for pattern, quantity in _AFTER:
        match = re.fullmatch(rf"(?P<core>.+?)(?:{pattern.pattern})", text, re.I)
        if match is None:
            continue
        if found := _value(match["core"]):
            return _with(found, quantity, text)
        alone = quantity != "error" and _ALONE.fullmatch(match["core"])
        if alone and (species := _species(alone["x"], not alone["x"][:1].isupper())):
            return _with(Label(species, ""), quantity, text)
    return None


def _with(label: Label, what: str, text: str = "") -> Label:
    if what == "error":
        return Label(label.species, f"{label.quantity}_error")
    if what == "response":
        return Label(label.species, text.rsplit("_", 1)[1].lower())
    return Label(label.species, what)


def _value(text: str) -> Label | None:
    """The label of a column of values, which has no prefix or suffix."""
    for pattern in _RATIOS:
        if match := pattern.fullmatch(text):
            exact = "/" in text or not (match["x"].isupper() or match["x"].islower())
            species = _species(match["x"], any_case=not exact)
            if species is None:
                if text.startswith("[") and match["x"].lower() not in _NO_ELEMENTS:
                    raise ValueError(
                        f"column '{text}': '{match['x']}' is no element{near_elements(match['x'])}"
                    )
                continue
            if pattern.groupindex.get("ion") and match["ion"]:
                species = Species(species.element, match["ion"])
            return Label(species, match["to"].lower())
    for pattern in _LOGEPS:
        match = pattern.fullmatch(text)
        if match and (species := _species(match["x"], any_case=match["x"].islower())):
            return Label(species, "logeps")
    return None
