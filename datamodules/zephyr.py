"""Photometry and redshift labels for `models.zephyr`: a catalogue, or the embedded simulation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.photometry import (
    BandColumns,
    band_columns,
    flux_from_flux,
    flux_from_mag,
    near_column,
)
from orrery.datamodules.values import refuse
from orrery.physics.galaxies import population
from orrery.physics.galaxies.galaxy_colours import Z_MAX
from orrery.physics.galaxies.photometry import (
    EXTINCTION_LSST,
    EXTINCTION_SDSS,
    LSST_BANDS,
    deredden_flux,
)
from orrery.physics.galaxies.redshift_labels import CATASTROPHIC, SIGMA, SOURCES, label_sources
from orrery.tables import Catalogue

# Scatter of ln flux that all bands of a training object share: colours say more of a redshift than
# brightness does, from which ten thousand objects are easily learned by heart.
GREY = 0.2

MAGNITUDE = "AB magnitude; NaN or -99: not observed; 99 or inf: not detected"
FLUX = "any finite number; NaN: not observed"
ERROR = "above 0 where the band is observed"


def _band(kind: str, unit: str, meaning: str, special: str) -> Column:
    name = kind + "_{band}"
    return Column(name, unit, meaning, training="chosen", special=special)


class ZephyrData(CatalogueData):
    """Fluxes in uJy (AB) with errors, and redshift labels from one or several sources.

    A batch holds ``flux`` and ``flux_err`` (batch, bands), uJy, NaN where a band was not observed;
    ``detected`` (batch, bands), 0 or 1: a magnitude that is observed but not detected has flux 0
    and the flux of its limit as error. In training ``redshift`` (batch,), ``source`` (batch,) int64
    and ``label_error`` (batch,), 0 where the catalogue names no such column; in prediction
    ``redshift`` where the catalogue has one, NaN for rows without a clean one.

    Columns are found by the patterns ``mag`` and ``mag_err`` (or ``flux``, ``flux_err``) in
    ``columns``, in which ``{band}`` stands for a band; ``columns.mag_u=UMAG`` names a single one.
    `datamodules.photometry` says what NaN, 99 and -99 mean. ``zero_points`` (band -> mag) are added
    to reach AB; ``limits`` (band -> limiting mag, 1 sigma) serve non-detections that give none.

    ``ebv``, a column of E(B-V) in mag, corrects for Galactic extinction by ``extinction`` (band ->
    A_b/E(B-V)), by default the LSST's or, for ugriz alone, SDSS's of Schlafly & Finkbeiner (2011).

    In training objects are a little brighter or fainter each time (`GREY`), a share ``noise_share``
    of them is observed again with up to ``noise`` times its own error added, and in a share
    ``drop_share`` bands are dropped, so that shallower and incomplete photometry is met too.
    """

    declared: ClassVar = {
        "redshift": Column(
            "redshift", None, "redshift", 0, 20, "[)", truth=True, prediction="chosen"
        ),
        "source": Column(
            "source", None, "where the redshift is from, of several sources", truth=True,
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
        "mag_{band}": _band("mag", "mag", "magnitude; mag is all of them", MAGNITUDE),
        "mag_err_{band}": _band(
            "mag_err", "mag", "its error; of a non-detection the limiting magnitude", ERROR
        ),
        "flux_{band}": _band("flux", "uJy", "flux, where there are no magnitudes", FLUX),
        "flux_err_{band}": _band("flux_err", "uJy", "its error", ERROR),
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
        self.found: dict[str, BandColumns] = {}
        self.noise, self.noise_share, self.drop_share = noise, noise_share, drop_share
        self.z_max = z_max
        self.n_train, self.n_test = n_train, n_test
        if self.path is None:  # the simulation names its own
            self.columns["source"] = "source"
            self.clean_source = self.clean_source or SOURCES[0]

    # --- columns ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = catalogue.names
        self.found = band_columns(names, self.columns, self.bands)
        if training and not self.bands:
            self.bands = list(self.found)
        if not self.found:
            raise ValueError(self._no_photometry(names))
        roles: dict[str, CatalogueColumn] = {}
        for band in self.bands:
            if band not in self.found:
                self._say_missing(band, names)
                continue
            kind, value, error = self.found[band]
            for role, name in ((kind, value), (f"{kind}_err", error)):
                family = self.declared[f"{role}_{{band}}"]
                roles[f"{role}_{band}"] = CatalogueColumn(family, name, catalogue.units.get(name))
        self._say_unitless(catalogue)
        redshift = located(self.declared, self.columns, catalogue, "redshift")
        if training or redshift.name in names:
            roles["redshift"] = redshift
        elif redshift.name != "redshift":
            self.say(f"{self.label} has no column '{redshift.name}': nothing is scored")
        for role in ("source", "label_error", "ebv"):
            column = located(self.declared, self.columns, catalogue, role)
            if role in self.columns and (training or role == "ebv" or column.name in names):
                roles[role] = column
        if not training and "redshift" in roles and not self._any_truth(catalogue, roles):
            of = f" of the source {self.clean_source}" if "source" in roles else ""
            self.say(
                f"{self.label}: column '{redshift.name}' holds no redshift of 0 to 20{of}: "
                f"nothing can be scored"
            )
            del roles["redshift"]
        return roles

    def _any_truth(self, catalogue: Catalogue, roles: Mapping[str, CatalogueColumn]) -> bool:
        """Whether any row has a redshift to score against; the first chunk with one ends it."""
        needed = {role: roles[role] for role in ("redshift", "source") if role in roles}
        chunks = self._read(catalogue, needed, 0, len(catalogue), None)
        for _, cells in chunks:
            columns = {role: needed[role].values(values, False) for role, values in cells.items()
                       if role in needed}  # fmt: skip
            if np.isfinite(self._truth(columns)["redshift"]).any():
                return True
        return False

    def _no_photometry(self, names: Sequence[str]) -> str:
        wanted = f"of the bands {', '.join(self.bands)}" if self.bands else "in any band"
        return (
            f"{self.label} has no photometry {wanted} under the names "
            f"'{self.columns.get('mag', 'mag_{band}')}' and "
            f"'{self.columns.get('mag_err', 'mag_err_{band}')}'. Its columns: {', '.join(names)}. "
            f"Name yours, for example data.columns.mag='{{band}}_mag' "
            f"data.columns.mag_err='{{band}}_magerr', or band by band data.columns.mag_u=UMAG "
            f"data.columns.mag_err_u=UERR; for fluxes data.columns.flux and data.columns.flux_err"
        )

    def _say_missing(self, band: str, names: Sequence[str]) -> None:
        """A band of the model that the catalogue lacks: an error if it seems only misnamed."""
        kind = next(iter(self.found.values())).kind
        column = self.columns.get(kind, kind + "_{band}").replace("{band}", band)
        taken = [name for _, value, error in self.found.values() for name in (value, error)]
        taken += self.columns.values()
        near = near_column(column, names, taken)
        if near:
            raise ValueError(
                f"{self.label} has no column '{column}' for the band {band}; is it '{near}'? Then "
                f"say data.columns.{kind}_{band}={near} data.columns.{kind}_err_{band}=<its error>"
            )
        self.say(
            f"{self.label} has no band {band} (column '{column}'): it is taken as not observed, "
            f"and the predictions are wider for it"
        )

    def _say_unitless(self, catalogue: Catalogue) -> None:
        """Magnitudes are AB by their name; nothing says of a bare flux what it is."""
        fluxes = [name for kind, *pair in self.found.values() if kind == "flux" for name in pair]
        bare = [name for name in fluxes if name not in catalogue.units]
        if bare and (self.path is not None or self.table is not None):
            more = f" and {len(bare) - 1} more name" if len(bare) > 1 else " names"
            self.say(
                f"{self.label}: column {bare[0]}{more} no unit: taken as uJy. If they are not, "
                f"write the unit into the table, or shift every band by data.zero_points (7.5: nJy)"
            )

    # --- values ---------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        n = len(next(iter(columns.values())))
        parts = [self._band(band, columns, n) for band in self.bands]
        flux, flux_err, detected = (
            torch.from_numpy(np.stack(part, 1)) for part in zip(*parts, strict=True)
        )
        if "ebv" in columns:
            ebv = columns["ebv"]
            extinction = self._extinction()
            flux, flux_err = (
                deredden_flux(v, torch.from_numpy(ebv), extinction) for v in (flux, flux_err)
            )
        batch = {
            "flux": flux.float(),
            "flux_err": flux_err.float(),
            "detected": detected.float(),
        }
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
        """Redshifts to score against: NaN where there is none, or its source is not clean."""
        z = columns["redshift"].astype(np.float32)
        if "source" in columns:
            names = np.array([_source_name(value) for value in columns["source"]])
            z[names != self.clean_source] = np.nan
        return {"redshift": z}

    def _band(
        self, band: str, columns: Mapping[str, np.ndarray], n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flux and error, uJy, and whether it is detected; NaN where not observed; each (n,)."""
        if band not in self.found:
            return np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
        found, zero_point = self.found[band], self.zero_points.get(band, 0.0)
        kind = found.kind
        value, error = (columns[f"{role}_{band}"] for role in (kind, f"{kind}_err"))
        if kind == "flux":
            return flux_from_flux(found, value, error, zero_point)
        return flux_from_mag(found, value, error, zero_point, self.limits.get(band, np.nan))

    def _extinction(self) -> dict[str, float]:
        """A_b / E(B-V) of each band, by its name or the part of it before an underscore."""
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
        return {band: float(r) for band, r in found.items() if r is not None}

    def _source_index(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        if "source" not in columns:
            return np.zeros(n, np.int64)
        names = np.array([_source_name(value) for value in columns["source"]])
        refuse(
            np.isin(names, ("", "nan", "None")),
            self.columns["source"],
            names,
            "is no source",
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
                self._find_sources(catalogue)
            discovered = not self.bands
            super().setup(stage)
            if discovered:
                self._order_bands()
            z = torch.cat([rows["redshift"] for rows in self.rows.values()])
            if self.z_max is None:
                simulated = self.path is None and self.table is None
                self.z_max = Z_MAX if simulated else round(float(z.max()) * 1.02 + 0.05, 2)

    def _order_bands(self) -> None:
        """Put the bands in the order of their median flux, so that neighbours make useful colours.

        Galaxies are fainter in the blue: for any set of broad bands this is nearly their order in
        wavelength, which their names do not tell.
        """
        flux = torch.cat([rows["flux"] for rows in self.rows.values()])
        order = flux.nanmedian(0).values.argsort()
        self.bands = [self.bands[i] for i in order]
        for rows in self.rows.values():
            for name in ("flux", "flux_err", "detected"):
                rows[name] = rows[name][:, order]

    def _find_sources(self, catalogue: Catalogue) -> None:
        column = self.columns.get("source")
        if column is None or self.sources:
            self.sources = self.sources or ["all"]
        else:
            roles = {"source": located(self.declared, self.columns, catalogue, "source")}
            chosen = self._chosen_rows(catalogue)
            chunks = self._read(catalogue, roles, 0, len(catalogue), chosen)
            found = {_source_name(value) for _, c in chunks for value in np.unique(c["source"])}
            self.sources = sorted(found - {"", "nan", "None"})
        if len(self.sources) > 1 and self.clean_source not in self.sources:
            raise ValueError(
                f"labels come from the sources {self.sources}; say which of them is right to "
                f"within its own errors, so that the noise of the others can be learned: "
                f"data.clean_source={self.sources[0]}"
            )

    def found_out(self) -> dict[str, Any]:
        return {
            "bands": self.bands,
            "sources": self.sources,
            "clean_source": self.clean_source or self.sources[0],
            "z_max": self.z_max,
        }

    def schema(self) -> dict[str, Any]:
        return {**self.found_out(), "label_errors": "label_error" in self.columns}

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        flux, error = batch["flux"], batch["flux_err"]
        n, bands = flux.shape
        brighter = torch.exp(GREY * torch.randn(n, 1, generator=generator))
        flux, error = flux * brighter, error * brighter.sqrt()
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
        drawn = population.simulate(n, generator)
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
        drawn = {k: v[:2000] for k, v in population.simulate(self.n_test, generator).items()}
        return drawn["z"], population.posterior(drawn["flux"], drawn["flux_err"], z)

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


def _source_name(value: Any) -> str:
    """'3' for 3 and 3.0, so that a source has one name in every file format."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.floating | float) and float(value).is_integer():
        return str(int(value))
    return str(value)
