"""Synthetic galaxies and mock surveys of distant ones for `models.feniks`; photometry to rank."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from astropy.table import Table

from orrery.datamodules.base import Rows
from orrery.datamodules.columns import CatalogueColumn, Column
from orrery.datamodules.feniks.defaults import BANDS, DEPTH, PARAMETERS, SPECTRAL_NETWORK
from orrery.datamodules.feniks.emulated import EmulatedSynthesis, refuse_unlearned
from orrery.datamodules.feniks.mock_spectra import (
    K_BAND,
    SIGNAL_TO_NOISE,
    WITH_SPECTRA,
    draw_spectra,
    pixels,
)
from orrery.datamodules.feniks.mocks import QUANTITIES, SHARES, Mocks, draw_mocks
from orrery.datamodules.feniks.spectrum_resolution import LINE_SPREAD, with_pixels
from orrery.datamodules.sed_emulator import SedEmulatorData, simulation
from orrery.datamodules.sed_emulator.columns import DECLARED
from orrery.physics.galaxies.quiescent import REST_BANDS
from orrery.physics.sps.filters import Filter, load_filter, pivot_wavelength
from orrery.physics.sps.libraries import load_population
from orrery.physics.sps.synthesis import RATIOS, Synthesis
from orrery.pretrained import find, load, names, weights_file
from orrery.tables import Catalogue, sha256

REST = {
    "rest_{filter}": Column(
        "rest_{filter}", "mag",
        "AB magnitude through a filter at rest, at the galaxy's distance, of a synthetic galaxy",
        -10.0, 150.0, training="chosen", prediction="unused",
    ),
}  # fmt: skip

CALIBRATION_SEED = 10_000  # and more: of mock galaxies by which intervals are calibrated
SPECTRA_SEED = 20_000  # and more: of those of them with spectra


class FeniksData(SedEmulatorData):
    """Galaxies to learn from, mock surveys to test on, and photometry of a survey to rank.

    Batches are those of `SedEmulatorData`. In training there are ``rest_magnitudes`` (batch, 6) as
    well: AB, through the filters of `physics.galaxies.quiescent.REST_BANDS` at rest, without the
    IGM, plus the distance modulus, so that they follow mass and distance as the others do.

    What is tested on are mock galaxies of smooth histories, see `mocks`, observed to ``depth``.
    Where a catalogue has true values, such as that of mock galaxies, they are ``true_<name>``
    (batch,), of the names of `mocks.QUANTITIES`, besides ``true_parameters``.

    Args:
        bands: see `SedEmulatorData`; null: those of `defaults.BANDS`.
        population: which galaxies are made of: the name or the path of a checkpoint of
            sed_emulator with spectra, "bc03_miles", or the path of a file of populations.
        parameters: see `SedEmulatorData`; names that are left out have the priors of
            `defaults.PARAMETERS`.
        nebular: see `SedEmulatorData`.
        depth: AB magnitude of a source of 5 sigma, of mock galaxies: one, or by band, of which
            others are not observed; null: those of `defaults.DEPTH` that are among the bands.
        mock_shares: kind of mock galaxies, see `mocks.KINDS`, -> share of it.
        mock_z_range: redshifts of mock galaxies.
        mock_interlopers: share of those that are nearer, from a redshift of 0.3 on.
        n_calibration: mock galaxies by which the widths of intervals are calibrated.
        n_calibration_spectra: the same with spectra of the K band at z 3 to 4.5, each of which
            takes seconds; 0: intervals of galaxies with a spectrum are widened as of others.
        photometry: other settings of `SedEmulatorData`.
    """

    declared: ClassVar = DECLARED | REST
    default_bands: ClassVar = BANDS
    default_parameters: ClassVar = PARAMETERS
    more_truths: ClassVar = QUANTITIES
    may_be_zero: ClassVar = frozenset(("n_calibration_spectra",))

    def __init__(
        self,
        bands: Mapping[str, str] | Sequence[str] | None = None,
        population: str = SPECTRAL_NETWORK,
        parameters: Mapping[str, Any] = PARAMETERS,
        nebular: bool = True,
        depth: float | Mapping[str, float] | None = None,
        mock_shares: Mapping[str, float] = SHARES,
        mock_z_range: Sequence[float] = (2.5, 5.0),
        mock_interlopers: float = 0.25,
        n_calibration: int = 2000,
        n_calibration_spectra: int = 0,
        **photometry: Any,
    ) -> None:
        super().__init__(
            bands,
            population,
            parameters,
            nebular,
            depth=27.0,
            **photometry,
        )
        self.depth = self._depth_by_band(depth)
        self.mock_shares = {kind: share for kind, share in mock_shares.items() if share is not None}
        self.mock_z_range, self.mock_interlopers = list(mock_z_range), mock_interlopers
        self.n_calibration = n_calibration
        self.n_calibration_spectra = n_calibration_spectra

    def _depth_by_band(self, depth: float | Mapping[str, float] | None) -> np.ndarray:
        """AB (bands,), NaN where mock galaxies are not observed."""
        if depth is None:
            depth = {band: value for band, value in DEPTH.items() if band in self.bands}
            if not depth:
                raise ValueError(
                    f"data.depth=null is of the bands {', '.join(DEPTH)}, of which data.bands has "
                    f"none; give one number, or one by band: {', '.join(self.bands)}"
                )
        return self._by_band("depth", depth, float("nan"))

    # --- the generator ------------------------------------------------------------------------

    @functools.cached_property
    def rest_filters(self) -> list[Filter]:
        """In the order of `REST_BANDS`."""
        return [load_filter(text) for text in REST_BANDS.values()]

    @property
    def is_emulated(self) -> bool:
        """Whether galaxies are made by a trained network, not of populations."""
        return self.population in names() or self.population.endswith(".ckpt")

    @functools.cached_property
    def synthesis(self) -> Synthesis:
        z_max = float(self.priors.high[self.priors.names.index("zred")])
        if not self.is_emulated:
            population = load_population(self.population)
            return Synthesis(population, self.filters, z_max, self.nebular, self.rest_filters)
        model = load(self.population)
        if not hasattr(getattr(model, "network", None), "common_spectrum"):
            raise ValueError(
                f"data.population={self.population}: that model has no spectra; expected one of "
                f"sed_emulator with model.architecture=spectra, such as sed_emulator_spectra"
            )
        refuse_unlearned(self.priors, model, self.population)
        return EmulatedSynthesis(
            self.population, model, self.filters, z_max, self.nebular, self.rest_filters
        )

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """Synthetic galaxies to train on, or a catalogue of mock galaxies with true values."""
        if split != "fit":
            return self._catalogue_of(self.mocks())
        parameters = simulation.draw_parameters(
            self.priors, self.n_train, self.seed, split, self.training_set
        )
        with torch.no_grad():
            observed, rest = self.synthesis.all_magnitudes(parameters)
        bands = list(self.bands)
        table = simulation.table_of_seds(parameters, observed, self.priors.names, bands)
        return table | {f"rest_{b}": m for b, m in zip(REST_BANDS, rest.numpy().T, strict=True)}

    def inferred_settings(self) -> dict[str, Any]:
        found = super().inferred_settings()
        return found | {"population": self.population, "nebular": self.nebular}

    def model_arguments(self) -> dict[str, Any]:
        arguments = super().model_arguments()
        names = ("bands", "wavelengths", "parameters", "nebular", "population")
        return {name: arguments[name] for name in names} | {
            "rest_wavelengths": [pivot_wavelength(band) for band in self.rest_filters]
        }

    def mocks(self, n: int | None = None, seed: int | None = None) -> Mocks:
        """Mock galaxies: those of the test split, unless a number or a seed is given."""
        return draw_mocks(
            self.n_test if n is None else n,
            self.seed if seed is None else seed,
            self.synthesis,
            self.priors,
            self.mock_shares,
            self.mock_z_range,
            self.mock_interlopers,
        )

    def calibration_batch(self) -> Rows | None:
        """Mock galaxies, as they are predicted, of another seed than those of the test split.

        None where the data are not the generator's.
        """
        if not self.is_simulation:
            return None
        batch = self._batch_of_mocks(self.mocks(self.n_calibration, CALIBRATION_SEED + self.seed))
        return {name: v for name, v in batch.items() if not name.startswith("spectrum_")}

    def spectra_calibration_batch(self) -> Rows | None:
        """Mock galaxies with spectra, of another seed than those that test; None if none."""
        if not self.is_simulation or not self.n_calibration_spectra:
            return None
        seed = SPECTRA_SEED + self.seed
        mocks = draw_mocks(
            self.n_calibration_spectra, seed, self.synthesis, self.priors, self.mock_shares,
            WITH_SPECTRA, 0.0,
        )  # fmt: skip
        wavelength = pixels(*K_BAND)
        drawn = draw_spectra(
            self.synthesis, mocks.parameters, mocks.history, wavelength, LINE_SPREAD,
            SIGNAL_TO_NOISE, 0.0, seed,
        )  # fmt: skip
        resolution = with_pixels(LINE_SPREAD, float(np.median(wavelength)), K_BAND[2])
        return self._batch_of_mocks(mocks) | spectra_batch(
            np.tile(wavelength, (len(drawn.flux), 1)),
            drawn.flux,
            drawn.error,
            np.ones(drawn.flux.shape, bool),
            np.full(len(drawn.flux), resolution),
        )

    def _batch_of_mocks(self, mocks: Mocks) -> Rows:
        """As they are predicted, with true values."""
        other = copy.copy(self)
        other.table, other.split = Table(self._catalogue_of(mocks)), "all"
        batches = list(other.prediction_batches())
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def _catalogue_of(self, mocks: Mocks) -> dict[str, np.ndarray]:
        """Noisy fluxes, uJy, and true values."""
        flux, error = self._observe(mocks.magnitudes.numpy())
        table = dict(zip(self.priors.names, mocks.parameters.numpy().T, strict=True))
        table = {f"true_{k}": v for k, v in (table | mocks.truth).items() if k not in RATIOS}
        table = {name: np.asarray(values) for name, values in table.items()}
        for i, band in enumerate(self.bands):
            table |= {f"flux_{band}": flux[:, i], f"flux_err_{band}": error[:, i]}
        return table

    def provenance(self) -> dict[str, Any]:
        if self.path is not None or not self.is_emulated:
            return super().provenance()
        return super().provenance() | {
            "population_sha256": sha256(weights_file(find(self.population)))
        }

    # --- columns ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        roles = dict(super().roles(catalogue, training))
        if training:
            family = self.declared["rest_{filter}"]
            for band in REST_BANDS:
                name = str(self.columns.get(f"rest_{band}", f"rest_{band}"))
                roles[f"rest_{band}"] = CatalogueColumn(family, name, catalogue.units.get(name))
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        batch = super().to_batch(columns, training)
        if training:
            rest = np.stack([columns[f"rest_{band}"] for band in REST_BANDS], 1)
            batch["rest_magnitudes"] = torch.from_numpy(rest).float()
        for name in QUANTITIES:
            if (values := columns.get(f"true_{name}")) is not None:
                batch[f"true_{name}"] = torch.from_numpy(values).float()
        return batch


def spectra_batch(
    wavelength: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    good: np.ndarray,
    resolution: np.ndarray,
) -> Rows:
    """Spectra (n, m) as batches hold them, of resolutions (n,); see `spectra.FeniksSpectra`."""
    return {
        "spectrum_wavelength": torch.from_numpy(wavelength).float(),
        "spectrum_flux": torch.from_numpy(flux).float(),
        "spectrum_error": torch.from_numpy(error).float(),
        "spectrum_good": torch.from_numpy(good),
        "spectrum_resolution": torch.from_numpy(resolution).float(),
    }
