"""Photometry and redshift labels for `models.zephyr`: a catalogue, or the embedded simulation."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.band_names import shortened, suggested_settings
from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.photometry import (
    NO_BAND,
    BandColumns,
    band_columns,
    flux_from_flux,
    flux_from_mag,
    is_limit,
    near_column,
)
from orrery.datamodules.values import refuse
from orrery.datamodules.zephyr.augmentation import augmented
from orrery.datamodules.zephyr.simulation import (
    simulated_posterior,
    simulated_table,
    true_label_noise,
)
from orrery.physics.galaxies.galaxy_colours import Z_MAX
from orrery.physics.galaxies.photometry import EXTINCTION_LSST, EXTINCTION_SDSS, deredden_flux
from orrery.physics.galaxies.redshift_labels import SOURCES
from orrery.tables import Catalogue

# Labels beyond 1.5 times the 99.5% quantile stretch the grid.
USUAL_LABELS, MAX_STRETCH = 0.995, 1.5
NO_NAME = ("", "nan", "None")  # of a source

MAGNITUDE_VALUES = (
    "AB magnitude; NaN or -99 (-99.9, -99.99, -999): not observed; 99 (99.9, 99.99) or inf: not "
    "detected"
)
FLUX_VALUES = "any finite number; NaN: not observed"
ERROR_VALUES = "above 0 where the band is observed"


def _band_column(kind: str, unit: str, meaning: str, values: str) -> Column:
    name = kind + "_{band}"
    return Column(name, unit, meaning, training="chosen", special=values)


class ZephyrData(CatalogueData):
    """Fluxes in uJy (AB) with errors, and redshift labels from one or several sources.

    A batch holds ``flux`` and ``flux_err`` (batch, bands), uJy, NaN where a band was not observed;
    ``detected`` (batch, bands), 0 or 1: a magnitude that is observed but not detected has flux 0
    and the flux of its limit as error. In training ``redshift`` (batch,), ``source`` (batch,) int64
    and ``label_error`` (batch,), 0 where the catalogue names no such column; in prediction
    ``redshift`` where the catalogue has one, NaN for rows without a clean one.

    Columns are located by the patterns ``mag`` and ``mag_err`` (or ``flux``, ``flux_err``) in
    ``columns``, in which ``{band}`` stands for a band; ``columns.mag_u=UMAG`` names a single one.
    For NaN, 99 and -99 see `datamodules.photometry`. ``columns.ebv``, E(B-V) in mag, corrects for
    Galactic extinction.

    In training each object is made brighter or fainter at random, noise is added and bands are
    dropped, so that the model learns shallower and incomplete photometry too.

    Args:
        bands: names; None: all that are located, bluest first.
        sources: names of the sources of labels; None: the values of ``columns.source``.
        clean_source: the source whose labels are right to within their own errors.
        zero_points: band -> mag to add, to reach AB.
        limits: band -> limiting magnitude (1 sigma) of non-detections that give none.
        extinction: band -> A_b / E(B-V); by default the LSST's or, for ugriz alone, SDSS's of
            Schlafly & Finkbeiner (2011).
        noise: noise added in training is up to this times an object's own error.
        noise_share: fraction of the training objects to which it is added.
        drop_share: fraction of the training objects of which bands are dropped.
        z_max: end of the redshift grid; None: from the labels.
        n_train: galaxies of the simulation, some of which get no label.
        n_test: test galaxies of the simulation.
        catalogue: settings of `CatalogueData`.
    """

    decided_by_training: ClassVar = frozenset(("bands", "sources", "z_max"))
    declared: ClassVar = {
        "redshift": Column(
            "redshift", None, "redshift", 0, 20, "[)", truth=True, prediction="chosen"
        ),
        "source": Column(
            "source", None, "source of the redshift label", truth=True,
            training="named", prediction="chosen", kind="text",
        ),
        "label_error": Column(
            "label_error", None, "error of the redshift", 0, 20, "[)", truth=True,
            training="named", prediction="chosen",
        ),
        "ebv": Column(
            "ebv", "mag", "E(B - V), which corrects for Galactic extinction", 0, 20, "[)",
            training="named",
        ),
        "weight": Column(
            "weight", None, "weight of an object in the stacked n(z)", 0, training="unused",
            prediction="named",
        ),
        "mag_{band}": _band_column(
            "mag", "mag", "magnitude; the role mag is the pattern of all bands", MAGNITUDE_VALUES
        ),
        "mag_err_{band}": _band_column(
            "mag_err", "mag", "its error; of a non-detection the limiting magnitude", ERROR_VALUES
        ),
        "flux_{band}": _band_column(
            "flux", "uJy", "flux, where there are no magnitudes", FLUX_VALUES
        ),
        "flux_err_{band}": _band_column("flux_err", "uJy", "its error", ERROR_VALUES),
        "flux_ivar_{band}": _band_column(
            "flux_ivar", "1 / uJy2", "its inverse variance, in place of the error",
            "0 where the band is not observed, or above",
        ),
        "mag_lim_{band}": _band_column(
            "mag_lim", "mag", "limiting magnitude (1 sigma) of a non-detection; optional",
            "any; used between 10 and 90",
        ),
    }  # fmt: skip

    def __init__(
        self,
        bands: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        clean_source: str | int | None = None,
        zero_points: Mapping[str, float] | None = None,
        limits: Mapping[str, float] | None = None,
        extinction: Mapping[str, float] | None = None,
        noise: float = 2.0,
        noise_share: float = 1.0,
        drop_share: float = 0.05,
        z_max: float | None = None,
        n_train: int = 20_000,
        n_test: int = 5_000,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.bands = list(bands or [])
        self.sources = [str(source) for source in sources or []]
        self.clean_source = None if clean_source is None else str(clean_source)
        self.zero_points, self.limits = dict(zero_points or {}), dict(limits or {})
        self.extinction = dict(extinction or {})
        self.band_columns: dict[str, BandColumns] = {}  # by band, of the catalogue that is read
        self.noise, self.noise_share, self.drop_share = noise, noise_share, drop_share
        self.z_max = z_max
        self.n_train, self.n_test = n_train, n_test
        if self.path is None:  # of the simulation
            self.columns["source"] = "source"
            self.clean_source = self.clean_source or SOURCES[0]

    # --- columns ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = catalogue.names
        self.band_columns = band_columns(names, self.columns, self.bands)
        if training and not self.bands:
            self.bands = list(self.band_columns)
        self._refuse_unknown_bands()
        if not self.band_columns:
            raise ValueError(self._no_photometry_message(names))
        roles: dict[str, CatalogueColumn] = {}
        for band in self.bands:
            if band not in self.band_columns:
                if NO_BAND not in self._named_columns(band):
                    self._warn_missing_band(band, names)
                continue
            roles |= self._roles_of_band(catalogue, band)
        self._warn_unitless_fluxes(catalogue)
        redshift = located(self.declared, self.columns, catalogue, "redshift")
        if training or redshift.name in names:
            roles["redshift"] = redshift
        elif redshift.name != "redshift":
            self.warn_once(f"{self.label} has no column '{redshift.name}': nothing is scored")
        for role in ("source", "label_error", "ebv"):
            column = located(self.declared, self.columns, catalogue, role)
            if role in self.columns and (training or role == "ebv" or column.name in names):
                roles[role] = column
        if not training and "weight" in self.columns:
            roles["weight"] = located(self.declared, self.columns, catalogue, "weight")
        if not training and "redshift" in roles and not self._has_truth(catalogue, roles):
            source = f" of the source {self.clean_source}" if "source" in roles else ""
            self.warn_once(
                f"{self.label}: column '{redshift.name}' holds no redshift of 0 to 20{source}: "
                f"nothing can be scored"
            )
            del roles["redshift"]
        return roles

    def _roles_of_band(self, catalogue: Catalogue, band: str) -> dict[str, CatalogueColumn]:
        """Its value, error and limit as ``mag_u``, ``mag_err_u`` and ``mag_lim_u``."""
        columns, units = self.band_columns[band], catalogue.units
        kind = columns.kind
        names = {kind: columns.value, f"{kind}_{columns.error_kind}": columns.error}
        if columns.limit:
            names["mag_lim"] = columns.limit
        roles = {}
        for role, name in names.items():
            family, unit = self.declared[f"{role}_{{band}}"], units.get(name)
            if columns.error_kind == "ivar" and name == columns.error:
                of_flux = units.get(columns.value)
                unit = unit or (of_flux and of_flux**-2)
            elif role == "flux_err":
                unit = unit or units.get(columns.value)
            roles[f"{role}_{band}"] = CatalogueColumn(family, name, unit)
        return roles

    def _named_columns(self, band: str) -> list[str]:
        return [str(self.columns.get(f"{kind}_{band}")) for kind in ("mag", "flux")]

    def _refuse_unknown_bands(self) -> None:
        """Raise for a setting or a column of a band that the model does not have."""
        settings = {
            "zero_points": self.zero_points, "limits": self.limits, "extinction": self.extinction,
        }  # fmt: skip
        named = {f"{s}.{band}": band for s, values in settings.items() for band in values}
        for role in self.columns:
            match = re.fullmatch(r"(?:mag|flux)_(?:(?:err|lim|ivar)_)?(.+)", role)
            if match and match[1] not in ("err", "lim", "ivar"):
                named[f"columns.{role}"] = match[1]
        known = {*self.bands, *(band.split("_")[0] for band in self.bands)}
        for setting, band in named.items():
            if band not in known:
                raise ValueError(
                    f"data.{setting}: there is no band '{band}'; the bands are "
                    f"{', '.join(self.bands)}"
                )

    def _has_truth(self, catalogue: Catalogue, roles: Mapping[str, CatalogueColumn]) -> bool:
        """Whether any row has a redshift to score against; reads up to the first that has."""
        needed = {role: roles[role] for role in ("redshift", "source") if role in roles}
        for _, cells in self._read(catalogue, needed, 0, len(catalogue), None):
            columns = {role: column.values(cells[role], False) for role, column in needed.items()}
            if np.isfinite(self._truth(columns)["redshift"]).any():
                return True
        return False

    def _no_photometry_message(self, names: Sequence[str]) -> str:
        bands = f"of the bands {', '.join(self.bands)}" if self.bands else "in any band"
        likely = suggested_settings(names, self.bands or list("ugrizy")) or (
            "for example data.columns.mag='{band}_mag' data.columns.mag_err='{band}_magerr'"
        )
        return (
            f"{self.label} has no photometry {bands} under the names "
            f"'{self.columns.get('mag', 'mag_{band}')}' and "
            f"'{self.columns.get('mag_err', 'mag_err_{band}')}'. Its columns: {shortened(names)}. "
            f"Name yours, {likely}, or band by band data.columns.mag_u=UMAG "
            f"data.columns.mag_err_u=UERR; for fluxes data.columns.flux and data.columns.flux_err"
        )

    def _warn_missing_band(self, band: str, names: Sequence[str]) -> None:
        """A band of the model that the catalogue lacks: an error if it is probably misnamed."""
        pairs = self.band_columns.values()
        kind = next(iter(pairs)).kind
        column = self.columns.get(kind, kind + "_{band}").replace("{band}", band)
        others = [  # of bands that the model lacks; one of nearly this name may be misspelled
            columns
            for other, columns in band_columns(names, self.columns, ()).items()
            if other.strip("_ ").lower() != band.lower()
        ]
        taken = [name for p in (*pairs, *others) for name in (p.value, p.error, p.limit)]
        taken += self.columns.values()
        near = near_column(column, names, taken)
        without = f"data.columns.{kind}_{band}={NO_BAND}"
        if near:
            raise ValueError(
                f"{self.label} has no column '{column}' for the band {band}; is it '{near}'? Then "
                f"set data.columns.{kind}_{band}={near} data.columns.{kind}_err_{band}=<its "
                f"error>. If this band was not observed: {without}"
            )
        self.warn_once(
            f"{self.label} has no band {band} (column '{column}'): it is taken as not observed, "
            f"which widens the predictions; {without} says so without this message"
        )

    def _warn_unitless_fluxes(self, catalogue: Catalogue) -> None:
        """Magnitudes are AB by default; fluxes without a unit may be anything."""
        pairs = self.band_columns.values()
        fluxes = [p for p in pairs if p.kind == "flux" and p.value not in catalogue.units]
        names = [name for p in fluxes for name in (p.value, p.error)]
        unitless = [name for name in names if name not in catalogue.units]
        if unitless and not self.is_simulation:
            more = f" and {len(unitless) - 1} more have" if len(unitless) > 1 else " has"
            self.warn_once(
                f"{self.label}: column {unitless[0]}{more} no unit: taken as uJy. If they are not, "
                f"write the unit into the table, or shift every band by data.zero_points (7.5: nJy)"
            )

    # --- values ---------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        n = len(next(iter(columns.values())))
        parts = [self._band_flux(band, columns, n) for band in self.bands]
        flux, flux_err, detected = (
            torch.from_numpy(np.stack(part, 1)) for part in zip(*parts, strict=True)
        )
        if "ebv" in columns:
            ebv, extinction = torch.from_numpy(columns["ebv"]), self._extinction()
            flux, flux_err = (deredden_flux(v, ebv, extinction) for v in (flux, flux_err))
        batch = {
            "flux": flux.float(),
            "flux_err": flux_err.float(),
            "detected": detected.float(),
        }
        if "weight" in columns:
            batch["weight"] = torch.from_numpy(columns["weight"]).float()
        if "redshift" in columns:
            labels = self._labels(columns, n) if training else self._truth(columns)
            batch |= {name: torch.from_numpy(values) for name, values in labels.items()}
        return batch

    def _labels(self, columns: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        error = columns.get("label_error", np.zeros(n))
        return {
            "redshift": columns["redshift"].astype(np.float32),
            "source": self._source_index(columns, n),
            "label_error": error.astype(np.float32),
        }

    def _truth(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Redshifts to score against: NaN where unknown, or where their source is not clean."""
        z = columns["redshift"].astype(np.float32)
        if "source" in columns:
            names = np.array([_source_name(value) for value in columns["source"]])
            z[names != self.clean_source] = np.nan
        return {"redshift": z}

    def _band_flux(
        self, band: str, columns: Mapping[str, np.ndarray], n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flux and error, uJy, NaN where not observed, and whether it is detected; each (n,)."""
        if band not in self.band_columns:
            return np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
        names, zero_point = self.band_columns[band], self.zero_points.get(band, 0.0)
        value = columns[f"{names.kind}_{band}"]
        error = columns[f"{names.kind}_{names.error_kind}_{band}"]
        if names.kind == "flux":
            return flux_from_flux(names, value, error, zero_point)
        limit: Any = self.limits.get(band, np.nan)
        if names.limit:
            given = columns[f"mag_lim_{band}"]
            limit = np.where(is_limit(given), given, limit)
        return flux_from_mag(names, value, error, zero_point, limit)

    def _extinction(self) -> dict[str, float]:
        """A_b / E(B-V) of each band, by its name or the part of it before an underscore."""
        known = self.extinction or (
            EXTINCTION_SDSS if set(self.bands) == set(EXTINCTION_SDSS) else EXTINCTION_LSST
        )
        coefficients = {band: known.get(band, known.get(band.split("_")[0])) for band in self.bands}
        unknown = [band for band, r in coefficients.items() if r is None]
        if unknown:
            raise ValueError(
                f"data.columns.ebv is set, and A_b/E(B-V) of the bands {unknown} is not known; "
                f"set data.extinction={{{', '.join(f'{b}: ...' for b in self.bands)}}}"
            )
        return {band: float(r) for band, r in coefficients.items() if r is not None}

    def _source_index(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        if "source" not in columns:
            return np.zeros(n, np.int64)
        names = np.array([_source_name(value) for value in columns["source"]])
        refuse(
            np.isin(names, NO_NAME),
            self.columns["source"],
            names,
            "is not a valid source",
            "a name in every row",
            "drop those rows by data.train_where, or name their source",
        )
        unknown = sorted(set(names) - set(self.sources))
        if unknown:
            raise ValueError(
                f"the source column '{self.columns['source']}' holds {unknown}, which are not "
                f"among data.sources={self.sources}"
            )
        return np.searchsorted(self.sources, names).astype(np.int64)

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit" and not self.rows:
            with self.open("fit") as catalogue:
                self._set_sources(catalogue)
            bands_given = bool(self.bands)
            super().setup(stage)
            if not bands_given:
                self._order_bands()
            if self.z_max is None:
                z = torch.cat([rows["redshift"] for rows in self.rows.values()])
                self.z_max = Z_MAX if self.is_simulation else self._end_of_grid(z)

    def _end_of_grid(self, z: Tensor) -> float:
        """Beyond the largest label; says so if few labels alone make the grid coarse."""
        largest, usual = float(z.max()), float(z.double().quantile(USUAL_LABELS))
        if largest > MAX_STRETCH * usual:
            few = int((z > MAX_STRETCH * usual).sum())
            self.warn_once(
                f"{self.label}: {few} of {len(z):,} labels are above {MAX_STRETCH * usual:.2f}, up "
                f"to {largest:g}, where {USUAL_LABELS:.1%} are below {usual:.2f}: p(z) gets a grid "
                f"to {largest:.2f}, coarser for all. Are they right? data.cuts.labels="
                f"'{self.columns.get('redshift', 'redshift')} < {MAX_STRETCH * usual:.2f}' leaves "
                f"them out"
            )
        return round(largest * 1.02 + 0.05, 2)

    def _order_bands(self) -> None:
        """Sort the bands by median flux, so that neighbours make informative colours.

        Galaxies are fainter in the blue: for any set of broad bands this is nearly their order in
        wavelength, which does not follow from their names.
        """
        flux = torch.cat([rows["flux"] for rows in self.rows.values()])
        order = flux.nanmedian(0).values.argsort()
        self.bands = [self.bands[i] for i in order]
        for rows in self.rows.values():
            for name in ("flux", "flux_err", "detected"):
                rows[name] = rows[name][:, order]

    def _set_sources(self, catalogue: Catalogue) -> None:
        """Names of the sources, from their column unless given; checks the clean one."""
        column = self.columns.get("source")
        if column is None or self.sources:
            self.sources = self.sources or ["all"]
        else:
            roles = {"source": located(self.declared, self.columns, catalogue, "source")}
            mask = self._chosen_rows(catalogue)
            chunks = self._read(catalogue, roles, 0, len(catalogue), mask)
            names = {_source_name(value) for _, c in chunks for value in np.unique(c["source"])}
            self.sources = sorted(names - set(NO_NAME))
        if len(self.sources) > 1 and self.clean_source not in self.sources:
            raise ValueError(
                f"labels come from the sources {self.sources}; name the one whose labels are right "
                f"to within their own errors, so that the noise of the others can be learned: "
                f"data.clean_source={self.sources[0]}"
            )

    def inferred_settings(self) -> dict[str, Any]:
        return {
            "bands": self.bands,
            "sources": self.sources,
            "clean_source": self.clean_source or self.sources[0],
            "z_max": self.z_max,
        }

    def model_arguments(self) -> dict[str, Any]:
        return {**self.inferred_settings(), "label_errors": "label_error" in self.columns}

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        return augmented(batch, generator, self.noise, self.noise_share, self.drop_share)

    # --- the embedded simulation --------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """LSST-like galaxies; in training with labels of three sources of known quality."""
        return simulated_table(self.n_train if split == "fit" else self.n_test, self.seed, split)

    def true_posterior(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """True redshifts (n,) and exact p(z) (n, grid) of the first test galaxies."""
        return simulated_posterior(self.n_test, self.seed, z) if self.is_simulation else None

    def truth(self) -> dict[str, float]:
        return true_label_noise() if self.is_simulation else {}

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_train": self.n_train, "n_test": self.n_test}
        return super().provenance() | sizes


def _source_name(value: Any) -> str:
    """'3' for 3 and 3.0, so that a source has one name in every file format."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.floating | float) and float(value).is_integer():
        return str(int(value))
    return str(value)
