"""Synthetic galaxies to train `models.sed_emulator` on, and photometry of galaxies to fit."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.band_names import (
    in_other_letters,
    near_columns,
    of_other_instruments,
    shortened,
    suggested_settings,
)
from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, located
from orrery.datamodules.photometry import (
    FLUX_FIRST,
    NO_BAND,
    NOT_OBSERVED,
    BandColumns,
    band_columns,
    column_of_band,
)
from orrery.datamodules.sed_emulator import simulation
from orrery.datamodules.sed_emulator.columns import DECLARED
from orrery.datamodules.sed_emulator.defaults import BANDS, PARAMETERS, by_label
from orrery.datamodules.sed_emulator.photometry import (
    Measured,
    detected_flux,
    from_fluxes,
    from_magnitudes,
    lacks_error,
    looks_like_limits,
    question_of_colours,
    question_of_unit,
)
from orrery.physics.galaxies.photometry import AB_ZERO_POINT, deredden_flux
from orrery.physics.sps.filters import (
    EAZY,
    Filter,
    galactic_extinction,
    load_filter,
    pivot_wavelength,
)
from orrery.physics.sps.libraries import load_population
from orrery.physics.sps.priors import HOW, Priors, read_priors
from orrery.physics.sps.synthesis import Synthesis, parameter_names
from orrery.tables import Catalogue

DEMONSTRATOR = "analytic (a demonstrator, not real spectra of stars)"
SED_MAGNITUDES = (-10.0, 150.0)  # AB; galaxies are faint beyond the Lyman limit
TOLERANCE = 1e-6  # of the width of the box of parameters: rounding in single precision
FAMILIES = ("mag", "mag_err", "mag_lim", "flux", "flux_err", "flux_ivar")


class SedEmulatorData(CatalogueData):
    """Synthetic galaxies, whose magnitudes are known, to learn from; observed ones, to fit.

    In training a batch holds ``parameters`` (batch, p), in the order of
    `physics.sps.synthesis.parameter_names`, and AB ``magnitudes`` (batch, bands). They are drawn by
    the generator, or read from a table whose columns have the parameters' names, and
    ``mag_{band}``.

    In prediction it holds, in the order of ``bands``, ``flux`` and ``flux_error`` (batch, bands),
    uJy, 0 and 1 where a band is not ``observed`` (bool); where it ``is_limit`` (bool), the flux is
    an upper limit and the error its standard deviation; ``in_catalogue`` (bool): whether the
    catalogue has the band, alike in all rows. ``zred`` (batch,) is a known redshift, NaN where it
    is free, with ``zred_error`` if that is named. ``true_parameters`` (batch, p), NaN where they
    are unknown, if the catalogue has any.

    Columns are located by the patterns ``flux`` and ``flux_err`` (or ``flux_ivar``), or ``mag`` and
    ``mag_err``, in ``columns``, in which ``{band}`` stands for a band; ``columns.flux_u=FLUX_U``
    names a single one, and ``none`` says that a band was not observed. Columns F<number> and
    E<number>, as catalogues for EAZY have them, are those of the band whose filter is
    ``eazy:<number>``. See `datamodules.sed_emulator.photometry` for limits and missing values.

    A table of synthetic galaxies may be predicted, too: to magnitudes without errors the noise of
    ``depth`` is added.

    Args:
        bands: label -> filter, see `physics.sps.filters.load_filter`, or a list of filters, whose
            names are the labels; null: the 20 of `BANDS`.
        population: "analytic", a demonstrator, "bc03_miles", or the path of a file: see
            `physics.sps.libraries.load_population`.
        parameters: name -> prior: [uniform, low, high], [normal, low, high, mean, sigma] or
            [student_t, low, high, centre, scale]. Names that are left out have those of
            `PARAMETERS`; those of gas are used with ``nebular``.
        nebular: whether gas emits, which adds its two parameters.
        training_set: where training parameters are drawn from: "prior", "uniform", in the box, or
            "mixture" of both.
        n_train: synthetic galaxies of training and validation.
        n_test: mock galaxies, drawn from the prior.
        n_exact: galaxies of the prior on which the emulator's errors are measured.
        depth: AB magnitude of a source of 5 sigma, of mock galaxies: one, or by band.
        error_scale: factor by which the errors of a catalogue are multiplied, for those that are
            known to be too small: one, or by band.
        error_floor: relative, added to errors in quadrature, for what calibration and models are
            wrong by: one, or by band. It is in the noise of mock galaxies as well.
        limit_sigma: how many sigma upper limits are at, where errors are negative or equal the
            flux, or magnitudes are 99; null: negative errors are refused, and the limiting
            magnitude of 99 is the error of a flux of 0.
        flux_zero_point: AB magnitude of a flux of 1, of columns without a unit: 25 in catalogues
            for EAZY, 23.9 for uJy.
        zero_points: band -> mag to add, to reach AB.
        extinction: band -> A_b / E(B-V) of the Milky Way; null: that of the filters.
        catalogue: settings of `CatalogueData`.
    """

    decided_by_training: ClassVar = frozenset(("bands", "population", "parameters", "nebular"))
    declared: ClassVar = DECLARED
    default_bands: ClassVar[Mapping[str, str]] = BANDS
    default_parameters: ClassVar[Mapping[str, Sequence[Any]]] = PARAMETERS
    more_truths: ClassVar[Sequence[str]] = ()  # beyond the parameters, in columns true_{...}

    def __init__(
        self,
        bands: Mapping[str, str] | Sequence[str] | None = None,
        population: str = "analytic",
        parameters: Mapping[str, Any] = PARAMETERS,
        nebular: bool = False,
        training_set: str = "mixture",
        n_train: int = 60_000,
        n_test: int = 2_000,
        n_exact: int = 20_000,
        depth: float | Mapping[str, float] = 27.0,
        error_scale: float | Mapping[str, float] = 1.0,
        error_floor: float | Mapping[str, float] = 0.02,
        limit_sigma: float | None = None,
        flux_zero_point: float | None = None,
        zero_points: Mapping[str, float] | None = None,
        extinction: Mapping[str, float] | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.bands = by_label(bands or self.default_bands)
        self.population, self.nebular = population, nebular
        if unknown := [name for name in parameters if name not in PARAMETERS]:
            raise ValueError(
                f"data.parameters has no {', '.join(unknown)}; it has {', '.join(PARAMETERS)}"
            )
        given = {name: prior for name, prior in parameters.items() if prior is not None}
        every = {**self.default_parameters, **given}
        names = parameter_names(nebular)
        self.parameters = {name: list(every[name]) for name in names}
        self.priors: Priors = read_priors(self.parameters, names)
        if training_set not in HOW:
            raise ValueError(f"data.training_set={training_set}; expected one of {', '.join(HOW)}")
        self.training_set = training_set
        self.n_train, self.n_test, self.n_exact = n_train, n_test, n_exact
        self.depth = self._by_band("depth", depth)
        self.error_scale = self._by_band("error_scale", error_scale, 1.0)
        if not (self.error_scale > 0).all():
            raise ValueError(f"data.error_scale={error_scale}; expected factors above 0")
        self.error_floor = self._by_band("error_floor", error_floor, 0.0)
        if (self.error_floor < 0).any():
            raise ValueError(f"data.error_floor={error_floor}; expected relative errors, 0 or more")
        if limit_sigma is not None and not limit_sigma > 0:
            raise ValueError(f"data.limit_sigma={limit_sigma}; expected a number above 0, or null")
        self.limit_sigma, self.flux_zero_point = limit_sigma, flux_zero_point
        self.zero_points = self._by_band("zero_points", zero_points or {}, 0.0)
        self.extinction = dict(extinction or {})
        if self.extinction:
            self._by_band("extinction", self.extinction)
        # of families of columns, which `_roles_of_band` resolves band by band
        self.band_units = {role: u for role, u in self.units.items() if role.startswith(FAMILIES)}
        self.units = {role: u for role, u in self.units.items() if role not in self.band_units}
        self.band_columns: dict[str, BandColumns] = {}  # of the catalogue that is read
        self._refuse_unknown_bands()

    def _by_band(
        self, setting: str, value: float | Mapping[str, float], default: float | None = None
    ) -> np.ndarray:
        """A setting (bands,), of one number for all bands, or by band."""
        if not isinstance(value, Mapping):
            return np.full(len(self.bands), float(value))
        for band in value:
            self._refuse_unknown_band(f"{setting}.{band}", band)
        missing = [band for band in self.bands if value.get(band, default) is None]
        if missing:
            raise ValueError(
                f"data.{setting} has no value for {', '.join(missing)}; expected one of each band"
            )
        return np.array([float(value.get(band, default)) for band in self.bands])  # type: ignore[arg-type]

    def _refuse_unknown_band(self, setting: str, band: str) -> None:
        if band not in self.bands:
            raise ValueError(
                f"data.{setting}: there is no band '{band}'; the bands are {', '.join(self.bands)}"
            )

    def _refuse_unknown_bands(self) -> None:
        """Raise for a column or a unit of a band, or of a parameter, that there is not."""
        for setting, roles in (("columns", self.columns), ("units", self.band_units)):
            for role in roles:
                match = re.fullmatch(r"(?:mag|flux)_(?:(?:err|lim|ivar)_)?(.+)", role)
                if match and role not in FAMILIES:
                    self._refuse_unknown_band(f"{setting}.{role}", match[1])
        for role in self.columns:
            match = re.fullmatch(r"(?:true|parameter)_(.+)", role)
            if match and match[1] not in (*self.priors.names, *self.more_truths):
                raise ValueError(
                    f"data.columns.{role}: there is no parameter '{match[1]}'; the parameters are "
                    f"{', '.join(self.priors.names)}"
                )

    # --- the generator ------------------------------------------------------------------------

    @functools.cached_property
    def filters(self) -> list[Filter]:
        """In the order of ``bands``."""
        return [load_filter(text) for text in self.bands.values()]

    @functools.cached_property
    def synthesis(self) -> Synthesis:
        """The exact generator of these bands."""
        population = load_population(self.population)
        z_max = float(self.priors.high[self.priors.names.index("zred")])
        return Synthesis(population, self.filters, z_max, self.nebular)

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """Synthetic galaxies to train on, or a catalogue of mock galaxies with true parameters."""
        names, bands = self.priors.names, list(self.bands)
        n, how = (self.n_train, self.training_set) if split == "fit" else (self.n_test, "prior")
        drawn = simulation.draw(self.synthesis, self.priors, n, self.seed, split, how)
        if split == "fit":
            return simulation.table_of_seds(*drawn, names, bands)
        parameters, magnitudes = (x.numpy() for x in drawn)
        flux, error = self._observe(magnitudes)
        table = {f"true_{name}": column for name, column in zip(names, parameters.T, strict=True)}
        for i, band in enumerate(bands):
            table |= {f"flux_{band}": flux[:, i], f"flux_err_{band}": error[:, i]}
        return table

    def exact_magnitudes(
        self, n: int | None = None, seed: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Parameters (n, p) and exact AB magnitudes (n, bands) of others than the training rows.

        Drawn from the prior; ``n`` and ``seed`` are those of the settings unless given. None where
        the data are not the generator's.
        """
        if not self.is_simulation:
            return None
        n, seed = self.n_exact if n is None else n, self.seed if seed is None else seed
        return simulation.draw(self.synthesis, self.priors, n, seed, "exact", "prior")

    def _observe(self, magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return simulation.observe(magnitudes, self.depth, self.error_floor, self.seed)

    # --- columns ------------------------------------------------------------------------------

    def columns_of(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        """With -99 and its like, in the catalogue's own unit, as unknown in prediction."""
        roles = super().columns_of(catalogue, training)
        return roles if training else {r: _with_sentinels(r, c) for r, c in roles.items()}

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        if training:
            return self._roles_of_seds(catalogue)
        names = catalogue.names
        named = self._columns_of_eazy(names) | self.columns
        self.band_columns = band_columns(names, named, list(self.bands), FLUX_FIRST)
        if not self.band_columns:
            raise ValueError(self._no_photometry_message(names))
        if self._holds_seds(names):
            self.warn_once(
                f"{self.label} holds magnitudes without errors and all parameters: they are taken "
                f"as synthetic galaxies, and noise by data.depth and data.error_floor is added"
            )
            return self._roles_of_seds(catalogue)
        self._refuse_shared_columns()
        self._warn_missing_bands(names)
        self._warn_of_other_filters()
        roles: dict[str, CatalogueColumn] = {}
        for band in self.band_columns:
            roles |= self._roles_of_band(catalogue, band)
        self._ask_about_fluxes(catalogue, roles)
        if "zred_error" in self.columns and "zred" not in self.columns:
            raise ValueError("data.columns.zred_error is named, and data.columns.zred is not")
        for role in ("zred", "zred_error", "ebv"):
            if role in self.columns:
                roles[role] = located(self.declared, self.columns, catalogue, role)
        for name in (*self.priors.names, *self.more_truths):
            column = self._of_parameter("true", name)
            if column in names:
                family = self.declared["true_{parameter}"]
                roles[f"true_{name}"] = CatalogueColumn(family, column)
            elif f"true_{name}" in self.columns:
                self.warn_once(f"{self.label} has no column '{column}': {name} is not compared")
        return roles

    def _columns_of_eazy(self, names: Sequence[str]) -> dict[str, str]:
        """Role -> column of fluxes F<number> with errors E<number>, by the numbers of filters.

        Of bands whose filter is ``eazy:<number>`` and which have no column of their own.
        """
        columns: dict[str, str] = {}
        for band, text in self.bands.items():
            number = text.removeprefix(EAZY)
            flux, error = f"F{number}", f"E{number}"
            own = {column_of_band(names, self.columns, kind, band) for kind in ("flux", "mag")}
            is_there = flux in names and error in names and own.isdisjoint(names)
            if number != text and is_there and NO_BAND not in own:
                columns |= {f"flux_{band}": flux, f"flux_err_{band}": error}
        if columns:
            first = next(iter(columns)).removeprefix("flux_")
            self.print_once(
                f"{self.label}: columns F<number> and E<number> are taken as fluxes in EAZY's "
                f"filters of these numbers, such as {columns[f'flux_{first}']} as {first}"
            )
        return columns

    def _of_parameter(self, role: str, name: str) -> str:
        """The column of a parameter, by its own name or by the pattern of the family."""
        default = self.declared[f"{role}_{{parameter}}"].name
        pattern = str(self.columns.get(role, default))
        return str(self.columns.get(f"{role}_{name}", pattern.replace("{parameter}", name)))

    def _roles_of_seds(self, catalogue: Catalogue) -> dict[str, CatalogueColumn]:
        """Of synthetic galaxies: all parameters, within their box, and a magnitude in each band."""
        roles = {}
        box = zip(self.priors.names, self.priors.low.tolist(), self.priors.high.tolist())  # noqa: B905
        for name, low, high in box:
            slack = TOLERANCE * (high - low)
            column = replace(
                self.declared["parameter_{parameter}"], low=low - slack, high=high + slack,
                meaning=f"value within the prior data.parameters.{name}",
            )  # fmt: skip
            roles[f"parameter_{name}"] = CatalogueColumn(
                column, self._of_parameter("parameter", name)
            )
        magnitude = replace(
            self.declared["mag_{band}"], special="", low=SED_MAGNITUDES[0], high=SED_MAGNITUDES[1],
            meaning="AB magnitude", typical=(10.0, 100.0),
            typical_hint="are they fluxes, or absolute magnitudes?",
        )  # fmt: skip
        for band in self.bands:
            name = column_of_band(catalogue.names, self.columns, "mag", band)
            roles[f"mag_{band}"] = CatalogueColumn(magnitude, name, catalogue.units.get(name))
        return roles

    def _holds_seds(self, names: Sequence[str]) -> bool:
        """Whether a catalogue to predict holds synthetic galaxies: parameters, and no errors."""
        parameters = [self._of_parameter("parameter", name) for name in self.priors.names]
        errors = [columns.error for columns in self.band_columns.values()]
        return set(parameters) <= set(names) and set(errors).isdisjoint(names)

    def _roles_of_band(self, catalogue: Catalogue, band: str) -> dict[str, CatalogueColumn]:
        """Its value, error and limit as ``flux_u``, ``flux_err_u``, or ``mag_u``..., with units.

        A unit that the user states comes before that of the file; an error has that of its value
        unless it has its own.
        """
        columns = self.band_columns[band]
        value_role, error_role = columns.kind, f"{columns.kind}_{columns.error_kind}"
        value_unit = self._unit(catalogue, value_role, band, columns.value)
        error_unit = self._unit(catalogue, error_role, band, columns.error)
        stated = {value_role, f"{value_role}_{band}"} & self.band_units.keys()
        own_error = {error_role, f"{error_role}_{band}"} & self.band_units.keys()
        if value_unit is not None and (error_unit is None or (stated and not own_error)):
            error_unit = value_unit**-2 if columns.error_kind == "ivar" else value_unit
        roles = {
            f"{value_role}_{band}": CatalogueColumn(
                self.declared[f"{value_role}_{{band}}"], columns.value, value_unit
            ),
            f"{error_role}_{band}": CatalogueColumn(
                self.declared[f"{error_role}_{{band}}"], columns.error, error_unit
            ),
        }
        if columns.limit:
            unit = self._unit(catalogue, "mag_lim", band, columns.limit)
            family = self.declared["mag_lim_{band}"]
            roles[f"mag_lim_{band}"] = CatalogueColumn(family, columns.limit, unit)
        if columns.kind == "flux" and self.flux_zero_point is not None and value_unit is not None:
            raise ValueError(
                f"{self.label}: column '{columns.value}' has the unit {value_unit}, and "
                f"data.flux_zero_point={self.flux_zero_point:g} is for fluxes without one: leave "
                f"it out, or remove the unit from the file if it is wrong"
            )
        return roles

    def _unit(self, catalogue: Catalogue, role: str, band: str, name: str) -> Any:
        own = catalogue.units.get(name)
        stated = self.band_units.get(f"{role}_{band}", self.band_units.get(role))
        if stated is None:
            return own
        if own is not None and own != stated:
            self.warn_once(
                f"{self.label}: column '{name}' has the unit {own}, and is taken as {stated} by "
                f"data.units.{role}"
            )
        return stated

    # --- what is asked about columns ----------------------------------------------------------

    def _no_photometry_message(self, names: Sequence[str]) -> str:
        likely = suggested_settings(names, list(self.bands)) or (
            "data.columns.flux='{band}' data.columns.flux_err='{band}_err', for example"
        )
        return (
            f"{self.label} has no photometry of the bands {', '.join(self.bands)} under the names "
            f"'{self.columns.get('flux', 'flux_{band}')}' or "
            f"'{self.columns.get('mag', 'mag_{band}')}'. Its columns: {shortened(names)}. Name "
            f"yours: {likely}, or band by band data.columns.flux_u=F1 data.columns.flux_err_u=E1; "
            f"for magnitudes data.columns.mag and data.columns.mag_err"
        )

    def _refuse_shared_columns(self) -> None:
        """Raise if two bands are read from one column, such as z and Z."""
        bands: dict[str, str] = {}
        for band, columns in self.band_columns.items():
            if other := bands.get(columns.value):
                raise ValueError(
                    f"{self.label}: the bands {other} and {band} would both be column "
                    f"'{columns.value}'; name the column of each, or data.columns."
                    f"{columns.kind}_{band}={NO_BAND}"
                )
            bands[columns.value] = band

    def _warn_missing_bands(self, names: Sequence[str]) -> None:
        kind = next(iter(self.band_columns.values())).kind
        missing = [
            band
            for band in self.bands
            if band not in self.band_columns
            and NO_BAND not in (self.columns.get(f"mag_{band}"), self.columns.get(f"flux_{band}"))
        ]
        if not missing:
            return
        taken = [name for c in self.band_columns.values() for name in (c.value, c.error, c.limit)]
        columns = [column_of_band(names, self.columns, kind, band) for band in missing]
        near = near_columns(columns, names, taken)
        similar = [f"'{like}' to '{column}'" for like, column in near.items()]
        hint = f"; of similar names are {', '.join(similar)}" if similar else ""
        self.warn_once(
            f"{self.label} lacks the bands {', '.join(missing)} (column '{columns[0]}'...), which "
            f"are taken as not observed{hint}; data.columns.{kind}_{missing[0]}={NO_BAND} says so "
            f"without this message"
        )

    def _warn_of_other_filters(self) -> None:
        """Of columns that are, by their names, of another instrument or band than the filter."""
        columns = {band: c.value for band, c in self.band_columns.items()}
        other = of_other_instruments(columns, self.bands) | in_other_letters(columns, self.columns)
        if not other:
            return
        text = ", ".join(f"'{name}' as {band} ({self.bands[band]})" for band, name in other.items())
        band, name = next(iter(other.items()))
        kind = self.band_columns[band].kind
        self.warn_once(
            f"{self.label}: columns that by their names may be of other filters than they are "
            f"taken for: {text}. If so, name them by the right bands, such as data.columns.{kind}_"
            f"vista_Y={name}, with their errors, and data.columns.{kind}_{band}={NO_BAND}"
        )

    def _ask_about_fluxes(self, catalogue: Catalogue, roles: Mapping[str, CatalogueColumn]) -> None:
        """By the first rows: raise where a unit is doubtful, warn of what looks like limits."""
        if self.is_simulation:
            return
        read = {role: _with_sentinels(role, replace(c, sentinels=self.sentinels))
                for role, c in roles.items()}  # fmt: skip
        _, cells = next(self._read(catalogue, read, 0, len(catalogue), None))
        try:
            values = {role: column.values(cells[role], False) for role, column in read.items()}
        except ValueError:  # which `to_batch` raises again, with the row
            return
        if self.error_floor.any():
            floors = ", ".join(f"{floor:.3g}" for floor in np.unique(self.error_floor))
            self.print_once(
                f"{self.label}: errors are taken with {floors} of the flux in quadrature, by "
                f"data.error_floor"
            )
        unitless = []
        fluxes: dict[str, np.ndarray] = {}
        for band, columns in self.band_columns.items():
            role = f"{columns.kind}_{band}"
            value, error = values[role], values[f"{columns.kind}_{columns.error_kind}_{band}"]
            self._warn_of_limits(columns, value, error)
            if roles[role].unit is not None or self.flux_zero_point is not None:
                continue
            if question := question_of_unit(columns, value, error):
                raise ValueError(f"{self.label}: {question}")
            if columns.kind == "flux":
                unitless.append(columns.value)
                fluxes[band] = detected_flux(columns, value, error)
        if question := question_of_colours(self._by_wavelength(fluxes)):
            raise ValueError(f"{self.label}: {question}")
        if unitless:
            self.warn_once(
                f"{self.label}: column {unitless[0]} and {len(unitless) - 1} more have no unit: "
                f"taken as uJy. data.flux_zero_point=25 is for catalogues of EAZY, 23.9 says that "
                f"they are uJy, and data.units.flux=mJy states another unit"
            )

    def _by_wavelength(self, fluxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Column -> fluxes, of bands from blue to red; none where a filter's file is not here."""
        try:
            pivot = {band: pivot_wavelength(load_filter(self.bands[band])) for band in fluxes}
        except (ValueError, OSError):
            return {}
        return {
            self.band_columns[b].value: fluxes[b] for b in sorted(fluxes, key=pivot.__getitem__)
        }

    def _say_assumed_units(self, roles: Mapping[str, CatalogueColumn]) -> None:
        """Without photometry, of which `_ask_about_fluxes` speaks."""
        others = {role: c for role, c in roles.items() if not role.startswith(FAMILIES)}
        super()._say_assumed_units(others)

    def _warn_of_limits(self, columns: BandColumns, value: np.ndarray, error: np.ndarray) -> None:
        if self.limit_sigma is not None or (columns.kind, columns.error_kind) != ("flux", "err"):
            return
        if share := looks_like_limits(value, error):
            self.warn_once(
                f"{self.label}: '{columns.value}' equals its error in {share:.0%} of the rows, as "
                f"upper limits are written; they are taken as measured. If they are limits of 3 "
                f"sigma, set data.limit_sigma=3"
            )

    # --- values -------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        names = self.priors.names
        if f"parameter_{names[0]}" not in columns:
            return self._photometry(columns)
        low, high = self.priors.low.numpy(), self.priors.high.numpy()
        given = np.stack([columns[f"parameter_{name}"] for name in names], 1)
        parameters = torch.from_numpy(given.astype(np.float32).clip(low, high))
        magnitudes = np.stack([columns[f"mag_{band}"] for band in self.bands], 1)
        magnitudes = magnitudes + self.zero_points
        if training:
            return {
                "parameters": parameters,
                "magnitudes": torch.from_numpy(magnitudes).float(),
            }
        flux, error = self._observe(magnitudes)
        batch = self._batch_of(Measured(flux, error, np.zeros(flux.shape, bool)))
        has = torch.from_numpy(np.isfinite(self.depth)).expand(len(flux), -1)
        return batch | {"true_parameters": parameters, "in_catalogue": has}

    def _photometry(self, columns: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """A batch to predict, of columns by role."""
        n = len(next(iter(columns.values())))
        parts = [self._band(band, columns, n) for band in self.bands]
        measured = Measured(*(np.stack(part, 1) for part in zip(*parts, strict=True)))
        measured = measured._replace(error=measured.error * self.error_scale)
        if "ebv" in columns:
            ebv, extinction = torch.from_numpy(columns["ebv"]), self._extinction()
            flux, error = (
                deredden_flux(torch.from_numpy(values), ebv, extinction).numpy()
                for values in (measured.flux, measured.error)
            )
            measured = measured._replace(flux=flux, error=error)
        batch = self._batch_of(measured)
        has = torch.tensor([band in self.band_columns for band in self.bands])
        batch["in_catalogue"] = has.expand(n, -1)
        unknown = np.full(n, np.nan)
        if "zred" in columns:
            batch["zred"] = torch.from_numpy(columns["zred"]).float()
        if "zred_error" in columns:
            batch["zred_error"] = torch.from_numpy(columns["zred_error"]).float().nan_to_num(0.0)
        truth = [columns.get(f"true_{name}", unknown) for name in self.priors.names]
        if any(f"true_{name}" in columns for name in self.priors.names):
            batch["true_parameters"] = torch.from_numpy(np.stack(truth, 1)).float()
        return batch

    def _batch_of(self, measured: Measured) -> dict[str, torch.Tensor]:
        """With the errors' floor, and without NaN."""
        observed = np.isfinite(measured.flux)
        floor = np.where(measured.is_limit, 0.0, self.error_floor * np.abs(measured.flux))
        error = np.hypot(measured.error, floor)
        return {
            "flux": torch.from_numpy(np.where(observed, measured.flux, 0.0)).float(),
            "flux_error": torch.from_numpy(np.where(observed, error, 1.0)).float(),
            "observed": torch.from_numpy(observed),
            "is_limit": torch.from_numpy(measured.is_limit & observed),
            "zred": torch.full((len(observed),), torch.nan),
        }

    def _band(self, band: str, columns: Mapping[str, np.ndarray], n: int) -> Measured:
        """Flux and error, uJy, NaN where not observed, of one band."""
        if band not in self.band_columns:
            return Measured(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, bool))
        names = self.band_columns[band]
        zero_point = float(self.zero_points[list(self.bands).index(band)])
        value = columns[f"{names.kind}_{band}"]
        error = columns[f"{names.kind}_{names.error_kind}_{band}"]
        if lacks_error(names.kind, value, error).any():
            self.warn_once(
                f"{self.label}: '{names.error}' is blank where '{names.value}' has a value; the "
                f"band is taken as not observed there"
            )
        if names.kind == "mag":
            limit = columns.get(f"mag_lim_{band}", np.nan)
            return from_magnitudes(names, value, error, zero_point, limit, self.limit_sigma)
        if self.flux_zero_point is not None:
            zero_point += self.flux_zero_point - AB_ZERO_POINT
        return from_fluxes(names, value, error, zero_point, self.limit_sigma)

    def _extinction(self) -> dict[str, float]:
        """A_b / E(B-V) by band."""
        if not self.extinction:
            values = galactic_extinction(self.filters)
            self.extinction = dict(zip(self.bands, values.tolist(), strict=True))
        return {band: float(self.extinction[band]) for band in self.bands}

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit" and not self.rows:
            _ = self.filters  # an unknown one is refused before anything is read
            super().setup(stage)

    def inferred_settings(self) -> dict[str, Any]:
        """With the extinction of the filters, whose files predictions need not have."""
        return {
            "bands": self.bands,
            "parameters": self.parameters,
            "extinction": self._extinction(),
        }

    def model_arguments(self) -> dict[str, Any]:
        """With what the populations have, unless a table was learned from."""
        arguments = {
            "bands": self.bands,
            "wavelengths": [pivot_wavelength(band) for band in self.filters],
            "parameters": self.parameters,
            "nebular": self.nebular,
            "population": None,
        }
        if not self.is_simulation:
            return arguments
        has = self.synthesis.population
        lines = zip(has.line_names, has.line_wavelength.tolist(), strict=True)
        return arguments | {
            "population": self.population,
            "metallicities": has.metallicity.tolist(),
            "ionisations": has.log_u.tolist() if self.nebular else [],
            "lines": dict(lines) if self.nebular else {},
        }

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        population = Path(self.population).name
        return super().provenance() | {
            "population": DEMONSTRATOR if population == "analytic" else population,
            "training_set": self.training_set,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }


def _with_sentinels(role: str, column: CatalogueColumn) -> CatalogueColumn:
    """With -99 and its like as unknown, in photometry, true parameters and redshifts."""
    if role in ("ebv",) or role.startswith("parameter_"):
        return column
    return replace(column, sentinels=(*column.sentinels, *NOT_OBSERVED))
