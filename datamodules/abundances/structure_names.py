"""Which structure a star belongs to and of what type that is, by their names."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_NUMBERED = re.compile(r"(?P<structure>[A-Za-z][\w. -]*?)(?:[_-]\d+)+")
_CLUSTER = re.compile(
    r"(ngc|ic|m|messier|pal|palomar|ter|terzan|arp|am|djorg|ton|hp|lynga|pismis|rup|ruprecht|"
    r"eso|whiting|bh|liller|crater|laevens|munoz|koposov|segue 3|kim)[\s_.-]*\d+.*|omega cen.*|"
    r"(omega|ω)[\s_]?centauri|47[\s_]?tuc.*|eridanus|pyxis|e ?3|.*globular.*"
)
_HALO = re.compile(r".*\bhalo\b.*|field|milky way.*|mw")
_DWARF = re.compile(
    r"(?:andromeda|antlia|aquarius|bo[oö]tes|canes venatici|cvn|carina|cetus|columba|coma|crater 2|"
    r"draco|dra|fornax|fnx|grus|hercules|horologium|hydra|hydrus|leo|lmc|smc|.*magellanic.*|"
    r"pegasus|pisces|reticulum|ret|sagittarius|sgr|sculptor|scl|segue [12]|sextans|sex|"
    r"triangulum|tucana|ursa m\w+|umi|uma|virgo|willman|gaia-?\s?(?:sausage-?\s?)?enceladus|gse)"
    r"(?:[\s_-]*(?:[ivx]+|\d+|[apt]|berenices|minor|major|dsph|dwarf))*"
)
_STREAM = re.compile(
    r"(?:300s|aliqa ?uma|atlas|cetus-?palca|chenab|elqui|fimbulthul|gaia-\d+|gd-?1|gjoll|helmi.*|"
    r"hrid|hyllus|indus|jet|jhelum|kwando|leiptr|lms-?1|wukong|m92 stream|molonglo|murrumbidgee|"
    r"nidhogg|ophiuchus|orinoco|orphan.*|pal 5 stream|palca|phlegethon|phoenix|ravi|sangarius|"
    r"scamander|slidr|svol|sylgr|triangulum stream|turbio|turranburra|wambelong|willka ?yaku|"
    r"ylgr|.*\bstream\b.*)"
)


def structures_of(stars: Sequence[str] | np.ndarray) -> np.ndarray | None:
    """(stars,) the structure in names such as Indus_13 or Jhelum_2_10; None where all have none.

    Names must be a word and numbers, for nine of ten stars, of which at least two share a word;
    other stars get "".
    """
    matches = [_NUMBERED.fullmatch(str(star).strip()) for star in stars]
    found = [match["structure"].strip() if match else "" for match in matches]
    counts = Counter(name for name in found if name)
    if sum(counts.values()) < 0.9 * len(found) or max(counts.values(), default=0) < 2:
        return None
    return np.array(found)


def odd_structures(structures: np.ndarray) -> list[str]:
    """Sentences on structures of one star whose name is nearly another's: TLAS, ATLAS."""
    counts = Counter(str(name) for name in structures if name)
    notes = []
    for name, count in counts.items():
        others = [other for other, n in counts.items() if n > 1]
        near = difflib.get_close_matches(name, others, 1, 0.85)
        if count == 1 and near:
            notes.append(
                f"structure '{name}' has one star, and '{near[0]}' {counts[near[0]]}: if they are "
                f"one, correct the name in the table"
            )
    return notes


def structure_type(name: str) -> str:
    """ "cluster", "dwarf", "stream" or "halo"; "" where the name does not tell."""
    text = re.sub(r"\s+", " ", name.strip().lower())
    for kind, pattern in (
        ("halo", _HALO), ("stream", _STREAM), ("cluster", _CLUSTER), ("dwarf", _DWARF),
    ):  # fmt: skip
        if pattern.fullmatch(text):
            return kind
    return ""


def structure_types(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """`structure_type` of each, (stars,)."""
    known = {name: structure_type(name) for name in {str(name) for name in names}}
    return np.array([known[str(name)] for name in names], dtype=str)
