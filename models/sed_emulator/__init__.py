"""sed_emulator: a network in place of stellar population synthesis, which fits galaxies with it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import (
    Batch,
    Component,
    Constant,
    Data,
    Evaluation,
    Exported,
    Fit,
    Migration,
    Output,
    PredictedRows,
)
from orrery.models.sed_emulator.covariance import ErrorNetwork, Errors
from orrery.models.sed_emulator.evaluation import evaluate, relative_errors
from orrery.models.sed_emulator.exported import exported
from orrery.models.sed_emulator.fit_rows import fit_rows
from orrery.models.sed_emulator.fitting import PADDING
from orrery.models.sed_emulator.migrations import ensemble_settings
from orrery.models.sed_emulator.networks import DirectNetwork, HistoryNetwork
from orrery.models.sed_emulator.outputs import DERIVED_TEXT, QUANTILES, outputs
from orrery.models.sed_emulator.posterior import Photometry, photometry
from orrery.models.sed_emulator.some_bands import SomeBands
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.filters import load_filter
from orrery.physics.sps.population import LOG_AGES, LOG_Z
from orrery.physics.sps.priors import Priors, read_priors
from orrery.physics.sps.synthesis import Synthesis, derived, linear_weights, parameter_names

ARCHITECTURES = ("history", "direct", "spectra")
INFERENCE = ("laplace", "ensemble")
LOSS_CORNER = 0.02  # mag: larger residuals count linearly
VALIDATED_SPECTRA = 1000  # galaxies by which errors of spectra are measured
AT_ONCE_SPECTRA = 128  # galaxies
SHORTEST = 300.0  # Angstrom: spectra begin there
AT_ONCE = {"laplace": 512, "ensemble": 64}  # galaxies


@runtime_checkable
class HasSynthesis(Protocol):
    """Data that are drawn by the exact generator."""

    @property
    def synthesis(self) -> Synthesis:
        """The generator, which is loaded when it is asked for."""


class SedEmulator(Component):
    """AB magnitudes of galaxies from their parameters by a network, and the fit of galaxies.

    After arXiv:2306.16442. The network learns what a generator (`physics.sps.synthesis`) computes.
    What it gets wrong is measured on held-out galaxies as a covariance over bands that depends on
    the galaxy, and is a part of the likelihood when galaxies are fitted.

    In: the batch of `datamodules.sed_emulator`. Out: see `outputs`.

    Args:
        bands: label -> filter of the magnitudes, in order.
        wavelengths: pivot wavelengths of the filters, Angstrom.
        parameters: name -> prior, see `physics.sps.priors.read_priors`.
        nebular: whether gas emits.
        population: name of the stellar populations; None: those of a user's table of galaxies.
        lines: name -> wavelength in vacuum, Angstrom, of the lines that gas emits.
        metallicities: Z / Z_sun at which there are populations, see `SpectrumNetwork`.
        ionisations: log10 of ionisation parameters at which there are tables of the gas.
        architecture: "history", a network of the light of each bin of the star formation history,
            which are then added; "direct", of the magnitudes of a galaxy, as published; or
            "spectra", of the spectrum of each bin, which has bands of any filters.
        n_components: principal components of these spectra.
        width: neurons of a hidden layer.
        depth: hidden layers.
        error_rank: directions in which the emulator's errors of bands go together; 0: none.
        lr: peak learning rate.
        epochs: passes over the training galaxies.
        inference: "laplace", a normal approximation at each maximum, or "ensemble", walkers that
            sample the posterior itself.
        walkers: of each of two ensembles per galaxy.
        steps: of each walker, of which the last half counts.
        draws: of the posterior that are written for each galaxy; 0: none.
        seed: of random draws.
    """

    quantity_texts: ClassVar[Mapping[str, tuple[str, str]]] = DERIVED_TEXT  # besides parameters
    migrations: ClassVar[Sequence[Migration]] = (ensemble_settings,)
    prediction_settings: ClassVar = frozenset(("inference", "walkers", "steps", "draws"))
    may_be_zero: ClassVar = frozenset(("seed", "error_rank", "draws"))

    surviving: Tensor

    def __init__(
        self,
        bands: Mapping[str, str],
        wavelengths: Sequence[float],
        parameters: Mapping[str, Any],
        nebular: bool = False,
        population: str | None = "analytic",
        lines: Mapping[str, float] | None = None,
        metallicities: Sequence[float] = (),
        ionisations: Sequence[float] = (),
        architecture: str = "history",
        n_components: int = 60,
        width: int = 128,
        depth: int = 3,
        error_rank: int = 3,
        lr: float = 5e-3,
        epochs: int = 40,
        inference: str = "laplace",
        walkers: int = 32,
        steps: int = 400,
        draws: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(Fit(epochs=epochs, lr=lr))
        for name, value, known in (
            ("architecture", architecture, ARCHITECTURES),
            ("inference", inference, INFERENCE),
        ):
            if value not in known:
                raise ValueError(f"model.{name}={value}; expected one of {', '.join(known)}")
        self.bands, self.filters = list(bands), dict(bands)
        self.wavelengths = [float(x) for x in wavelengths]
        self.population, self.inference, self.walkers = population, inference, walkers
        self.steps, self.draws, self.seed = steps, draws, seed
        self.names = parameter_names(nebular)
        self.priors: Priors = read_priors(parameters, self.names)
        self.network: HistoryNetwork | DirectNetwork | SpectrumNetwork
        if architecture == "history":
            self.network = HistoryNetwork(self.names, wavelengths, width, depth)
        elif architecture == "spectra":
            self.network = SpectrumNetwork(
                self.names,
                len(bands),
                lines or {},
                metallicities,
                ionisations,
                n_components,
                width,
                depth,
            )
        else:
            self.network = DirectNetwork(self.names, len(bands), width, depth)
        self.error_network = ErrorNetwork(len(self.names) - 1, len(bands), error_rank)
        self.error_network.requires_grad_(False)  # `calibrate` fits it
        # share of the mass formed that is in stars and remnants, (log Z, ages); NaN: unknown
        shape = len(LOG_Z), len(LOG_AGES)
        self.register_buffer("surviving", torch.ones(shape))
        self._some_bands: SomeBands | None = None  # those that were fitted last

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        batch = data.training_batch()
        if isinstance(self.network, SpectrumNetwork):
            box = self.priors.low, self.priors.high
            self.network.learn_basis(_synthesis(data), batch["parameters"], *box)
        else:
            self.network.prepare(
                batch["parameters"], batch["magnitudes"], self.priors.low, self.priors.high
            )
        self.surviving.fill_(torch.nan)
        if self.population is not None and isinstance(data, HasSynthesis):
            population = data.synthesis.population
            weight = linear_weights(10 ** torch.from_numpy(LOG_Z).float(), population.metallicity)
            self.surviving.copy_(weight @ population.surviving)

    def on_fit_start(self) -> None:
        """The populations, which no checkpoint holds, for a run that is resumed too."""
        if isinstance(self.network, SpectrumNetwork):
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.network.learn_from(_synthesis(data).population)

    def loss(self, batch: Batch) -> Tensor:
        """Mean size of residuals, mag: quadratic where they are small, linear where large.

        Of spectra see `SpectrumNetwork.loss`.
        """
        if isinstance(self.network, SpectrumNetwork):
            return self.network.loss(batch["parameters"])
        return mean_size(self.network(batch["parameters"]) - batch["magnitudes"])

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Fit the covariance of the emulator's errors to the validation galaxies."""
        self._some_bands = None  # of other weights
        batch = data.validation_batch()
        parameters = batch["parameters"].to(self.surviving)
        residual = self.emulate(parameters) - batch["magnitudes"].to(parameters)
        self.error_network.requires_grad_(True)
        self.error_network.fit(self.error_inputs(parameters), residual, self.seed)
        self.error_network.requires_grad_(False)
        if isinstance(self.network, SpectrumNetwork):
            few = parameters[:VALIDATED_SPECTRA]
            error = relative_errors(self.network, _synthesis(data), few)
            self.network.pixel_error.copy_(error.abs().quantile(0.68, 0))

    # --- the emulator -------------------------------------------------------------------------

    def emulate(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of parameters (n, p) within the box of the priors."""
        magnitudes: Tensor = self.network(parameters)
        return magnitudes

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes, and their derivatives by parameters, (n, bands, p)."""
        return self.network.derivatives(parameters)

    def error_inputs(self, parameters: Tensor) -> Tensor:
        """Parameters (n, p - 1), -1 to 1 within the box, without the mass."""
        x = 2 * (parameters - self.network.low) / (self.network.high - self.network.low) - 1
        return x[:, 1:]

    def errors(self, parameters: Tensor) -> Errors:
        """Covariance over bands of the emulator's error at parameters (n, p)."""
        errors: Errors = self.error_network(self.error_inputs(parameters))
        return errors

    @torch.no_grad()
    def magnitudes(self, parameters: Any) -> dict[str, np.ndarray]:
        """AB magnitudes, (n, bands), and their errors by the emulator, of parameters (n, p).

        ``parameters``: an array in the order of ``names``, or a dict of arrays by name. Outside the
        box of the priors, where nothing was learned, both are NaN.
        """
        x = self._given(parameters, "magnitudes")
        outside = self.priors.outside(x)[:, None]
        values = {"magnitude": self.emulate(x), "error": self.errors(x).total().sqrt()}
        return {
            name: torch.where(outside, torch.nan, value).cpu().numpy()
            for name, value in values.items()
        }

    @torch.no_grad()
    def photometry(self, parameters: Any, bands: Any) -> dict[str, np.ndarray]:
        """Fluxes (n, bands), uJy, through any filters, of parameters (n, p), of "spectra" alone.

        ``bands``: a filter or a list of them, see `physics.sps.filters.load_filter`; ``parameters``
        as for `magnitudes`. Fluxes are proportional to 10^logmass, and NaN outside the box of the
        priors. `SpectrumNetwork.fluxes` is the same on tensors, and can be differentiated.
        """
        network = self._spectra("photometry")
        x = self._given(parameters, "photometry")
        texts = [bands] if isinstance(bands, str) else list(bands)
        layer = network.layer([load_filter(text) for text in texts])
        flux = torch.cat([network.fluxes(part, layer) for part in x.split(AT_ONCE_SPECTRA)])
        outside = self.priors.outside(x)[:, None]
        return {"flux": torch.where(outside, torch.nan, flux).cpu().numpy()}

    @torch.no_grad()
    def spectrum(
        self,
        parameters: Any,
        wavelength: Any,
        sigma_v: Any = 0.0,
        resolution: float | None = None,
        sigma_gas: Any = None,
    ) -> dict[str, np.ndarray]:
        """Spectra (n, m) of parameters (n, p), of "spectra" alone: ``flux`` and ``error``, uJy.

        ``wavelength`` (m,): observed, Angstrom in vacuum; ``sigma_v``: velocity dispersion of the
        stars, km/s, a number or (n,); ``sigma_gas``: of the gas, by default the same;
        ``resolution``: of the spectrograph, wavelength over FWHM. ``error`` is the emulator's, 68%,
        NaN beyond 3,000 to 7,500 A at rest, where spectra are coarse. NaN outside the box of the
        priors. `SpectrumNetwork.spectrum` is the same on tensors, and can be differentiated.
        """
        network = self._spectra("spectrum")
        x = self._given(parameters, "spectrum")
        at = torch.from_numpy(np.atleast_1d(np.asarray(wavelength, float))).to(x.device)
        if not (at > SHORTEST).all():
            raise ValueError(
                f"spectrum(): wavelengths begin at {float(at.min()):g}; expected Angstrom, above "
                f"{SHORTEST:g} (1 micron is 10,000)"
            )
        stars, gas = (
            torch.as_tensor(np.asarray(v, np.float32)).to(x).expand(len(x))
            for v in (sigma_v, sigma_v if sigma_gas is None else sigma_gas)
        )
        parts = [
            network.spectrum(x[rows], at, stars[rows], resolution, gas[rows])
            for rows in torch.arange(len(x)).split(AT_ONCE_SPECTRA)
        ]
        flux = torch.cat(parts)
        outside = self.priors.outside(x)[:, None]
        values = {"flux": flux, "error": flux * network.relative_error(x, at)}
        return {
            name: torch.where(outside, torch.nan, value).cpu().numpy()
            for name, value in values.items()
        }

    def _spectra(self, caller: str) -> SpectrumNetwork:
        if not isinstance(self.network, SpectrumNetwork):
            raise ValueError(
                f"{caller}(): this model gives magnitudes of its own bands alone; spectra and "
                f"other bands are of one trained with model.architecture=spectra, such as "
                f"load('sed_emulator_spectra')"
            )
        return self.network

    def _given(self, parameters: Any, caller: str) -> Tensor:
        """Parameters (n, p) of an array, or of a dict of arrays by name."""
        if isinstance(parameters, Mapping):
            if missing := [name for name in self.names if name not in parameters]:
                raise ValueError(
                    f"{caller}(): parameters lack {', '.join(missing)}; expected "
                    f"{', '.join(self.names)}"
                )
            columns = np.broadcast_arrays(*(np.asarray(parameters[n], float) for n in self.names))
            parameters = np.stack(columns, -1)
        x = torch.from_numpy(np.atleast_2d(np.asarray(parameters, np.float32))).to(self.surviving)
        if x.shape[1] != len(self.names):
            raise ValueError(
                f"{caller}(): parameters have shape {tuple(x.shape)}; expected (n, "
                f"{len(self.names)}): {', '.join(self.names)}"
            )
        return x

    # --- fitting galaxies ---------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        columns: dict[str, Output | Constant] = dict(
            outputs(self.names, self.draws, self.quantity_texts)
        )
        columns["band"] = Constant(np.array(self.bands), "bands")
        if self.draws:
            columns["parameter"] = Constant(np.array(self.names), "parameters")
        return columns

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        size, data = AT_ONCE[self.inference], photometry(batch)
        # free redshifts have several modes, and rows do not depend on their neighbours
        is_free = data.zred.isnan()
        kinds = [mask.nonzero()[:, 0] for mask in (is_free, ~is_free)]
        chosen = [rows for kind in kinds for rows in kind.split(size) if len(rows)]
        emulator = self.of_catalogue(batch)
        parts = [self._fit_padded(emulator, data, rows) for rows in chosen]
        order = torch.cat(chosen).argsort()
        rows = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        if "true_parameters" in batch:
            for name, values in self.quantities(batch["true_parameters"]).items():
                rows[f"{name}_true"] = values
        return rows

    def quantities(self, parameters: Tensor) -> dict[str, Tensor]:
        """Parameters and what follows from them, (n,) each, of parameters (n, p)."""
        found = dict(zip(self.names, parameters.unbind(1), strict=True))
        metallicity = 10 ** torch.from_numpy(LOG_Z).to(parameters)
        return found | derived(parameters, self.names, metallicity, self.surviving)

    def of_catalogue(self, batch: Batch) -> SomeBands:
        """The emulator of the bands that the catalogue of a batch has."""
        known = batch.get("in_catalogue")
        bands = torch.arange(len(self.bands)) if known is None else known[0].nonzero()[:, 0]
        bands = bands.to(self.surviving.device)
        last = self._some_bands
        if last is None or last.bands.device != bands.device or not torch.equal(last.bands, bands):
            self._some_bands = SomeBands(self, bands)
        assert self._some_bands is not None
        return self._some_bands

    def _fit_padded(
        self, emulator: SomeBands, data: Photometry, chosen: Tensor
    ) -> dict[str, Tensor]:
        """`fit_rows` of chosen galaxies, in a batch of a multiple of `PADDING` rows.

        Products of matrices of few rows are rounded in another way than of many, and by how a step
        is rounded it is taken or not.
        """
        more = chosen[:1].expand(-len(chosen) % PADDING)
        found = fit_rows(self, emulator, data.rows(torch.cat([chosen, more])))
        return {name: values[: len(chosen)] for name, values in found.items()}

    def posterior_rows(self, parameters: Tensor) -> dict[str, Tensor]:
        """Rows of galaxies by draws of their parameters, (galaxies, draws, p)."""
        n, n_draws = parameters.shape[:2]
        levels = torch.tensor(list(QUANTILES.values())).to(parameters)
        rows: dict[str, Tensor] = {}
        quantities = self.quantities(parameters.flatten(0, 1))
        found = {name: values.reshape(n, n_draws) for name, values in quantities.items()}
        for name, values in found.items():
            quantiles = values.quantile(levels, dim=1)
            rows |= {f"{name}{s}": q for s, q in zip(QUANTILES, quantiles, strict=True)}
        rows |= self.probabilities(found)
        if self.draws:
            # draws are in the order of modes or walkers: evenly among them
            chosen = torch.arange(self.draws, device=parameters.device) * n_draws // self.draws
            rows["posterior"] = parameters[:, chosen]
        return rows

    def probabilities(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """More columns (galaxies,) from `quantities` of draws, (galaxies, draws) each."""
        return {}

    # --- evaluation ---------------------------------------------------------------------------

    def domain_of_validity(self) -> list[str]:
        ranges = [
            f"{name} {low:g} to {high:g}"
            for name, low, high in zip(
                self.names, self.priors.low.tolist(), self.priors.high.tolist(), strict=True
            )
        ]
        source = {
            "analytic": "analytic stellar populations, a demonstrator: its galaxies are not real",
            None: "a user's table of synthetic galaxies",
        }.get(self.population, f"stellar populations {self.population}")
        spectra = (
            "other bands, and spectra of stars and gas: of a FWHM of 2.5 A at rest from 3,000 to "
            "7,500 A, and of 750 km/s beyond",
        )
        return [
            f"galaxies made of {source}",
            f"parameters within {'; '.join(ranges)}; beyond, `magnitudes` gives NaN, and a fit "
            f"whose redshift, mass or dust is at the edge is flagged",
            f"the bands {', '.join(f'{k} ({v})' for k, v in self.filters.items())}",
            *(spectra if isinstance(self.network, SpectrumNetwork) else ()),
            "no AGN; star formation histories of seven bins; one metallicity per galaxy",
            f"`flags`, {self.columns['flags'].text}",
        ]

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """Magnitudes of parameters."""
        return exported(self)


def mean_size(residual: Tensor) -> Tensor:
    """Mean over residuals in mag: quadratic where they are small, linear where they are large."""
    return (residual.square() / (residual.abs() + LOSS_CORNER)).mean()


def _synthesis(data: Any) -> Synthesis:
    """The generator of a simulation, from which spectra are learned."""
    if not data.is_simulation or not isinstance(data, HasSynthesis):
        raise ValueError(
            f"{data.label} holds magnitudes, and model.architecture=spectra learns spectra, which "
            f"the generator alone has: leave out data.path, or take model.architecture=history"
        )
    if not data.synthesis.population.fine.numel():
        raise ValueError(
            f"galaxies of data.population={data.synthesis.population.name} have no spectra of "
            f"populations, which model.architecture=spectra learns: set data.population=bc03_miles"
        )
    return data.synthesis
