"""Builds physics/ejections/clusters.ecsv from four published tables (README of shared/data).

Values are copied, not computed; blanks are nan, "", rc = rh = 0 and core-collapsed c = 2.50.

    python -m orrery.benchmarks.gems_clusters shared/data/gems physics/ejections/clusters.ecsv
    python -m orrery.benchmarks.gems_clusters   # compares the zoo's cores with the listed ones
"""

import argparse
import re
import shlex
from pathlib import Path

import numpy as np
from astropy.table import MaskedColumn, Table

from orrery.physics.ejections.clusters import (
    KING_HALF,
    KING_TIDAL,
    LIMEPY,
    cluster_table,
    milky_way_clusters,
)
from orrery.physics.ejections.structure import core_structure

VB21 = "Vasiliev & Baumgardt 2021, Baumgardt & Vasiliev 2021"
HARRIS = "Harris 1996, edition of 2010"
MASSES = "Harris 2010's M_V with M/L_V of McLaughlin & van der Marel 2005, else about 2"
DE_BOER = "LIMEPY fit to number densities, de Boer et al. 2019"
GNEDIN = "Gnedin et al. 2002, King models with M/L_V = 3; in bersavosh/GC_cat"

# column, unit, meaning and source
COLUMNS = [
    ("name", None, "plain name"),
    ("other_names", None, "separated by semicolons"),
    ("ra", "deg", VB21),
    ("dec", "deg", VB21),
    ("distance", "kpc", VB21),
    ("e_distance", "kpc", VB21 + "; 10% assumed where none is listed"),
    ("pmra", "mas / yr", "with cos dec; " + VB21),
    ("e_pmra", "mas / yr", VB21),
    ("pmdec", "mas / yr", VB21),
    ("e_pmdec", "mas / yr", VB21),
    ("pm_corr", None, "correlation of pmra and pmdec; " + VB21),
    ("v_los", "km / s", VB21),
    ("e_v_los", "km / s", VB21),
    ("structure_distance", "kpc", f"at which mass and radii hold; {HARRIS}"),
    ("mass", "solMass", MASSES),
    ("r_core", "pc", f"where the surface density is half the central one; {HARRIS}"),
    ("r_half", "pc", f"projected, half of the light; {HARRIS}"),
    (
        "r_tidal",
        "pc",
        f"10^c r_core; {HARRIS}; blank where core collapsed: its c = 2.50 is assumed",
    ),
    ("W0", None, DE_BOER),
    ("e_W0", None, DE_BOER),
    ("g", None, DE_BOER),
    ("e_g", None, DE_BOER),
    ("r_half_mass", "pc", f"in three dimensions; {DE_BOER}"),
    ("e_r_half_mass", "pc", DE_BOER),
    ("r_t_fit", "pc", DE_BOER),
    ("e_r_t_fit", "pc", DE_BOER),
    ("M_fit", None, f"norm of the number density, not the cluster's mass; {DE_BOER}"),
    ("e_M_fit", None, DE_BOER),
    ("M_V", "mag", HARRIS),
    ("log_rho0_light", None, f"log10 of the central luminosity density in Lsun / pc3; {HARRIS}"),
    ("sigma_harris", "km / s", f"central dispersion along the line of sight; {HARRIS}"),
    ("sigma_vb21", "km / s", f"central dispersion, 0.1 to 0.3 where not measured; {VB21}"),
    ("gnedin_mass", "solMass", GNEDIN),
    ("gnedin_sigma", "km / s", f"central dispersion; {GNEDIN}"),
    ("gnedin_v_esc", "km / s", f"from the centre to the tidal radius; {GNEDIN}"),
]
SPELLED = {  # names of the first table that the rules below do not read
    "NGC_104_47Tuc": ("NGC 104", "47 Tuc; 47 Tucanae"),
    "NGC_5139_oCen": ("NGC 5139", "omega Cen; omega Centauri; oCen"),
    "Lynga_7_BH184": ("Lynga 7", "BH 184"),
    "ESO452_SC11": ("ESO 452-SC11", "1636-283"),
    "ESO280_SC06": ("ESO 280-SC06", ""),
    "ESO_93-8": ("ESO 93-8", ""),
    "Ryu_059_RLGC1": ("Ryu 059", "RLGC 1"),
    "Ryu_879_RLGC2": ("Ryu 879", "RLGC 2"),
    "NGC_6380_Ton1": ("NGC 6380", "Ton 1"),
    "Ton2_Pismis26": ("Ton 2", "Pismis 26"),
    "Terzan_5_11": ("Terzan 5", "Terzan 11"),
    "Djorg_2_ESO456": ("Djorg 2", "ESO 456-SC38"),
    "NGC_6540_Djorg": ("NGC 6540", "Djorg 3"),
    "NGC_6171_M107": ("NGC 6171", "M 107"),
    "NGC_6717_Pal9": ("NGC 6717", "Pal 9"),
    "AM_1": ("AM 1", "E 1"),
}
HARRIS_NAMES = {"1636283": "ESO452SC11", "1636-283": "ESO452SC11"}
HARRIS_NAMES |= {"ESONASC06": "ESO280SC06", "ESO-SC06": "ESO280SC06"}


def key(name: str) -> str:
    name = HARRIS_NAMES.get(name.upper(), name)
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def names(source: str) -> tuple[str, str]:
    if source in SPELLED:
        return SPELLED[source]
    parts = source.split("_")
    return " ".join(parts[:2]), " ".join(parts[2:])


def number(text: str, blank: float | None = None) -> float | None:
    value = float(text) if text else float("nan")
    return None if value != value or value == blank else value


