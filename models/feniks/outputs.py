"""Columns of a galaxy that may be quiescent, with their meaning."""

from collections.abc import Mapping

from orrery.models.base import Constant, Output
from orrery.models.sed_emulator.outputs import FLAGS as OF_FITS

CLASSES = ("none", "tentative", "secure")  # of redshifts by spectra
QUANTITIES = {
    "a_v": ("mag", "attenuation by diffuse dust at 5500 A"),
    "t50": ("Gyr", "time before which half of the mass had formed"),
    "t90": ("Gyr", "time before which 90% of the mass had formed"),
    "z_form": ("", "redshift at which half of the mass had formed"),
    "u_v": ("mag", "U - V at rest (AB)"),
    "v_j": ("mag", "V - J at rest (AB)"),
    "us_gs": ("mag", "synthetic u - g at rest (AB), of top hats at 2700-3100 and 4300-4700 A"),
    "gs_is": ("mag", "synthetic g - i at rest (AB), of top hats at 4300-4700 and 7000-8000 A"),
}

FEW_BANDS = 5
POOR_SPECTRUM = 1.8  # factor of the errors
FLAGS = OF_FITS | {
    "poor_fit": f"{OF_FITS['poor_fit']}; the galaxy was fitted again with larger errors (see "
    "added_error)",
    "few_bands": f"fewer than {FEW_BANDS} bands are observed: probabilities and colours are mostly "
    "those of the prior",
    "poor_spectrum": "no model fits the spectrum unless its errors are "
    f"{POOR_SPECTRUM:g} times larger or more: bad pixels, errors that are too small, or broad "
    "lines (see p_agn); its redshift is at most tentative",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}

OF_MOCKS = ("z_pit", "broad_true")  # of OF_SPECTRA, those that need the truth
OF_SPECTRA = {
    "z_class": Output(
        "",
        "class of a redshift by photometry and spectrum; blank without a spectrum, or where the "
        "redshift was known to 0.01",
        labels=CLASSES,
    ),
    "z_peak": Output("", "likeliest redshift by photometry and spectrum"),
    "p_peak": Output("", "probability that the redshift is within 0.01 of it"),
    "z_second": Output("", "likeliest redshift that is more than 0.01 from it"),
    "p_second": Output("", "its probability"),
    "p_agn": Output("", "probability of a broad H-beta and [O III] component"),
    "ln_bayes_broad": Output("", "ln of the ratio of evidences with and without it"),
    "broad_velocity": Output(
        "km/s", "its velocity relative to the stars; blank where p_agn is below 0.5"
    ),
    "broad_fwhm": Output("km/s", "its full width at half maximum; blank likewise"),
    "sigma_v": Output("km/s", "velocity dispersion of the stars: median of the posterior"),
    "n_pixels": Output("", "pixels of the spectrum that were fitted"),
    "error_scale": Output("", "factor, 1 to 2, by which the spectrum's errors are too small"),
    "z_pit": Output("", "probability of a lower redshift than the true one"),
    "broad_true": Output("", "1: a mock with a broad component; 0: one without"),
}


def with_own_columns(
    columns: Mapping[str, Output | Constant], z_min: float, log_mass_min: float, uvj: str
) -> dict[str, Output | Constant]:
    """Those of sed_emulator, and probabilities."""
    own: dict[str, Output | Constant] = {
        "p_candidate": Output(
            "",
            f"probability that the galaxy is quiescent, at z > {z_min:g}, and has more than "
            f"10^{log_mass_min:g} Msun in stars",
        ),
        "p_quiescent": Output(
            "",
            "probability that the star formation rate of the last 100 Myr over the stellar mass is "
            "below 0.2 over the age of the universe",
        ),
        "p_uvj": Output("", f"probability of colours in the box {uvj} of U - V and V - J"),
        "p_ugi": Output("", "probability of colours in the box of synthetic u - g and g - i"),
    }
    added = Output(
        "",
        "error, relative to the flux, that was added to all bands of a poor fit, so that its chi^2 "
        "is as expected; 0: none",
    )
    every = own | OF_SPECTRA | dict(columns)
    return every | {"added_error": added, "flags": Output("", "bits", bits=FLAGS)}
