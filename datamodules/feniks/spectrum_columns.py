"""What the columns of a spectrum's file are: their roles by their names, and their units."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
from astropy import units as u

from orrery.tables.columns import parse_unit

NEAR_INFRARED = (10_000.0, 55_000.0)  # Angstrom: where galaxies at z > 1 have their Balmer lines
FAINT, BRIGHT = 33.0, 8.0  # AB: the median pixel of a spectrum of a galaxy lies between
EXAMPLE = "1e-19 erg/s/cm2/AA"
PER_WAVELENGTH = u.Unit("W m-3")

# names of columns without what says unit or medium, such as wave of wave_um or wave_vac
_WAVELENGTHS = ("wavelength", "wavelengths", "wave", "lambda", "lam", "wl", "wavelength_obs",
                "wave_obs", "lambda_obs", "obs_wave")  # fmt: skip
_LOGARITHMS = ("loglam", "loglambda", "log_lambda", "log_lam", "log_wave", "logwave")
_FLUXES = ("flux", "flam", "f_lam", "f_lambda", "flambda", "fnu", "f_nu", "flux_density",
           "fluxdensity", "spec", "spectrum", "f", "flux_lambda", "flux_nu", "sci")  # fmt: skip
_ERRORS = ("error", "err", "sigma", "sig", "noise", "unc", "uncertainty", "std", "stddev", "e")
_IVARS = ("ivar", "invvar", "inverse_variance", "inv_var")


def _of_flux(words: Sequence[str]) -> tuple[str, ...]:
    """With a flux's name before or behind: flux_err, fluxerr, e_flux."""
    both = [(f, w) for f in _FLUXES for w in words if len(f) > 1 or f == w == "e"]
    joined = [x for f, w in both for x in (f"{f}_{w}", f"{w}_{f}", *([f + w] * (len(w) > 1)))]
    return (*words, *joined)


NAMES: dict[str, tuple[str, ...]] = {
    "wavelength": (*_WAVELENGTHS, *_LOGARITHMS),
    "low": tuple(f"{name}_{end}" for name in _WAVELENGTHS for end in ("low", "lo", "min")),
    "high": tuple(f"{name}_{end}" for name in _WAVELENGTHS for end in ("up", "high", "hi", "max")),
    "flux": _FLUXES,
    "error": _of_flux(_ERRORS),
    "ivar": _of_flux(_IVARS),
    "covariance": ("covariance", "covar", "cov", "covariance_matrix", "cov_matrix"),
    "mask": (
        "mask",
        "flag",
        "flags",
        "dq",
        "bad",
        "badpix",
        "bad_pixel",
        "and_mask",
        "quality",
        "qual",
    ),
    "good": ("good", "use", "ok", "goodpix", "good_pixel", "tr"),
    "id": ("id", "object", "object_id", "name", "source_id", "objid", "targetid"),
}
UNITS_IN_NAMES = {
    "um": "um", "micron": "um", "microns": "um", "micrometer": "um", "nm": "nm",
    "angstrom": "AA", "angstroms": "AA", "ang": "AA", "aa": "AA", "a": "AA",
}  # fmt: skip
IN_AIR = {"air": True, "vac": False, "vacuum": False}
LENGTHS = {**{name: u.Unit(unit) for name, unit in UNITS_IN_NAMES.items()}, "å": u.AA}


@dataclass(frozen=True)
class SpectrumSettings:
    """How files of spectra are read: ``data.spectrum.<name>``.

    - ``wavelength``, or ``low`` and ``high``, edges of pixels; ``flux``; ``error``, or ``ivar``,
      inverse variance, or ``covariance``, a row of numbers for each pixel; ``mask``, not 0 where a
      pixel is bad, or ``good``, not 0 where it is good; ``id``, of a table with a spectrum per row:
      columns, or extensions of an image. None: found by their names.
    - ``units`` of ``wavelength``, ``flux``, ``error`` and ``ivar``, before those of the file; may
      have a scale: 1e-19 erg/s/cm2/AA.
    - ``air``: whether wavelengths are in air; None: as the file says, and else in vacuum.
    - ``error_from``: "scatter": errors are estimated from that of neighbouring pixels.
    - ``group``: extension of a FITS file, or group of an HDF5 file.

    The others are settings of `FeniksSpectra`: ``resolution``, wavelength over FWHM of the
    spectrograph, None: see `spectrum_resolution`; ``wavelength_range``, Angstrom, beyond which
    pixels are not used; ``sentinels``, fluxes that mean unknown.
    """

    wavelength: str | None = None
    low: str | None = None
    high: str | None = None
    flux: str | None = None
    error: str | None = None
    ivar: str | None = None
    covariance: str | None = None
    mask: str | None = None
    good: str | None = None
    id: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    air: bool | None = None
    error_from: str | None = None
    group: str | None = None
    resolution: float | None = None
    wavelength_range: tuple[float, float] = NEAR_INFRARED
    sentinels: tuple[float, ...] = ()


