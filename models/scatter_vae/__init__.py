"""scatter_vae: a generative model of Gaia BP/RP spectra with intrinsic scatter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from orrery.models.base import (
    Batch,
    Component,
    Constant,
    Data,
    Evaluation,
    Exported,
    Fit,
    ObjectRequest,
    Output,
    PredictedRows,
)
from orrery.models.scatter_vae.em import expectation_maximisation
from orrery.models.scatter_vae.evaluation import evaluate
from orrery.models.scatter_vae.exported import exported
from orrery.models.scatter_vae.generation import generate, generated_chunks
from orrery.models.scatter_vae.inference import (
    LatentPosterior,
    ModeWhitening,
    Whitening,
    Whitens,
    posterior,
)
from orrery.models.scatter_vae.likelihood import covariant_nll, lowrank_nll, mode_nll
from orrery.models.scatter_vae.migrations import em_rounds_setting
from orrery.models.scatter_vae.networks import Components, PaperVAE, ResidualVAE
from orrery.models.scatter_vae.outputs import (
    covers_both_bands,
    generated_outputs,
    outputs,
    predicted_rows,
)
from orrery.models.scatter_vae.search import outliers, similar
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.sampled import covers, error_modes

if TYPE_CHECKING:
    from astropy.table import Table

PRESETS = ("default", "paper")
COVARIANCES = ("full", "lowrank", "diagonal")
MISSING_BAND_STEPS = 4  # times as many Gauss-Newton steps for stars without a band
POPULATION = 4096  # latent means that are kept, to generate stars like those of the training set
STARS_AT_ONCE = 256  # predicted together: their matrices fit the cache
AMPLITUDE_ERROR = 0.1  # prior standard deviation of a star's amplitude, relative to its flux
MAX_WEIGHT_QUANTILE = 0.9  # of stars' weights in PCA, at which they are cut


class ScatterVAE(Component):
    """A variational auto-encoder of XP coefficients with intrinsic scatter, after arXiv:2307.06378.

    A star's coefficients x, divided by a flux, are normal about the decoder's mean x(z), with the
    covariance of their errors, e_i R_ij e_j, and an intrinsic scatter s_i(z) of each coefficient:
    K = D (R + diag(s^2 / e^2)) D. The latent numbers z, normal a priori, describe the star; no
    stellar label is used.

    In: the batch of `datamodules.scatter_vae`. Out: see `models.scatter_vae.outputs`.

    Args:
        bands: coefficients of each band, such as {"bp": 55, "rp": 55}; from the data.
        normalised_by: the flux that coefficients are divided by, for the model card; from the data.
        sampled_at: wavelengths of sampled spectra, nm; from the data, None where they do not say.
        preset: "default", a linear map that begins as PCA plus an MLP (`ResidualVAE`), or "paper",
            the published network (`PaperVAE`), trained with diagonal errors.
        latent: how many latent numbers.
        covariance: of errors in training: "full", "lowrank" or "diagonal"; scores are always full.
            Errors of sampled spectra are taken as correlated as those of DR3's are
            (`physics.gaia_xp.sampled`), where wavelengths are known, unless it is "diagonal".
        warm_up: fraction of the epochs, the first ones, with diagonal errors.
        beta: weight of the KL divergence.
        width, depth: neurons of a hidden layer, and hidden layers.
        refine: Gauss-Newton steps from the encoder's z, in prediction; they also make up for a
            missing BP.
        em_rounds: rounds after the fit in which decoder and scatter learn from exact posteriors.
        wavelengths: first, last and step of the predicted spectra, nm.
        lr, weight_decay, epochs: of the fit; ``lr`` is the peak.
    """

    migrations: ClassVar = (em_rounds_setting,)

    prediction_settings: ClassVar = frozenset(("wavelengths", "refine"))
    may_be_zero: ClassVar = frozenset(("refine", "em_rounds"))

    def __init__(
        self,
        bands: Mapping[str, int],
        normalised_by: str,
        sampled_at: Sequence[float] | None = None,
        preset: str = "default",
        latent: int = 6,
        covariance: str = "full",
        warm_up: float = 0.7,
        beta: float = 1.0,
        width: int = 128,
        depth: int = 2,
        refine: int = 3,
        em_rounds: int = 3,
        wavelengths: Sequence[float] = (336.0, 1020.0, 2.0),
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        epochs: int = 40,
    ) -> None:
        super().__init__(
            Fit(
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                clip=1e3,  # the loss counts nats of 110 coefficients
                result="last",  # the loss of the warm-up is another one
                precisions=("32-true", "bf16-mixed"),
            )
        )
        for setting, value, known in (
            ("preset", preset, PRESETS),
            ("covariance", covariance, COVARIANCES),
        ):
            if value not in known:
                raise ValueError(f"model.{setting} is '{value}'; it is one of {', '.join(known)}")
        self.bands, self.normalised_by = dict(bands), normalised_by
        self.latent, self.beta, self.warm_up = latent, beta, warm_up
        n = sum(self.bands.values())
        self.network: ResidualVAE | PaperVAE
        if preset == "paper":
            self.covariance, self.refine, self.em_rounds = "diagonal", 0, 0
            self.network = PaperVAE(n, latent)
        else:
            self.covariance, self.refine, self.em_rounds = covariance, refine, em_rounds
            self.network = ResidualVAE([*self.bands.values()], latent, width, depth)

        self.center: Tensor
        self.scale: Tensor
        self.components: Tensor
        self.component_std: Tensor
        self.population: Tensor
        self.register_buffer("center", torch.zeros(n))  # of coefficients / flux
        self.register_buffer("scale", torch.ones(n))  # the network's unit of coefficients / flux
        self.register_buffer("components", torch.eye(n))  # principal ones, in columns
        self.register_buffer("component_std", torch.ones(n))  # of stars along them
        self.register_buffer("population", torch.zeros(POPULATION, latent))
        self.sampled_at = None if sampled_at is None else np.asarray(sampled_at, float)
        modes = None  # of the errors of sampled spectra, (m, n)
        if self.covariance != "diagonal" and self.sampled_at is not None:
            covered = covers(self.sampled_at)
            modes = torch.tensor(error_modes(self.sampled_at)).float() if covered else None
        self.modes: Tensor | None
        self.register_buffer("modes", modes, persistent=False)
        self.spectra: Spectra | None = None
        if len(wavelengths) != 3 or not (wavelengths[2] > 0 and wavelengths[0] < wavelengths[1]):
            raise ValueError(
                f"model.wavelengths is {list(wavelengths)}; expected the first, the last and the "
                f"step in nm, such as [400,900,5]"
            )
        if self.bands == {band: len(i.functions) for band, i in xp.instrument().items()}:
            start, stop, step = wavelengths
            self.wavelengths = np.arange(start, stop + 0.5 * step, step)
            self.spectra = Spectra(self.wavelengths)

    # --- before and after the fit -------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, data: Data) -> None:
        """Units and principal components, of the training stars that have all bands.

        Stars of small errors weigh more in the components, up to a limit.
        """
        batch = data.training_batch()
        complete = batch["observed"].bool().all(1)
        flux = batch["flux"][complete, None].double()
        x, e = (batch[name][complete].double() / flux for name in ("coefficients", "errors"))
        self.scale = self.network.unit(x, e).float()
        weight = 1 / (e / self.scale).square().mean(1)
        weight = weight.clamp(max=float(weight.quantile(MAX_WEIGHT_QUANTILE)))
        weight = weight / weight.sum()
        self.center = self.network.center(x, weight).float()
        y = (x - self.center) / self.scale
        values, vectors = torch.linalg.eigh((y.T * weight) @ y)
        self.components = vectors.flip(1).float()
        self.component_std = values.flip(0).clamp_min(1.0).sqrt().float()  # errors are 1

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Refine decoder and scatter, and keep latent means of training stars, for `generate`."""
        batch = data.training_batch()
        if self.em_rounds:
            expectation_maximisation(self, batch, self.em_rounds)
        n = len(batch["flux"])
        kept = torch.arange(POPULATION) * n // POPULATION if n > POPULATION else torch.arange(n)
        y, error = self.standardised({k: v[kept].to(self.device) for k, v in batch.items()})
        mean, _ = self._encode(y, error, batch["observed"][kept].to(self.device))
        self.population[: len(mean)] = mean
        self.population[len(mean) :] = mean[torch.arange(POPULATION - len(mean)) % len(mean)]

    # --- likelihood ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """-ELBO per star, up to a constant: nats of its coefficients and ``beta`` times the KL."""
        y, error = self.standardised(batch)
        mean, log_variance = self._encode(y, error, batch["observed"])
        z = mean
        if "noise" in batch:  # of training: one draw of the posterior
            z = mean + (0.5 * log_variance).exp() * batch["noise"]
        decoded = self.decode(z)
        r = (y - decoded) / error
        t = (self.network.intrinsic_scatter(z) / error).square()
        if self.network.fits_amplitude:
            r = self._free_amplitude(r, t, decoded, error, batch["observed"])
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (self._nll(r, t, batch) + self.beta * kl).mean()

    def nll_at(self, z: Tensor, batch: Batch) -> Tensor:
        """-ln p of stars of known latent numbers and amplitude, up to a constant, (batch,)."""
        y, error = self.standardised(batch)
        t = (self.network.intrinsic_scatter(z[:, : self.latent]) / error).square()
        return self._nll((y - self._scaled(z)) / error, t, batch)

    def _free_amplitude(
        self, r: Tensor, t: Tensor, decoded: Tensor, error: Tensor, observed: Tensor
    ) -> Tensor:
        """Residuals for each star's best amplitude.

        Otherwise the noise of the flux that coefficients are divided by is learned as scatter.
        """
        shape = (decoded + self.center / self.scale) / error
        weight = self.coefficient_mask(observed) / (1 + t)
        best = (weight * shape * r).sum(1) / (weight * shape.square()).sum(1)
        return r - best[:, None] * shape

    def _nll(self, r: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """-ln p of residuals ``r`` in units of the errors, (batch,), without missing bands.

        ``t`` (batch, n): variance of the scatter, in those units.
        """
        warming = self.training and self.current_epoch < self.warm_up * self.fit.epochs
        if self.modes is not None and not warming:
            return mode_nll(r, t, self.modes)
        total = torch.zeros_like(r[:, 0])
        sizes = list(self.bands.values())
        parts = zip(self.bands, r.split(sizes, 1), t.split(sizes, 1), strict=True)
        for i, (band, residuals, ratio) in enumerate(parts):
            if self.covariance == "lowrank" and not warming and f"factor_{band}" in batch:
                nll = lowrank_nll(residuals, ratio, batch[f"factor_{band}"])
            elif self.covariance == "full" and not warming and f"correlations_{band}" in batch:
                nll = covariant_nll(residuals, ratio, batch[f"correlations_{band}"])
            else:
                nll = -Normal(0, (1 + ratio).sqrt(), validate_args=False).log_prob(residuals).sum(1)
            total = total + nll * batch["observed"][:, i]
        return total

    def standardised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Coefficients and errors in the network's units; 0 and 1 where a band is missing."""
        flux = batch["flux"][:, None]
        y = (batch["coefficients"] / flux - self.center) / self.scale
        error = batch["errors"] / flux / self.scale
        mask = self.coefficient_mask(batch["observed"])
        return torch.where(mask, y, 0.0), torch.where(mask, error, 1.0)

    def coefficient_mask(self, observed: Tensor) -> Tensor:
        """(batch, n) of ``observed`` (batch, bands)."""
        bands = zip(observed.bool().split(1, 1), self.bands.values(), strict=True)
        return torch.cat([band.expand(-1, n) for band, n in bands], 1)

    @property
    def in_modes(self) -> bool:
        """Whether residuals are whitened by `ModeWhitening`, in units of the errors of the modes.

        ln p then has no term of the sizes of the errors.
        """
        return self.modes is not None

    def whitened_mask(self, observed: Tensor) -> Tensor:
        """Which whitened residuals are of data, (batch, m); ``observed`` (batch, bands)."""
        if self.modes is None:
            return self.coefficient_mask(observed)
        return observed.bool().expand(-1, len(self.modes))

    def _encode(self, y: Tensor, error: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        components = Components(self.components, self.component_std)
        return self.network.encode(y, error, observed, components)

    def decode(self, z: Tensor) -> Tensor:
        """Coefficients without noise, (batch, n), in the network's units."""
        return self.network.decode(z, Components(self.components, self.component_std))

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        declared: dict[str, Output | Constant] = dict(
            outputs(self.bands, self.spectra is not None, covers_both_bands(self.sampled_at))
        )
        return declared | self.wavelength_constants()

    def wavelength_constants(self) -> dict[str, Constant]:
        """Of the spectra that are predicted, if they are known."""
        known = self.wavelengths if self.spectra is not None else self.sampled_at
        return {} if known is None else {"wavelength": Constant(known, "wavelength")}

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):
            return self.by_star(self._predict, batch)

    def by_star(
        self, compute: Callable[[Batch], dict[str, Tensor]], batch: Batch
    ) -> dict[str, Tensor]:
        """``compute`` of slices of ``batch`` that fit the cache, joined in the order of its stars.

        Stars without a band are apart: they take more steps, and no star is to depend on another.
        """
        n = len(batch["flux"])
        complete = batch["observed"].min(1).values
        order = complete.argsort(descending=True, stable=True)
        n_complete = int(complete.sum())
        ends = [*range(0, n_complete, STARS_AT_ONCE), *range(n_complete, n, STARS_AT_ONCE), n]
        parts = [compute({k: v[order[i:j]] for k, v in batch.items()}) for i, j in pairwise(ends)]
        inverse = order.argsort()
        return {name: torch.cat([part[name] for part in parts])[inverse] for name in parts[0]}

    def _predict(self, batch: Batch) -> dict[str, Tensor]:
        posterior = self.posterior(batch)
        z = posterior.mean[:, : self.latent]
        return predicted_rows(
            posterior,
            batch,
            reconstruction=self._scaled(posterior.mean) * self.scale + self.center,
            factor=posterior.jacobian * self.scale[:, None],
            scatter=self.network.intrinsic_scatter(z) * self.scale,
            observed=self.coefficient_mask(batch["observed"]),
            whitened=self.whitened_mask(batch["observed"]),
            in_modes=self.in_modes,
            bands=self.bands,
            latent=self.latent,
            spectra=self.spectra,
            sampled_at=self.sampled_at,
        )

    def _scaled(self, z: Tensor) -> Tensor:
        """`decode` of z times an amplitude, 1 + AMPLITUDE_ERROR times the last number."""
        decoded, zero = self.decode(z[:, : self.latent]), self.center / self.scale
        return decoded + AMPLITUDE_ERROR * z[:, self.latent :] * (decoded + zero)

    def posterior(self, batch: Batch) -> LatentPosterior:
        """Of z and the amplitude, by star; of the published network the encoder's, amplitude 1."""
        y, error = self.standardised(batch)
        mean, log_variance = self._encode(y, error, batch["observed"])

        def whitening(z: Tensor) -> Whitens:
            return self.whitening(z, batch)

        start = F.pad(mean, (0, 1))
        # the encoder starts stars without a band far off
        factor = 1 if bool(batch["observed"].all()) else MISSING_BAND_STEPS
        refined = posterior(start, self._scaled, y, error, whitening, self.refine * factor)
        if self.network.fits_amplitude:
            return refined
        variance = F.pad(log_variance.exp(), (0, 1), value=1e-12)
        return refined._replace(covariance=variance.diag_embed())

    def whitening(self, z: Tensor, batch: Batch) -> Whitens:
        """Of the covariance of errors and scatter for the latent numbers ``z`` of each star."""
        _, error = self.standardised(batch)
        t = (self.network.intrinsic_scatter(z[:, : self.latent]) / error).square()
        return self.whitening_of(t, batch)

    def whitening_of(self, t: Tensor, batch: Batch) -> Whitens:
        """The same for a variance of scatter ``t`` (batch, n) in units of the errors'."""
        if self.modes is not None:
            return ModeWhitening(t, self.modes)
        return Whitening(t, batch, self.bands)

    def similar(self, spectrum: Any, catalogue: Any, n: int = 10, **data: Any) -> "Table":
        """The ``n`` stars of a catalogue, a path or a table, that are most like a spectrum.

        See `models.scatter_vae.search.similar`.
        """
        return similar(self, spectrum, catalogue, n, **data)

    def outliers(self, catalogue: Any, n: int = 10, **data: Any) -> "Table":
        """The ``n`` stars of a catalogue that are explained least, and at which wavelengths.

        See `models.scatter_vae.search.outliers`.
        """
        return outliers(self, catalogue, n, **data)

    def generate(
        self, n: int, near: Any = None, spread: float = 1.0, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """n stars of flux 1: ``latent`` (n, latent), ``coefficients`` (n, coefficients) without
        noise, ``scatter`` of them, and a ``spectrum`` at ``wavelengths`` where those are known.

        ``near``: a point in latent space, (latent,), such as a star's ``latent_mean``; stars are
        drawn about it with ``spread`` times the standard deviation of its nearest neighbours in
        the training set. ``near="prior"``: from the standard normal prior. None: like the training
        set. Raises ``ValueError`` for any other ``near``.
        """
        return generate(self, n, near, spread, seed)

    def generated(self, request: ObjectRequest) -> Iterator[dict[str, np.ndarray]]:
        """``request.n`` stars like the training set's, in chunks of `generate`."""
        return generated_chunks(self, request)

    def generated_columns(self, request: ObjectRequest) -> dict[str, Output | Constant]:
        """The columns of `generated`, and the wavelengths of the spectra."""
        columns: dict[str, Output | Constant] = {**generated_outputs(self.spectra is not None)}
        return columns | self.wavelength_constants()

    def reinitialised_on_finetune(self, name: str, settings: Mapping[str, Any]) -> bool:
        if (theirs := dict(settings["bands"])) != self.bands:
            raise ValueError(
                f"init_from: the checkpoint is of {_counts(theirs)} numbers per star, and these "
                f"data have {_counts(self.bands)}: functions of another data release, for which "
                f"its weights have no meaning; train without init_from"
            )
        return False

    def domain_of_validity(self) -> list[str]:
        marks = "`p_value`, `outlier_score` and `flags` mark others"
        if self.sampled_at is not None:
            marks = "a `chi2` far above theirs marks others; `p_value` is not given"
        lines = [
            f"{_counts(self.bands)} numbers per star, divided by {self.normalised_by}",
            f"stars like the training set's; {marks}",
            "`chi2` is per degree of freedom; `nll` has half a nat for each fitted parameter",
        ]
        if self.sampled_at is not None:
            low, high = self.sampled_at[[0, -1]]
            lines += [
                f"spectra of any unit at {low:g} to {high:g} nm in {len(self.sampled_at)} samples, "
                f"as GaiaXPy's `calibrate` gives them; others are refused",
            ]
        if self.modes is not None:
            lines += [
                f"errors are taken to be as correlated as those of a fit to the transits of a star "
                f"(physics/gaia_xp/sampled.py): chi2, nll and the errors of predictions "
                f"are of their {len(self.modes)} independent modes, not of each sample"
            ]
        if "simulation" in self.record.get("data", {}):
            lines.append(
                "simulated stars, of an analytic family: real ones are flagged as misfits; to "
                "describe those, train on real spectra (docs/scatter_vae.md)"
            )
        return lines

    # --- evaluation ---------------------------------------------------------------------------

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """The encoder and the decoder."""
        return exported(self)


def _counts(bands: Mapping[str, int]) -> str:
    return " + ".join(f"{n} of {band}" for band, n in bands.items())