def build(folder: Path) -> Table:
    gaia = [x.split() for x in (folder / "gaia_edr3_clusters.txt").open() if x[0] != "#"]
    lines = [x.split() for x in (folder / "harris2010.dat").open() if x.split()[0][0] != "#"]
    harris = {key(x[0]): x for x in lines}
    header, *lines = [x.replace("#", "").split() for x in (folder / "deBoer2019.dat").open()]
    fits = {key(x[0]): dict(zip(header, x, strict=True)) for x in lines}
    header, *lines = [shlex.split(x) for x in (folder / "gc_cat.txt").open()]
    listed = {key(x[0]): dict(zip(header, x, strict=True)) for x in lines}
    used: set[str] = set()
    rows = []
    for x in gaia:
        name, others = names(x[0])
        k = key(name)
        used.add(k)
        h, f, c = harris.get(k), fits.get(k, {}), listed.get(k, {})
        collapsed = c.get("cc") == "c" and h is not None and number(h[4], 0) is not None
        distance = float(x[3])
        row = {"name": name, "other_names": others, "ra": x[1], "dec": x[2], "distance": distance}
        row["e_distance"] = number(x[4]) or round(0.1 * distance, 3)
        row |= {"pmra": x[9], "e_pmra": x[12], "pmdec": x[10], "e_pmdec": x[13], "pm_corr": x[14]}
        row |= {"v_los": x[5], "e_v_los": x[6], "sigma_vb21": x[7]}
        row["structure_distance"] = c.get("R_sun")
        if k == key("Terzan 5"):  # GC_cat has a newer distance than the radii and the mass
            row["structure_distance"] = "6.9"
        if h is not None:
            row |= {"mass": h[2], "r_core": h[3], "r_half": number(h[4], 0)}
            row["r_tidal"] = None if collapsed else h[5]
        for column, theirs in (("W0", "W"), ("g", "g"), ("r_t_fit", "rt"), ("M_fit", "M")):
            row[column], row["e_" + column] = f.get(f"{theirs}_lime"), f.get(f"e_{theirs}_lime")
        row |= {"r_half_mass": f.get("limehalf"), "e_r_half_mass": f.get("e_limehalf")}
        row |= {"M_V": c.get("M_V,t"), "log_rho0_light": c.get("rho_0")}
        row |= {"sigma_harris": c.get("sig_v"), "gnedin_mass": c.get("model Mass")}
        row |= {"gnedin_sigma": c.get("model sig_v"), "gnedin_v_esc": c.get("model v_esc")}
        rows.append(row)
    table = Table(masked=True)
    for column, unit, description in COLUMNS:
        values = [row.get(column) for row in rows]
        if column not in ("name", "other_names"):
            values = [number(str(v or "")) if not isinstance(v, float) else v for v in values]
        table[column] = MaskedColumn(
            [0 if v is None else v for v in values],
            mask=[v is None for v in values],
            unit=unit,
            description=description,
        )
    unmatched = (set(harris) | set(fits) | set(listed)) - used
    table.meta["without_proper_motion"] = sorted(unmatched)
    table.meta["made_by"] = "benchmarks/gems_clusters.py"
    return table


def compare() -> None:
    """Prints median ratios to the listed values, and 1.48 MAD of their log10."""
    clusters = milky_way_clusters()
    core = core_structure(clusters)
    table = cluster_table()
    rows = [list(table["name"]).index(name) for name in clusters.names]
    listed = {c: np.ma.filled(table[c][rows].astype(float), np.nan) for c in table.colnames[2:]}
    scale = clusters.distance.numpy() / listed["structure_distance"]
    mass = clusters.mass.numpy()
    light = 10 ** (0.4 * (4.83 - listed["M_V"])) * scale**2
    same_mass = np.sqrt(listed["gnedin_mass"] * scale / mass)  # speeds, at the listed distance
    measured = np.where(listed["sigma_vb21"] > 0.3, listed["sigma_vb21"], np.nan)
    luminous = 10 ** listed["log_rho0_light"] / scale
    ratios = {
        "rho0 / (Harris's rho_0 x our M/L_V)": core.rho0.numpy() / (luminous * mass / light),
        "sigma0 / Gnedin, for his mass": core.sigma0.numpy() * same_mass / listed["gnedin_sigma"],
        "v_esc / Gnedin, for his mass": core.v_esc.numpy() * same_mass / listed["gnedin_v_esc"],
        "v_esc / Gnedin": core.v_esc.numpy() / listed["gnedin_v_esc"],
        "sigma0 / Vasiliev & Baumgardt": core.sigma0.numpy() / measured,
        "sigma0 / Harris": core.sigma0.numpy() / listed["sigma_harris"],
    }
    sources = np.array(clusters.structure_source)
    print("| ratio | " + " | ".join(("all", LIMEPY, KING_TIDAL, KING_HALF)) + " |")
    print("|---|" + "---|" * 4)
    for name, ratio in ratios.items():
        cells = []
        for chosen in (sources != "", *(sources == x for x in (LIMEPY, KING_TIDAL, KING_HALF))):
            x = np.log10(ratio[chosen & np.isfinite(ratio)])
            spread = 1.4826 * np.median(abs(x - np.median(x)))
            cells.append(f"{10 ** np.median(x):.2f}, {spread:.2f} dex ({len(x)})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, help="folder of the published tables")
    parser.add_argument("target", nargs="?", type=Path, help="ECSV file; without both: compares")
    options = parser.parse_args()
    if options.source is None:
        compare()
    elif options.target is None:
        parser.error("the target is missing")
    else:
        build(options.source).write(options.target, format="ascii.ecsv", overwrite=True)