OF_THE_MODULE = ("resolution", "wavelength_range", "sentinels")
WITH_UNITS = ("wavelength", "flux", "error", "ivar")
# ``data.spectrum``, all of which is found
DEFAULTS: Mapping[str, Any] = {
    f.name: dict.fromkeys(WITH_UNITS) if f.name == "units" else None
    for f in fields(SpectrumSettings)
    if f.name not in OF_THE_MODULE
}


def read_settings(given: Mapping[str, Any] | None, **others: Any) -> SpectrumSettings:
    """Settings of ``data.spectrum``; raises ``ValueError`` for unknown or impossible ones."""
    given = dict(given or {})
    for name in given:
        _refuse_unknown(f"data.spectrum.{name}", str(name), list(DEFAULTS))
    units = {k: str(v) for k, v in (given.pop("units", None) or {}).items() if v is not None}
    for name in units:
        _refuse_unknown(f"data.spectrum.units.{name}", name, WITH_UNITS)
    air, source = given.pop("air", None), given.pop("error_from", None)
    if air not in (None, True, False):
        raise ValueError(f"data.spectrum.air={air}; expected true, false, or null: as files say")
    if source not in (None, "scatter"):
        raise ValueError(f"data.spectrum.error_from={source}; expected scatter, or null")
    names: dict[str, Any] = {n: str(value) for n, value in given.items() if value is not None}
    settings = SpectrumSettings(**names, units=units, air=air, error_from=source, **others)
    _check_numbers(settings)
    return settings


def _check_numbers(settings: SpectrumSettings) -> None:
    low, high = settings.wavelength_range
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"data.wavelength_range=[{low:g},{high:g}]; expected two wavelengths, Angstrom, the "
            f"lower one first"
        )
    if settings.resolution is not None and not 10 <= settings.resolution < np.inf:
        raise ValueError(
            f"data.resolution={settings.resolution:g}; expected wavelength over FWHM, such as 3600"
        )


def _refuse_unknown(setting: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 3) or list(known)
        raise ValueError(f"{setting} is no setting; near: {', '.join(near)}")


# --- names --------------------------------------------------------------------------------------


def parts_of_name(name: str) -> tuple[str, str | None, bool | None]:
    """Its plain name, the unit that it names, and whether it says air (True) or vacuum (False)."""
    words = [word for word in re.split(r"[^a-z0-9å]+", name.lower()) if word]
    unit = next((UNITS_IN_NAMES[word] for word in words[1:] if word in UNITS_IN_NAMES), None)
    medium = next((IN_AIR[word] for word in words if word in IN_AIR), None)
    rest = [w for i, w in enumerate(words) if w not in IN_AIR and not (i and w in UNITS_IN_NAMES)]
    return "_".join(rest), unit, medium


def is_logarithm(name: str) -> bool:
    """Whether a column of wavelengths holds their log10 by its name."""
    return parts_of_name(name)[0] in _LOGARITHMS


def find(
    role: str,
    names: Sequence[str],
    settings: SpectrumSettings,
    path: str,
    known: Mapping[str, str] | None = None,
) -> str | None:
    """The column of a role: as the user says, as ``known``, or by its name; None: there is none.

    Raises ``ValueError`` if it is not there, or if several could be it.
    """
    named = getattr(settings, role)
    if named is not None:
        if named in names:
            return str(named)
        near = get_close_matches(named, names, 3, 0.5)
        raise ValueError(
            f"{path}: no column '{named}' (data.spectrum.{role}); "
            + (f"near matches: {', '.join(near)}; " if near else "")
            + f"its columns: {', '.join(names)}"
        )
    if known and role in known:
        return known[role]
    plain = {name: parts_of_name(name)[0] for name in names}
    if role not in ("wavelength", "low", "high"):  # of which alone names say a unit
        plain = {name: re.sub(r"[^a-z0-9]+", "_", name.lower()) for name in names}
    found = [name for name in names if plain[name] in NAMES[role]]
    if len(found) > 1:
        raise ValueError(
            f"{path}: {' and '.join(repr(n) for n in found)} could each be the {role}; choose "
            f"one: data.spectrum.{role}={found[0]}"
        )
    return found[0] if found else None


