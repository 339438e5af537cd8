"""Which columns of a catalogue are photometry, parameters and redshifts, and in which units.

A role is the name by which `SedEmulatorData.to_batch` knows a column: ``flux_u``, ``flux_err_u``,
``mag_u``..., ``zred``, ``true_logmass``, ``parameter_logmass``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orrery.datamodules.band_names import (
    in_other_letters,
    near_columns,
    of_other_instruments,
    shortened,
    suggested_settings,
)
from orrery.datamodules.columns import CatalogueColumn, located
from orrery.datamodules.photometry import (
    FLUX_FIRST,
    NO_BAND,
    BandColumns,
    band_columns,
    column_of_band,
)
from orrery.physics.sps.filters import EAZY
from orrery.tables import Catalogue

if TYPE_CHECKING:
    from orrery.datamodules.sed_emulator import SedEmulatorData

SED_MAGNITUDES = (-10.0, 150.0)  # AB; galaxies are faint beyond the Lyman limit
TOLERANCE = 1e-6  # of the width of the box of parameters: rounding in single precision


def photometric_columns(data: "SedEmulatorData", names: Sequence[str]) -> dict[str, BandColumns]:
    """Band -> columns of its photometry, among the ``names`` of a catalogue.

    Raises ``ValueError`` if there is none of any band.
    """
    named = _eazy_columns(data, names) | data.columns
    columns = band_columns(names, named, list(data.bands), FLUX_FIRST)
    if not columns:
        raise ValueError(_no_photometry_message(data, names))
    return columns


def _eazy_columns(data: "SedEmulatorData", names: Sequence[str]) -> dict[str, str]:
    """Role -> column of fluxes F<number> with errors E<number>, by the numbers of filters.

    Of bands whose filter is ``eazy:<number>`` and which have no column of their own.
    """
    columns: dict[str, str] = {}
    for band, text in data.bands.items():
        number = text.removeprefix(EAZY)
        flux, error = f"F{number}", f"E{number}"
        own = {column_of_band(names, data.columns, kind, band) for kind in ("flux", "mag")}
        is_there = flux in names and error in names and own.isdisjoint(names)
        if number != text and is_there and NO_BAND not in own:
            columns |= {f"flux_{band}": flux, f"flux_err_{band}": error}
    if columns:
        first = next(iter(columns)).removeprefix("flux_")
        data.print_once(
            f"{data.label}: columns F<number> and E<number> are taken as fluxes in EAZY's "
            f"filters of these numbers, such as {columns[f'flux_{first}']} as {first}"
        )
    return columns


def _no_photometry_message(data: "SedEmulatorData", names: Sequence[str]) -> str:
    likely = suggested_settings(names, list(data.bands)) or (
        "data.columns.flux='{band}' data.columns.flux_err='{band}_err', for example"
    )
    return (
        f"{data.label} has no photometry of the bands {', '.join(data.bands)} under the names "
        f"'{data.columns.get('flux', 'flux_{band}')}' or "
        f"'{data.columns.get('mag', 'mag_{band}')}'. Its columns: {shortened(names)}. Name "
        f"yours: {likely}, or band by band data.columns.flux_u=F1 data.columns.flux_err_u=E1; "
        f"for magnitudes data.columns.mag and data.columns.mag_err"
    )


# --- synthetic galaxies -----------------------------------------------------------------------


def holds_synthetic_galaxies(
    data: "SedEmulatorData", columns: dict[str, BandColumns], names: Sequence[str]
) -> bool:
    """Whether a catalogue to predict has all parameters, and photometry without errors."""
    parameters = [_parameter_column(data, "parameter", name) for name in data.priors.names]
    errors = [of_band.error for of_band in columns.values()]
    return set(parameters) <= set(names) and set(errors).isdisjoint(names)


def roles_of_synthetic_galaxies(
    data: "SedEmulatorData", catalogue: Catalogue
) -> dict[str, CatalogueColumn]:
    """All parameters, within their box, and a magnitude in each band."""
    roles = {}
    priors = data.priors
    box = zip(priors.names, priors.low.tolist(), priors.high.tolist(), strict=True)
    for name, low, high in box:
        slack = TOLERANCE * (high - low)
        column = replace(
            data.declared["parameter_{parameter}"], low=low - slack, high=high + slack,
            meaning=f"value within the prior data.parameters.{name}",
        )  # fmt: skip
        roles[f"parameter_{name}"] = CatalogueColumn(
            column, _parameter_column(data, "parameter", name)
        )
    magnitude = replace(
        data.declared["mag_{band}"], special="", low=SED_MAGNITUDES[0], high=SED_MAGNITUDES[1],
        meaning="AB magnitude", typical=(10.0, 100.0),
        typical_hint="are they fluxes, or absolute magnitudes?",
    )  # fmt: skip
    for band in data.bands:
        name = column_of_band(catalogue.names, data.columns, "mag", band)
        roles[f"mag_{band}"] = CatalogueColumn(magnitude, name, catalogue.units.get(name))
    return roles


def _parameter_column(data: "SedEmulatorData", role: str, name: str) -> str:
    """The column of a parameter, by its own name or by the pattern of the family."""
    default = data.declared[f"{role}_{{parameter}}"].name
    pattern = str(data.columns.get(role, default))
    return str(data.columns.get(f"{role}_{name}", pattern.replace("{parameter}", name)))


# --- observed galaxies ------------------------------------------------------------------------


def roles_of_observed_galaxies(
    data: "SedEmulatorData", columns: dict[str, BandColumns], catalogue: Catalogue
) -> dict[str, CatalogueColumn]:
    """Photometry, and a known redshift, reddening and true values where the catalogue has them."""
    _refuse_shared_columns(data, columns)
    _warn_of_missing_bands(data, columns, catalogue.names)
    _warn_of_other_filters(data, columns)
    roles: dict[str, CatalogueColumn] = {}
    for band, of_band in columns.items():
        roles |= _roles_of_band(data, catalogue, band, of_band)
    if "zred_error" in data.columns and "zred" not in data.columns:
        raise ValueError("data.columns.zred_error is named, and data.columns.zred is not")
    for role in ("zred", "zred_error", "ebv"):
        if role in data.columns:
            roles[role] = located(data.declared, data.columns, catalogue, role)
    for name in (*data.priors.names, *data.more_truths):
        column = _parameter_column(data, "true", name)
        if column in catalogue.names:
            roles[f"true_{name}"] = CatalogueColumn(data.declared["true_{parameter}"], column)
        elif f"true_{name}" in data.columns:
            data.warn_once(f"{data.label} has no column '{column}': {name} is not compared")
    return roles


def _refuse_shared_columns(data: "SedEmulatorData", columns: dict[str, BandColumns]) -> None:
    """Raise if two bands are read from one column, such as z and Z."""
    bands: dict[str, str] = {}
    for band, of_band in columns.items():
        if other := bands.get(of_band.value):
            raise ValueError(
                f"{data.label}: the bands {other} and {band} would both be column "
                f"'{of_band.value}'; name the column of each, or data.columns."
                f"{of_band.kind}_{band}={NO_BAND}"
            )
        bands[of_band.value] = band


def _warn_of_missing_bands(
    data: "SedEmulatorData", columns: dict[str, BandColumns], names: Sequence[str]
) -> None:
    kind = next(iter(columns.values())).kind
    missing = [
        band
        for band in data.bands
        if band not in columns
        and NO_BAND not in (data.columns.get(f"mag_{band}"), data.columns.get(f"flux_{band}"))
    ]
    if not missing:
        return
    taken = [name for c in columns.values() for name in (c.value, c.error, c.limit)]
    expected = [column_of_band(names, data.columns, kind, band) for band in missing]
    near = near_columns(expected, names, taken)
    similar = [f"'{like}' to '{column}'" for like, column in near.items()]
    hint = f"; of similar names are {', '.join(similar)}" if similar else ""
    data.warn_once(
        f"{data.label} lacks the bands {', '.join(missing)} (column '{expected[0]}'...), which "
        f"are taken as not observed{hint}; data.columns.{kind}_{missing[0]}={NO_BAND} says so "
        f"without this message"
    )


def _warn_of_other_filters(data: "SedEmulatorData", columns: dict[str, BandColumns]) -> None:
    """Of columns that are, by their names, of another instrument or band than the filter."""
    names = {band: of_band.value for band, of_band in columns.items()}
    other = of_other_instruments(names, data.bands) | in_other_letters(names, data.columns)
    if not other:
        return
    text = ", ".join(f"'{name}' as {band} ({data.bands[band]})" for band, name in other.items())
    band, name = next(iter(other.items()))
    kind = columns[band].kind
    data.warn_once(
        f"{data.label}: columns that by their names may be of other filters than they are "
        f"taken for: {text}. If so, name them by the right bands, data.columns.{kind}_<band>="
        f"{name}, with their errors, and data.columns.{kind}_{band}={NO_BAND}"
    )


def _roles_of_band(
    data: "SedEmulatorData", catalogue: Catalogue, band: str, columns: BandColumns
) -> dict[str, CatalogueColumn]:
    """Its value, error and limit as ``flux_u``, ``flux_err_u``, or ``mag_u``..., with units.

    A unit that the user states comes before that of the file; an error has that of its value
    unless it has its own.
    """
    value_role, error_role = columns.kind, f"{columns.kind}_{columns.error_kind}"
    value_unit = _unit(data, catalogue, value_role, band, columns.value)
    error_unit = _unit(data, catalogue, error_role, band, columns.error)
    stated = {value_role, f"{value_role}_{band}"} & data.band_units.keys()
    own_error = {error_role, f"{error_role}_{band}"} & data.band_units.keys()
    if value_unit is not None and (error_unit is None or (stated and not own_error)):
        error_unit = value_unit**-2 if columns.error_kind == "ivar" else value_unit
    read = [(value_role, columns.value, value_unit), (error_role, columns.error, error_unit)]
    if columns.limit:
        unit = _unit(data, catalogue, "mag_lim", band, columns.limit)
        read.append(("mag_lim", columns.limit, unit))
    if columns.kind == "flux" and data.flux_zero_point is not None and value_unit is not None:
        raise ValueError(
            f"{data.label}: column '{columns.value}' has the unit {value_unit}, and "
            f"data.flux_zero_point={data.flux_zero_point:g} is for fluxes without one: leave "
            f"it out, or remove the unit from the file if it is wrong"
        )
    return {
        f"{role}_{band}": CatalogueColumn(data.declared[f"{role}_{{band}}"], name, unit)
        for role, name, unit in read
    }


def _unit(data: "SedEmulatorData", catalogue: Catalogue, role: str, band: str, name: str) -> Any:
    """The unit of column ``name``: what the user states, or else what the file has."""
    own = catalogue.units.get(name)
    stated = data.band_units.get(f"{role}_{band}", data.band_units.get(role))
    if stated is None:
        return own
    if own is not None and own != stated:
        data.warn_once(
            f"{data.label}: column '{name}' has the unit {own}, and is taken as {stated} by "
            f"data.units.{role}"
        )
    return stated
