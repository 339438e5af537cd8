"""Photometry and redshift labels for `models.zephyr`: a catalogue, or the embedded simulation."""

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import CatalogueData, Rows
from datamodules.catalogue import Catalogue
from physics import galaxies
from physics.galaxy_colours import Z_MAX
from physics.photometry import (
    EXTINCTION_LSST,
    EXTINCTION_SDSS,
    LSST_BANDS,
    deredden_flux,
    mag_to_flux,
)
from physics.redshift_labels import CATASTROPHIC, SIGMA, SOURCES, label_sources

NOT_DETECTED, NOT_OBSERVED = 99.0, -99.0  # BPZ's convention, which RAIL follows
SANE_MAGNITUDES = (-5.0, 45.0)


class ZephyrData(CatalogueData):
    """Fluxes in uJy (AB) with errors, and redshift labels from one or several sources.

    A batch holds ``flux`` and ``flux_err`` (batch, bands), uJy, NaN where a band was not observed;
    ``detected`` (batch, bands), 0 or 1: a band observed but not detected has flux 0 and the flux of
    its limit as error; and in training ``redshift`` (batch,), ``source`` (batch,) int64, and
    ``label_error`` (batch,), 0 where the catalogue names no such column.

    Columns are found by the patterns ``mag`` and ``mag_err`` (or ``flux``, ``flux_err``) in
    ``columns``, in which ``{band}`` stands for a band; ``columns.mag_u=UMAG`` names a single one.
    Magnitudes are AB once ``zero_points`` (band -> mag to add) is applied. In a magnitude column:

    - NaN or -99: not observed. 99 with an error of 90 or more: not observed.
    - 99 or inf with a smaller "error": observed, not detected, and the error is the limiting
      magnitude (1 sigma). ``limits`` (band -> mag) gives the limit where the catalogue has none.

    ``ebv``, a column of E(B-V) in mag, corrects for Galactic extinction by ``extinction`` (band ->
    A_b/E(B-V)), by default the LSST's or, for ugriz alone, SDSS's of Schlafly & Finkbeiner (2011).

    In training a share ``noise_share`` of the objects is observed again with up to ``noise`` times
    its own error added, and in a share ``drop_share`` bands are dropped, so that shallower and
    incomplete photometry is met too.
    """

    def __init__(
        self,
        bands: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        clean_source: str | int | None = None,
        zero_points: Mapping[str, float] | None = None,
        limits: Mapping[str, float] | None = None,
        extinction: Mapping[str, float] | None = None,
        flux_unit: str = "uJy",
        noise: float = 1.0,
        noise_share: float = 1.0,
        drop_share: float = 0.1,
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
        self.extinction, self.flux_unit = dict(extinction or {}), flux_unit
        self.noise, self.noise_share, self.drop_share = noise, noise_share, drop_share
        self.z_max = z_max
        self.n_train, self.n_test = n_train, n_test
        if self.path is None:  # the simulation names its own
            self.columns["source"] = "source"
            self.clean_source = self.clean_source or SOURCES[0]

    # --- columns ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        names = catalogue.names
        pairs = self._pairs(names)
        if training and not self.bands:
            self.bands = list(pairs)
        if not pairs:
            raise ValueError(self._no_photometry(names))
        roles: dict[str, tuple[str, str | None]] = {}
        for band in self.bands:
            if band not in pairs:
                self._missing(band, names, pairs)
                continue
            kind, value, error = pairs[band]
            unit = "mag" if kind == "mag" else self.flux_unit
            roles[f"{kind}_{band}"], roles[f"{kind}_err_{band}"] = (value, unit), (error, unit)
        redshift = self.columns.get("redshift", "redshift")
        if training or redshift in names:
            roles["redshift"] = (redshift, None)
        for role in ("source", "label_error"):
            if training and role in self.columns:
                roles[role] = (self.columns[role], None)
        if "ebv" in self.columns:
            roles["ebv"] = (self.columns["ebv"], None)
        return roles

    def _pairs(self, names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
        """band -> ("mag" or "flux", value column, error column), of the bands that are there."""
        for kind in ("mag", "flux"):
            value, error = (
                self.columns.get(kind, kind + "_{band}"),
                self.columns.get(kind + "_err", kind + "_err_{band}"),
            )
            own = {
                key.removeprefix(f"{kind}_")
                for key in self.columns
                if key.startswith(f"{kind}_") and not key.startswith(f"{kind}_err")
            }
            bands = self.bands or [
                band
                for band in (_band(name, value) for name in names)
                if band and error.replace("{band}", band) in names
            ] + sorted(own)
            pairs = {}
            for band in dict.fromkeys(bands):
                v = self.columns.get(f"{kind}_{band}", value.replace("{band}", band))
                e = self.columns.get(f"{kind}_err_{band}", error.replace("{band}", band))
                # a named column that is not there is an error of its own, with near matches
                named = f"{kind}_{band}" in self.columns or f"{kind}_err_{band}" in self.columns
                if v in names or e in names or named:
                    pairs[band] = (kind, v, e)
            if pairs:
                return pairs
        return {}

    def _no_photometry(self, names: Sequence[str]) -> str:
        wanted = f"of the bands {self.bands}" if self.bands else "in any band"
        return (
            f"{self.name} has no photometry {wanted} under the names "
            f"'{self.columns.get('mag', 'mag_{band}')}' and "
            f"'{self.columns.get('mag_err', 'mag_err_{band}')}'. Its columns: {', '.join(names)}. "
            f"Name yours, for example data.columns.mag='{{band}}_mag' "
            f"data.columns.mag_err='{{band}}_magerr', or band by band data.columns.mag_u=UMAG; "
            f"for fluxes data.columns.flux and data.columns.flux_err"
        )

    def _missing(self, band: str, names: Sequence[str], pairs: Mapping[str, tuple]) -> None:
        """A band of the model that the catalogue lacks: an error if it seems only misnamed."""
        used = {column for _, value, error in pairs.values() for column in (value, error)}
        free = {name.lower(): name for name in names if name not in used}
        column = self.columns.get("mag", "mag_{band}").replace("{band}", band)
        near = get_close_matches(column.lower(), free, 1, 0.8)
        if near:
            raise ValueError(
                f"{self.name} has no column '{column}' for the band {band}; is it "
                f"'{free[near[0]]}'? Then say data.columns.mag_{band}={free[near[0]]} and "
                f"data.columns.mag_err_{band}=<its error>"
            )
        warnings.warn(
            f"{self.name} has no band {band} (column '{column}'): it is taken as not observed, and "
            f"the predictions are wider for it",
            stacklevel=2,
        )

    # --- values -------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray]) -> Rows:
        n = len(next(iter(columns.values())))
        parts = [self._band_flux(band, columns, n) for band in self.bands]
        flux, flux_err, detected = (np.stack(part, 1) for part in zip(*parts, strict=True))
        batch = {
            "flux": torch.from_numpy(flux),
            "flux_err": torch.from_numpy(flux_err),
            "detected": torch.from_numpy(detected),
        }
        if "ebv" in columns:
            ebv = torch.from_numpy(_finite(columns["ebv"], self.columns["ebv"], "E(B-V) in mag"))
            for key in ("flux", "flux_err"):
                batch[key] = torch.stack(self._dereddened(batch[key], ebv), 1)
        batch = {name: values.float() for name, values in batch.items()}
        if "redshift" in columns:
            name = self.columns.get("redshift", "redshift")
            z = _finite(columns["redshift"], name, "redshifts")
            _refuse(z < 0, name, z, "is negative", "a redshift of at least 0", "drop those rows")
            batch["redshift"] = torch.from_numpy(z).float()
            batch["source"] = torch.from_numpy(self._source_index(columns, n))
            error = columns.get("label_error", np.zeros(n))
            batch["label_error"] = torch.from_numpy(np.asarray(error, float)).float()
        return batch

    def _band_flux(
        self, band: str, columns: Mapping[str, np.ndarray], n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flux and error, uJy, and whether it is detected; NaN where not observed; each (n,)."""
        if f"flux_{band}" in columns:
            flux = np.asarray(columns[f"flux_{band}"], float)
            error = np.asarray(columns[f"flux_err_{band}"], float)
            observed = np.isfinite(flux)
            self._check_errors(f"flux_err_{band}", error, observed)
            scale = 10 ** (-0.4 * self.zero_points.get(band, 0.0))
            flux, error = flux * scale, error * scale
            return (
                flux,
                np.where(observed, error, np.nan),
                (observed & (flux > error)).astype(float),
            )
        if f"mag_{band}" not in columns:
            return np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
        mag = np.asarray(columns[f"mag_{band}"], float)
        error = np.asarray(columns[f"mag_err_{band}"], float)
        limit = np.where(error < 90, error, self.limits.get(band, np.nan))
        undetected = (mag == NOT_DETECTED) | (mag == np.inf)
        observed = ~np.isnan(mag) & (mag != NOT_OBSERVED) & ~(undetected & np.isnan(limit))
        measured = observed & ~undetected
        low, high = SANE_MAGNITUDES
        _refuse(
            measured & ~((mag > low) & (mag < high)),
            self._column("mag", band),
            mag,
            "is no magnitude",
            f"{low:g} to {high:g}, 99 where not detected, NaN or -99 where not observed",
            "replace other sentinels by these",
        )
        self._check_errors(f"mag_err_{band}", error, measured)
        zero_point = self.zero_points.get(band, 0.0)
        tensors = (
            torch.from_numpy(np.where(measured, v, np.nan)) for v in (mag + zero_point, error)
        )
        flux, flux_err = (v.numpy() for v in mag_to_flux(*tensors))
        limit_flux = mag_to_flux(torch.from_numpy(limit + zero_point), torch.tensor(1.0))[0].numpy()
        flux = np.where(observed & undetected, 0.0, flux)
        flux_err = np.where(observed & undetected, limit_flux, flux_err)
        return flux, flux_err, measured.astype(float)

    def _check_errors(self, role: str, error: np.ndarray, measured: np.ndarray) -> None:
        kind, band = role.split("_err_")
        _refuse(
            measured & ~((error > 0) & np.isfinite(error)),
            self._column(f"{kind}_err", band),
            error,
            "is no error of a measured value",
            "finite numbers above 0",
            f"set the {kind} of those rows to NaN (not observed), or give the error a floor",
        )

    def _column(self, kind: str, band: str) -> str:
        pattern = self.columns.get(kind, kind + "_{band}")
        return self.columns.get(f"{kind}_{band}", pattern.replace("{band}", band))

    def _dereddened(self, values: Tensor, ebv: Tensor) -> list[Tensor]:
        known = self.extinction or (
            EXTINCTION_SDSS if set(self.bands) == set(EXTINCTION_SDSS) else EXTINCTION_LSST
        )
        found = {band: known.get(band, known.get(band.split("_")[0])) for band in self.bands}
        unknown = [band for band, r in found.items() if r is None]
        if unknown:
            raise ValueError(
                f"data.columns.ebv is set, and A_b/E(B-V) of the bands {unknown} is not known; "
                f"give it: data.extinction={{{', '.join(f'{b}: ...' for b in self.bands)}}}"
            )
        r = {band: float(value) for band, value in found.items() if value is not None}
        return [deredden_flux(values[:, i], ebv, r[band]) for i, band in enumerate(self.bands)]

    def _source_index(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        if "source" not in columns:
            return np.zeros(n, np.int64)
        names = np.array([_source_name(value) for value in columns["source"]])
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
                self._find_sources(catalogue)
            super().setup(stage)
            z = torch.cat([rows["redshift"] for rows in self.rows.values()])
            if self.z_max is None:
                simulated = self.path is None and self.table is None
                self.z_max = Z_MAX if simulated else round(float(z.max()) * 1.02 + 0.05, 2)

    def _find_sources(self, catalogue: Catalogue) -> None:
        column = self.columns.get("source")
        if column is None or self.sources:
            self.sources = self.sources or ["all"]
        else:
            roles = {"source": (column, None)}
            chosen = self._chosen_rows(catalogue)
            chunks = self._read(catalogue, roles, 0, len(catalogue), chosen)
            found = {_source_name(value) for _, c in chunks for value in np.unique(c["source"])}
            self.sources = sorted(found)
        if len(self.sources) > 1 and self.clean_source not in self.sources:
            raise ValueError(
                f"labels come from the sources {self.sources}; say which of them is right to "
                f"within its own errors, so that the noise of the others can be learned: "
                f"data.clean_source={self.sources[0]}"
            )

    def schema(self) -> dict[str, Any]:
        return {
            "bands": self.bands,
            "sources": self.sources,
            "clean_source": self.clean_source or self.sources[0],
            "z_max": self.z_max,
        }

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        flux, error = batch["flux"], batch["flux_err"]
        n, bands = flux.shape
        again = torch.rand(n, 1, generator=generator) < self.noise_share
        extra = self.noise * torch.rand(n, 1, generator=generator) * again * batch["detected"]
        flux = flux + extra * error * torch.randn(n, bands, generator=generator)
        error = error * torch.sqrt(1 + extra**2)
        drop = torch.rand(n, 1, generator=generator) < self.drop_share
        gone = drop & (
            torch.rand(n, bands, generator=generator) < torch.rand(n, 1, generator=generator)
        )
        flux, error = (values.masked_fill(gone, torch.nan) for values in (flux, error))
        detected = batch["detected"].masked_fill(gone, 0.0)
        return {**batch, "flux": flux, "flux_err": error, "detected": detected}

    # --- the embedded simulation --------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """LSST-like galaxies; in training with labels of three sources of known quality."""
        generator = torch.Generator().manual_seed(2 * self.seed + (split == "test"))
        n = self.n_train if split == "fit" else self.n_test
        drawn = galaxies.simulate(n, generator)
        table = {"redshift": drawn["z"].numpy()}
        if split == "fit":
            labels, _ = label_sources(drawn, generator)
            labelled = labels["source"] >= 0
            drawn = {name: values[labelled] for name, values in drawn.items()}
            table["redshift"] = labels["label"][labelled].numpy()
            table["source"] = np.array(SOURCES)[labels["source"][labelled].numpy()]
        for i, band in enumerate(LSST_BANDS):
            table[f"flux_{band}"] = drawn["flux"][:, i].numpy()
            table[f"flux_err_{band}"] = drawn["flux_err"][:, i].numpy()
        return table

    def true_posterior(self, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """Truth (n,) and the exact p(z) (n, grid) of the first test objects of the simulation."""
        if self.path is not None or self.table is not None:
            return None, torch.empty(0)
        generator = torch.Generator().manual_seed(2 * self.seed + 1)
        drawn = {k: v[:2000] for k, v in galaxies.simulate(self.n_test, generator).items()}
        return drawn["z"], galaxies.posterior(drawn["flux"], drawn["flux_err"], z)

    def truth(self) -> dict[str, float]:
        if self.path is not None or self.table is not None:
            return {}
        sigma = {f"label_sigma_{s}_true": v for s, v in zip(SOURCES, SIGMA, strict=True)}
        fraction = {
            f"label_catastrophic_{s}_true": v for s, v in zip(SOURCES, CATASTROPHIC, strict=True)
        }
        return sigma | fraction

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_train": self.n_train, "n_test": self.n_test}
        return super().provenance() | sizes


def _band(name: str, pattern: str) -> str | None:
    """The band in a column name that fits ``pattern``, such as 'u' of 'mag_u' by 'mag_{band}'."""
    before, _, after = pattern.partition("{band}")
    if not (name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)] or None


def _source_name(value: Any) -> str:
    """'3' for 3 and 3.0, so that a source has one name in every file format."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.floating | float) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _finite(values: np.ndarray, column: str, meaning: str) -> np.ndarray:
    values = np.asarray(values, float)
    _refuse(
        ~np.isfinite(values), column, values, "is not finite", meaning, "drop or mend those rows"
    )
    return values


def _refuse(
    bad: np.ndarray, column: str, values: np.ndarray, what: str, expected: str, mend: str
) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"column '{column}': {values[first]} {what} ({int(bad.sum()):,} rows, the first is row "
            f"{first} of its chunk); expected {expected}: {mend}"
        )