def missing(role: str, names: Sequence[str], path: str) -> ValueError:
    """That no column of a role was found, with those that are spelled similarly."""
    lowered = {name.lower(): name for name in names}
    near = [lowered[m] for word in NAMES[role][:6] for m in get_close_matches(word, lowered, 1)]
    hint = f"near matches: {', '.join(dict.fromkeys(near))}; " if near else ""
    return ValueError(
        f"{path}: no column of the {role}; {hint}name it: data.spectrum.{role}=<column>; its "
        f"columns: {', '.join(names)}"
    )


# --- units --------------------------------------------------------------------------------------


def read_unit(text: object) -> u.UnitBase | None:
    """A unit with the spellings of spectra, in which A is Angstrom; unknown ones by their name."""
    if text is None or not str(text).strip():
        return None
    plain = str(text).strip()
    if plain.lower() in LENGTHS:
        return LENGTHS[plain.lower()]
    plain = re.sub(r"\b10\s*(?:\*\*|\^)?\s*\(?(-\d+)\)?", r"1e\1", plain)
    plain = re.sub(r"(?i)\bergs\b", "erg", plain)
    plain = re.sub(r"(?i)\bA(?:ng(?:stroms?)?)?(?=$|[^A-Za-z])", "Angstrom", plain)
    plain = re.sub(r"\bmicrons?\b", "um", plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        return parse_unit(plain)


def length_unit(text: object, values: np.ndarray, name: str, path: str) -> tuple[u.UnitBase, str]:
    """The unit of wavelengths, and what to say of it where it is guessed, by their size.

    ``text`` is what the file or the user says, None: nothing.
    """
    unit = read_unit(text)
    if unit is not None:
        if unit.is_equivalent(u.m):
            return unit, ""
        raise ValueError(
            f"{path}: column '{name}' of wavelengths is in '{text}', which is no length; state "
            f"it: data.spectrum.units.wavelength=um (or nm, or AA)"
        )
    if (by_name := parts_of_name(name)[1]) is not None:
        return u.Unit(by_name), ""
    low, high = float(values.min()), float(values.max())
    guess = _guessed_unit(low, high)
    if not guess:
        raise ValueError(
            f"{path}: column '{name}' of wavelengths has no unit and holds {low:g} to {high:g}; "
            f"state it: data.spectrum.units.wavelength=um (or nm, or AA)"
        )
    return u.Unit(guess), (
        f"wavelengths have no unit, and are taken as {guess}; data.spectrum.units.wavelength="
        f"{guess} says so"
    )


def _guessed_unit(low: float, high: float) -> str:
    """Where one unit alone makes a spectrum of the near infrared, and others none of light."""
    if low >= 0.5 and high <= 30:
        return "um"
    if low >= 900 and high < 3000:  # Angstrom would be the far ultraviolet
        return "nm"
    return "AA" if low >= 9000 and high <= 60_000 else ""


def to_microjansky(
    unit: u.UnitBase | None, wavelength: np.ndarray, name: str, role: str, path: str
) -> np.ndarray:
    """Factor by pixel that makes flux densities uJy, or errors of inverse variances (``ivar``).

    Raises ``ValueError`` where the unit is not known, or is none of a flux density.
    """
    example = f"'({EXAMPLE})-2', or uJy-2" if role == "ivar" else f"'{EXAMPLE}', or uJy"
    states = f"state it: data.spectrum.units.{role}={example}"
    if unit is None:
        raise ValueError(
            f"{path}: column '{name}' has no unit; is it a flux density per wavelength or per "
            f"frequency, and in which scale? {states}"
        )
    density = unit**-0.5 if role == "ivar" else unit
    if not (density.is_equivalent(u.Jy) or density.is_equivalent(PER_WAVELENGTH)):
        raise ValueError(
            f"{path}: column '{name}' is in '{unit}', which is no flux density per wavelength or "
            f"per frequency{' to the power of -2' * (role == 'ivar')}; if the file's unit is "
            f"wrong, {states}"
        )
    one = u.Quantity(1.0, density)
    factor = one.to(u.uJy, u.spectral_density(wavelength * u.AA)).value
    return np.broadcast_to(factor, wavelength.shape)
