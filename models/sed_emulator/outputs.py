"""Columns of a fitted galaxy with their meaning."""

from collections.abc import Mapping, Sequence

from orrery.models.base import Output

QUANTILES = {"": 0.5, "_q16": 0.16, "_q84": 0.84}
POOR_FIT = 0.999  # of the distribution of chi^2, beyond which a fit is poor
LEAST_CONSTRAINT = 3.0  # parameters that the photometry determines, of others the prior speaks
EDGE_X = 2.6  # standard normal number of a parameter at the edge of its prior: 0.5% of it
FLAGS = {
    "poor_fit": "chi^2 of the best fit is beyond 99.9% of those of galaxies of the model",
    "at_edge": "the redshift, mass or diffuse dust of the best fit is at the edge of its prior",
    "prior_dominated": "photometry determines fewer than 3 parameters; the rest is the prior",
    "no_photometry": "no band is observed: all values are blank",
    "outside_box": "the known redshift is outside the prior's range (by 3 errors, if it has one): "
    "all values are blank",
    "second_mode": "a redshift that is 0.15 away in ln(1 + z) is not ruled out (above 5%)",
    "not_converged": "ensembles disagree (R-hat above 1.1), or no fit was found",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}
AT_EDGE = ("zred", "logmass", "dust2")

PARAMETER_TEXT = {
    "logmass": "log10 of the mass formed, Msun",
    "logzsol": "log10 of Z / Z_sun of the stars",
    "dust2": "optical depth of diffuse dust at 5500 A",
    "dust_index": "exponent of the power law by which diffuse dust deviates from Calzetti's curve",
    "dust1_fraction": "optical depth of birth clouds over dust2",
    "gas_logz": "log10 of Z / Z_sun of the gas",
    "gas_logu": "log10 of the ionisation parameter of the gas",
    "zred": "redshift",
}
DERIVED_TEXT = {
    "log_stellar_mass": (
        "dex(Msun)",
        "log10 of the mass in living stars, Msun, as the populations count it",
    ),
    "log_sfr": ("dex(Msun/yr)", "log10 of the star formation rate, mean of the last 100 Myr"),
    "log_ssfr": ("dex(1/yr)", "that rate over the stellar mass, log10"),
    "mass_weighted_age": ("Gyr", "age, mean over the mass formed"),
}


def parameter_text(name: str) -> str:
    """Meaning of a parameter."""
    if name.startswith("logsfr_ratio_"):
        i = int(name.removeprefix("logsfr_ratio_"))
        return f"log10 of the star formation rate of bin {i} over bin {i + 1}, the youngest first"
    return PARAMETER_TEXT[name]


def outputs(
    names: Sequence[str], draws: int, derived: Mapping[str, tuple[str, str]]
) -> dict[str, Output]:
    """Columns of galaxies with parameters ``names``; with ``draws`` the posterior's draws, too.

    ``derived``: unit and meaning of quantities that follow from the parameters.
    """
    columns: dict[str, Output] = {}
    quantities = {
        name: ("dex(Msun)" if name == "logmass" else "", parameter_text(name)) for name in names
    }
    quantities |= derived
    for name, (unit, text) in quantities.items():
        columns[name] = Output(unit, f"{text}: median of the posterior")
        columns[f"{name}_q16"] = Output(unit, f"{name}: 16% quantile")
        columns[f"{name}_q84"] = Output(unit, f"{name}: 84% quantile")
    columns |= {
        "chi2": Output("", "squared misfit of the best fit, with the emulator's errors"),
        "chi2_rank": Output(
            "", "share of galaxies of the model, as noisy, with a smaller chi^2", unusual="high"
        ),
        "n_bands": Output("", "bands that are observed"),
        "n_constrained": Output("", "number of parameters that the photometry determines"),
        "flags": Output("", "bits", bits=FLAGS),
        "flux_model": Output("uJy", "flux of the posterior, median", axes=("band",)),
        "flux_model_error": Output(
            "uJy", "half the 68% interval of that flux, with the emulator's error", axes=("band",)
        ),
        "flux_observed": Output(
            "uJy", "flux that was fitted, without Galactic extinction", axes=("band",)
        ),
        "flux_error": Output(
            "uJy", "its error, with the floor; blank: not observed", axes=("band",)
        ),
    }
    if draws:
        columns["posterior"] = Output(
            "", "draws of the posterior", location="posterior", axes=("draw", "parameter")
        )
    for name, (unit, text) in quantities.items():
        columns[f"{name}_true"] = Output(unit, f"{text}: true value, of a simulation")
    return columns
