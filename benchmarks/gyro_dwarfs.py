"""Ages of dwarfs whose ages and rotation are known from oscillations, to which nothing was fitted.

    git clone https://github.com/ojhall94/halletal2021
    python -m benchmarks.gyro_dwarfs --data halletal2021/data/atium.csv     # gyro_dwarfs.csv

Main-sequence stars by the classification of Hall et al. (2021, Nature Astronomy 5, 707), with their
rotation periods from the splitting of modes, colours of Gaia (not dereddened), and ages from models
of Silva Aguirre et al. (2015, 2017). Left out are stars that the model flags as evolved, by their
surface gravity, and those that the shipped model was compared with before. "4.5 Gyr" is the guess
of this age for every star.
"""

import argparse
import csv
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import pandas as pd
import torch

from orrery import pretrained
from orrery.physics.rotation.seismic_stars import STARS

GUESS = 4.5  # Gyr
NO_AGE, EVOLVED = 1, 32  # flags
COLOUR_ERROR = 0.02  # mag; the colours are not dereddened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="atium.csv of Hall et al. (2021)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = ages(dwarfs(options.data))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report(pd.DataFrame(rows))


def dwarfs(path: Path) -> pd.DataFrame:
    """Their columns by the names of gyro's catalogues, and ``seismic`` ages with errors in Gyr."""
    stars = pd.read_csv(path)
    known = {star.name.removeprefix("KIC ") for star in STARS}
    stars = stars[(stars["hrclass"] == "MS") & ~stars["KIC"].astype(str).isin(known)]
    return pd.DataFrame(
        {
            "star_id": stars["KIC"],
            "prot_d": stars["P"],
            "e_prot_lower": stars["l_P"],
            "e_prot_upper": stars["u_P"],
            "bp_rp0": stars["bprp"],
            "e_bp_rp0": COLOUR_ERROR,
            "logg": stars["modlogg"],
            "seismic": stars["age"],
            "e_seismic_lower": stars["loage"],
            "e_seismic_upper": stars["upage"],
        }
    )


def ages(stars: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """The model's ages of ``stars`` that have one and are not flagged as evolved."""
    found = pretrained.load("gyro").predict(stars)
    columns = ["age_q025", "age_q16", "age_q50", "age_q84", "age_q975", "flags"]
    seismic = stars[
        ["star_id", "seismic", "e_seismic_lower", "e_seismic_upper", "prot_d", "bp_rp0"]
    ]
    rows = seismic.join(found[columns].astype({name: float for name in columns[:-1]}))
    return rows[(rows["flags"] & (NO_AGE | EVOLVED)) == 0].round(4).to_dict("records")


def report(rows: pd.DataFrame) -> None:
    offset = np.log10(rows["age_q50"] / rows["seismic"])
    guess = np.log10(GUESS / rows["seismic"])
    for name, of in {"gyro": offset, f"{GUESS} Gyr": guess}.items():
        spread = 1.4826 * (of - of.median()).abs().median()
        print(f"{name}: {len(of)} stars, median {of.median():+.2f} dex, scatter {spread:.2f}")
    for low, high, name in (("age_q16", "age_q84", "68%"), ("age_q025", "age_q975", "95%")):
        inside = (rows["seismic"] > rows[low]) & (rows["seismic"] < rows[high])
        print(f"{name} intervals hold {inside.mean():.0%}")


if __name__ == "__main__":
    main()
