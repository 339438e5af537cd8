"""scatter_vae: a generative model of Gaia BP/RP spectra that knows their intrinsic scatter."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from orrery.models.base import (
    Batch,
    Component,
    Constant,
    Evaluation,
    Fit,
    ObjectRequest,
    Output,
    PredictedRows,
)
from orrery.models.scatter_vae.em import polish
from orrery.models.scatter_vae.evaluation import evaluate
from orrery.models.scatter_vae.inference import Posterior, Whitening, posterior
from orrery.models.scatter_vae.likelihood import covariant_nll, lowrank_nll
from orrery.models.scatter_vae.networks import Published, Recipe
from orrery.models.scatter_vae.outputs import generated_outputs, outputs, rows_of
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp

PRESETS = ("default", "paper")
COVARIANCES = ("full", "lowrank", "diagonal")
PATIENCE = 4  # times as many steps for stars without a band
POPULATION = 4096  # latent means that are kept, to generate stars like those of the training set
GENERATED_PER_CHUNK = 4096  # stars
SLICE = 256  # stars predicted at once: their matrices fit the cache
AMPLITUDE = 0.1  # what is known beforehand of a star's amplitude, relative to its flux
BRIGHT = 0.9  # quantile of a star's weight beyond which more does not count, in PCA


class ScatterVAE(Component):
    """A variational auto-encoder of XP coefficients with intrinsic scatter, after arXiv:2307.06378.

    A star's coefficients x, divided by a flux, are normal about the decoder's mean x(z), with the
    covariance of their errors, e_i R_ij e_j, and an intrinsic scatter s_i(z) of each coefficient:
    K = D (R + diag(s^2 / e^2)) D. Six latent numbers z, normal a priori, say what kind of star it
    is; no stellar label is used. The default network is a linear map that begins as PCA, plus what
    an MLP adds to it, in units of the median error; ``preset=paper`` is the published one.
    Training begins with errors taken as uncorrelated (``warm_up``, a share of the epochs), and
    ends with ``covariance``. In prediction the encoder's z is mended by ``refine`` Gauss-Newton
    steps, which is what lets a star without BP be answered.

    In: the batch of `datamodules.scatter_vae`. Out: see `models.scatter_vae.outputs`.
    """

    def __init__(
        self,
        bands: Mapping[str, int],
        normalised_by: str,
        preset: str = "default",
        latent: int = 6,
        covariance: str = "full",
        warm_up: float = 0.7,
        beta: float = 1.0,
        width: int = 128,
        depth: int = 2,
        refine: int = 3,
        polish: int = 3,
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
        self.latent, self.beta, self.warm_up, self.refine = latent, beta, warm_up, refine
        self.rounds = polish
        self.paper = preset == "paper"
        self.covariance = "diagonal" if self.paper else covariance
        n = sum(self.bands.values())
        if self.paper:
            self.refine = 0
            self.network: Recipe | Published = Published(n, latent)
        else:
            self.network = Recipe(n, latent, 2 * len(self.bands), width, depth)

        self.center: Tensor
        self.scale: Tensor
        self.components: Tensor
        self.spread: Tensor
        self.population: Tensor
        self.register_buffer("center", torch.zeros(n))  # of coefficients / flux
        self.register_buffer("scale", torch.ones(n))  # the unit of all that the network sees
        self.register_buffer("components", torch.eye(n))  # principal ones, in columns
        self.register_buffer("spread", torch.ones(n))  # of stars along them
        self.register_buffer("population", torch.zeros(POPULATION, latent))
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
    def prepare(self, data: Any) -> None:
        """Units and principal components, of the training stars that have all bands.

        Bright stars weigh more in the components, as their errors say, up to a limit.
        """
        batch = data.training_batch()
        whole = batch["observed"].bool().all(1)
        flux = batch["flux"][whole, None].double()
        x, e = (batch[name][whole].double() / flux for name in ("coefficients", "errors"))
        self.center = x.mean(0).float()
        self.scale = (x.std(0) if self.paper else e.median(0).values).float()
        weight = 1 / (e / self.scale).square().mean(1)
        weight = weight.clamp(max=float(weight.quantile(BRIGHT)))
        weight = weight / weight.sum()
        if not self.paper:
            self.center = (weight @ x).float()
        y = (x - self.center) / self.scale
        values, vectors = torch.linalg.eigh((y.T * weight) @ y)
        self.components = vectors.flip(1).float()
        self.spread = values.flip(0).clamp_min(1.0).sqrt().float()  # errors are 1

    @torch.no_grad()
    def calibrate(self, data: Any) -> None:
        """Polish decoder and scatter, and keep where training stars lie, for `generate`."""
        batch = data.training_batch()
        if self.rounds and not self.paper:
            polish(self, batch, self.rounds)
        n = len(batch["flux"])
        few = torch.arange(POPULATION) * n // POPULATION if n > POPULATION else torch.arange(n)
        y, error = self._standard({k: v[few].to(self.device) for k, v in batch.items()})
        observed = batch["observed"][few].to(self.device)
        mean, _ = self._encode(y, error, observed)
        self.population[: len(mean)] = mean
        self.population[len(mean) :] = mean[torch.arange(POPULATION - len(mean)) % len(mean)]

    # --- likelihood ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """-ELBO per star, up to a constant: nats of its coefficients and ``beta`` times the KL."""
        y, error = self._standard(batch)
        mean, log_variance = self._encode(y, error, batch["observed"])
        z = mean
        if "noise" in batch:  # of training: one draw of the posterior
            z = mean + (0.5 * log_variance).exp() * batch["noise"]
        decoded = self._decode(z)
        r = (y - decoded) / error
        t = (self.network.spread(z) / error).square()
        if not self.paper:
            r = self._free_amplitude(r, t, decoded, error, batch["observed"])
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (self._nll(r, t, batch) + self.beta * kl).mean()

    def nll_at(self, z: Tensor, batch: Batch) -> Tensor:
        """-ln p of stars of known latent numbers and amplitude, up to a constant, (batch,)."""
        y, error = self._standard(batch)
        t = (self.network.spread(z[:, : self.latent]) / error).square()
        return self._nll((y - self._scaled(z)) / error, t, batch)

    def _free_amplitude(
        self, r: Tensor, t: Tensor, decoded: Tensor, error: Tensor, observed: Tensor
    ) -> Tensor:
        """Residuals after the best amplitude, without which the noise of the flux that coefficients
        are divided by would be learned as scatter."""
        shape = (decoded + self.center / self.scale) / error
        weight = self._seen(observed) / (1 + t)
        best = (weight * shape * r).sum(1) / (weight * shape.square()).sum(1)
        return r - best[:, None] * shape

    def _nll(self, r: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Of residuals in units of the errors, (batch,); missing bands say nothing."""
        warming = self.training and self.current_epoch < self.warm_up * self.fit.epochs
        total = torch.zeros_like(r[:, 0])
        sizes = list(self.bands.values())
        parts = zip(self.bands, r.split(sizes, 1), t.split(sizes, 1), strict=True)
        for i, (band, of_band, ratio) in enumerate(parts):
            if self.covariance == "lowrank" and not warming and f"factor_{band}" in batch:
                nll = lowrank_nll(of_band, ratio, batch[f"factor_{band}"])
            elif self.covariance == "full" and not warming and f"correlations_{band}" in batch:
                nll = covariant_nll(of_band, ratio, batch[f"correlations_{band}"])
            else:
                nll = -Normal(0, (1 + ratio).sqrt(), validate_args=False).log_prob(of_band).sum(1)
            total = total + nll * batch["observed"][:, i]
        return total

    def _standard(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Coefficients and errors in the network's units; 0 and 1 where a band is missing."""
        flux = batch["flux"][:, None]
        y = (batch["coefficients"] / flux - self.center) / self.scale
        error = batch["errors"] / flux / self.scale
        seen = self._seen(batch["observed"])
        return torch.where(seen, y, 0.0), torch.where(seen, error, 1.0)

    def _seen(self, observed: Tensor) -> Tensor:
        sizes = torch.tensor(list(self.bands.values()), device=observed.device)
        return observed.bool().repeat_interleave(sizes, 1)

    def _encode(self, y: Tensor, error: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        if self.paper:
            return self.network.encode(y, observed)
        sizes = list(self.bands.values())
        levels = torch.stack([part.log().mean(1) for part in error.split(sizes, 1)], 1)
        context = torch.cat([levels, observed], 1)
        return self.network.encode((y @ self.components) / self.spread, context)

    def _decode(self, z: Tensor) -> Tensor:
        """Coefficients without noise, (batch, n), in the network's units."""
        decoded = self.network.decode(z)
        return decoded if self.paper else (decoded * self.spread) @ self.components.T

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        declared: dict[str, Output | Constant] = dict(outputs(self.bands, self.spectra is not None))
        if self.spectra is not None:
            declared["wavelength"] = Constant(self.wavelengths, "wavelength")
        return declared

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        n = len(batch["flux"])
        # stars without a band apart, for they need more steps, and none should depend on another
        order = batch["observed"].min(1).values.argsort(descending=True, stable=True)
        n_whole = int(batch["observed"].min(1).values.sum())
        ends = [*range(0, n_whole, SLICE), *range(n_whole, n, SLICE), n]
        chosen = [order[i:j] for i, j in pairwise(ends)]
        with torch.autocast(self.device.type, enabled=False):
            parts = [self._predict({k: v[i] for k, v in batch.items()}) for i in chosen]
        back = order.argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _predict(self, batch: Batch) -> dict[str, Tensor]:
        found = self.posterior(batch)
        return rows_of(
            found,
            batch,
            reconstruction=self._scaled(found.mean) * self.scale + self.center,
            factor=found.jacobian * self.scale[:, None],
            scatter=self.network.spread(found.mean[:, : self.latent]) * self.scale,
            seen=self._seen(batch["observed"]),
            bands=self.bands,
            latent=self.latent,
            spectra=self.spectra,
        )

    def _scaled(self, z: Tensor) -> Tensor:
        """`_decode` of the latent numbers times an amplitude, 1 + AMPLITUDE of the last number."""
        decoded, zero = self._decode(z[:, : self.latent]), self.center / self.scale
        return decoded + AMPLITUDE * z[:, self.latent :] * (decoded + zero)

    def posterior(self, batch: Batch) -> Posterior:
        """Of z and the amplitude, by star; of the encoder and of 1 where there are no steps."""
        y, error = self._standard(batch)
        mean, log_variance = self._encode(y, error, batch["observed"])

        def whitening(z: Tensor) -> Whitening:
            t = (self.network.spread(z[:, : self.latent]) / error).square()
            return Whitening(t, batch, self.bands)

        start = F.pad(mean, (0, 1))
        patient = not bool(batch["observed"].all())  # the encoder starts such stars far off
        steps = self.refine * (PATIENCE if patient else 1)
        found = posterior(start, self._scaled, y, error, whitening, steps)
        if self.paper:
            variance = F.pad(log_variance.exp(), (0, 1), value=1e-12)
            found = found._replace(covariance=variance.diag_embed())
        return found

    @torch.no_grad()
    def generate(
        self, n: int, near: Any = None, spread: float = 1.0, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """n stars of flux 1: ``latent`` (n, latent), ``coefficients`` (n, coefficients) without
        noise, ``scatter`` of them, and a ``spectrum`` at ``wavelengths`` where those are known.

        ``near``: a place in latent space, (latent,), such as a star's ``latent_mean``; stars are
        drawn about it with a standard deviation of ``spread`` times the nearest neighbours' of the
        training set. ``near="prior"``: from the standard normal prior. None: as the training set.
        """
        if near is not None and not isinstance(near, str):
            near = np.asarray(near, np.float32)
        known = near is None or (isinstance(near, str) and near == "prior")
        if not known and (np.shape(near) != (self.latent,) or not np.isfinite(near).all()):
            raise ValueError(
                f"near is {near!r}; expected {self.latent} numbers, such as a star's latent_mean, "
                f"'prior', or None for stars like the training set's"
            )
        generator = torch.Generator().manual_seed(seed)
        population = self.population.cpu()
        drawn = torch.randn(n, self.latent, generator=generator)
        if near is None:
            chosen = torch.randint(len(population), (n,), generator=generator)
            z = population[chosen]
        elif isinstance(near, str) and near == "prior":
            z = spread * drawn
        else:
            place = torch.as_tensor(near)[None]
            distance = (population - place).square().sum(1)
            around = population[distance.topk(min(64, len(population)), largest=False).indices]
            z = place + spread * drawn * around.std(0)
        z = z.to(self.device)
        coefficients = self._decode(z) * self.scale + self.center
        made = {
            "latent": z,
            "coefficients": coefficients,
            "scatter": self.network.spread(z) * self.scale,
        }
        found = {name: values.cpu().numpy() for name, values in made.items()}
        if self.spectra is not None:
            found["spectrum"] = self.spectra.flux(coefficients).cpu().numpy()
            found["wavelength"] = self.wavelengths
        return found

    def generated(self, request: ObjectRequest) -> Iterator[dict[str, np.ndarray]]:
        """``request.n`` stars like the training set's, in chunks of `generate`."""
        for i, start in enumerate(range(0, request.n, GENERATED_PER_CHUNK)):
            size = min(GENERATED_PER_CHUNK, request.n - start)
            # chunks of other seeds have other random numbers
            stars = self.generate(size, seed=1_000_003 * request.seed + i)
            yield {name: stars[name] for name in generated_outputs(self.spectra is not None)}

    def generated_columns(self, request: ObjectRequest) -> dict[str, Output | Constant]:
        """The columns of `generated`, and the wavelengths of the spectra."""
        columns: dict[str, Output | Constant] = {**generated_outputs(self.spectra is not None)}
        if self.spectra is not None:
            columns["wavelength"] = Constant(self.wavelengths, "wavelength")
        return columns

    def observed_spectra(self, batch: Batch) -> dict[str, Tensor]:
        """Spectra with their errors, and what scatter adds to a spectrum, for the figures."""
        scatter = self.predict_step(batch)["scatter"]
        if self.spectra is None:
            observed = {"observed": batch["coefficients"], "observed_error": batch["errors"]}
            return observed | {"observed_scatter": scatter}
        packed = {b: batch[f"correlations_{b}"] for b in self.bands if f"correlations_{b}" in batch}
        whole = packed if len(packed) == len(self.bands) else None
        return {
            "observed": self.spectra.flux(batch["coefficients"]),
            "observed_error": self.spectra.error(batch["errors"], whole),
            "observed_scatter": self.spectra.error(scatter),
        }

    def domain_of_validity(self) -> list[str]:
        counts = " + ".join(f"{n} of {band}" for band, n in self.bands.items())
        lines = [
            f"{counts} numbers per star, divided by {self.normalised_by}",
            "stars like the training set's; `p_value`, `outlier_score` and `flags` tell others",
            "`chi2` is per degree of freedom; `nll` counts half a nat for each number fitted",
        ]
        if "simulation" in self.record.get("data", {}):
            lines.append(
                "simulated stars, of an analytic family: real ones are flagged as misfits; to "
                "describe those, train on real spectra (docs/scatter_vae.md)"
            )
        return lines

    # --- how good it is -----------------------------------------------------------------------

    def evaluate(self, rows: PredictedRows, data: Any) -> Evaluation:
        return evaluate(self, rows, data)
