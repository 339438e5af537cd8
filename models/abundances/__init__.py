"""abundances: chemical fingerprints of stellar streams, arXiv:2308.13702."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orrery.models.abundances import evaluation, extreme_deconvolution
from orrery.models.abundances.comparison import GroupedStars, compare_structures
from orrery.models.abundances.history import StarsOfAGalaxy, galaxy_posterior
from orrery.models.abundances.mixture import (
    Mixture,
    StarPosterior,
    Stars,
    log_joint,
    posterior,
)
from orrery.models.abundances.outputs import classes_of, outputs_of
from orrery.models.abundances.predictions import (
    Element,
    Random,
    density_p_values,
    draw_abundances,
    predicted_element,
    smallest_p_value,
)
from orrery.models.abundances.widening import LeftOut, Widening, fit_widening, widened
from orrery.models.base import (
    Batch,
    Comparison,
    Component,
    Data,
    Evaluation,
    Fit,
    Output,
    Posterior,
    PredictedRows,
)

SMALLEST_VARIANCE = 1e-4  # dex^2, of an element's own scatter
STARS_PER_COMPONENT = 20  # of fewer training stars there are fewer components
# Standard deviations, of the priors about what all Gaussians share: of factors, dex, of ln of the
# elements' own variances, and of means about a line in [Fe/H], dex
PRIOR_FACTORS, PRIOR_LOG_VARIANCE, PRIOR_MEAN = 0.1, 0.2, 0.3
PRIOR_RATIO = 0.2  # dex, of the shared factors of [X/Fe]
PRIOR_TYPE = 1.0  # of ln of how much likelier a Gaussian is in stars of a type
SLOPE_STARS = 2.0  # dex^2, weight of a constant [X/Fe] in an element's slope
PRIOR_SCATTER = 0.1  # dex, the unit of what is added to an element's own scatter
MOST_LEFT_OUT = 2000  # training stars that mixtures without them are calibrated by
RARE = 300  # stars, of an element or type: of fewer all calibrate
CALIBRATED_BY = 5.0  # stars whose p-values are uniform, beside those of a type
SMALLEST_P = 1e-6  # of p-values, in their calibration
RIVAL_COMPONENTS = (1, 4, 8, 16)  # of extreme deconvolution; the best on the validation stars
RIVAL_STEPS = 60
MOST_RIVAL_WORK = 50_000_000  # stars times Gaussians times squared dimensions: minutes
N_TYPES = 4  # dwarf, stream, cluster, halo
OUTSIDE = (0.0005, 0.9995)  # quantiles of training [Fe/H]


class Abundances(Component):
    """Density of stars in abundance space, from noisy, incomplete and censored measurements.

    An ensemble of mixtures of factor analysers over [X/H] of k elements, fitted by the likelihood
    of what was measured: each star's noise with its full covariance is convolved, missing elements
    are marginalised, and limits enter as probabilities (`models.abundances.mixture`). The average
    of the mixtures is a mixture again. A normalising flow could not be marginalised exactly. It
    answers what Limberg et al. 2024 (arXiv:2308.13702) ask of the stream Wukong/LMS-1.

    In: ``value``, ``variance`` and ``limit`` (batch, k), ``responses`` (batch, k, causes), ``type``
    (batch,), as `datamodules.abundances` gives them. Out: see `outputs`.

    Args:
        elements: symbols of the k elements, from the data.
        components: Gaussians of each mixture; fewer of few stars.
        ensemble: mixtures whose average is the density.
        factors: correlated directions of each Gaussian.
        by_type: whether weights of the Gaussians depend on the type of a star's structure.
        lr: peak learning rate.
        epochs: of the fit.
        replicates: draws per star, of p-values.
        draws: joint draws per star, of the probabilities of classes.
    """

    prediction_settings: ClassVar = frozenset(("replicates", "draws"))
    used: Tensor
    p_powers: Tensor
    n_training: Tensor
    line: Tensor
    iron_range: Tensor

    def __init__(
        self,
        elements: Sequence[str],
        components: int = 8,
        ensemble: int = 4,
        factors: int = 3,
        by_type: bool = False,
        lr: float = 0.02,
        epochs: int = 40,
        replicates: int = 200,
        draws: int = 100,
    ) -> None:
        super().__init__(Fit(epochs=epochs, lr=lr))
        self.elements = tuple(elements)
        self.components, self.ensemble = components, ensemble
        self.factors = min(factors, len(self.elements))
        self.by_type, self.replicates, self.draws = by_type, replicates, draws
        k, K = len(self.elements), ensemble * components
        self.along = self.elements.index("Fe") if "Fe" in self.elements else -1
        self.register_buffer("line", torch.zeros(2, k))  # [X/H] = line[0] + line[1] [Fe/H]
        self.logits = nn.Parameter(torch.zeros(ensemble, components))
        self.type_logits = nn.Parameter(
            torch.zeros(N_TYPES, ensemble, components), requires_grad=by_type
        )
        self.mean = nn.Parameter(torch.zeros(K, k))
        self.shared_loadings = nn.Parameter(torch.zeros(k, self.factors))
        self.loadings = nn.Parameter(torch.zeros(K, k, self.factors))  # what is added to them
        self.shared_log_variance = nn.Parameter(torch.zeros(k))
        self.log_variance = nn.Parameter(torch.zeros(K, k))
        self.register_buffer("used", torch.ones(components))  # components that have stars
        none = Widening(
            torch.zeros(k), torch.ones(()), torch.zeros(k), torch.ones(()), torch.zeros(1 + N_TYPES)
        )
        for name, values in none._asdict().items():  # see calibrate
            self.register_buffer(f"widening_{name}", values)
        # powers of p-values of elements and of the density, of stars of unknown type and of each
        self.register_buffer("p_powers", torch.ones(1 + N_TYPES, 2))
        self.register_buffer("n_training", torch.tensor(1.0))  # stars
        self.register_buffer("iron_range", torch.tensor([-9.0, 9.0]))
        for name in ("one", "rival"):  # peers: a Gaussian, and extreme deconvolution
            size = 1 if name == "one" else max(RIVAL_COMPONENTS)
            self.register_buffer(f"{name}_log_weight", torch.full((size,), -math.inf))
            self.register_buffer(f"{name}_mean", torch.zeros(size, k))
            self.register_buffer(f"{name}_covariance", torch.eye(k).repeat(size, 1, 1))

    # --- the density --------------------------------------------------------------------------

    def mixture(self, types: Tensor | None = None) -> Mixture:
        """The learned density; with ``types`` (n,) weights are those of each star's type."""
        logits: Tensor = self.logits
        if self.by_type and types is not None:
            known = (types >= 0)[:, None, None]
            logits = logits + torch.where(known, self.type_logits[types.clamp_min(0)], 0.0)
        logits = logits.masked_fill(self.used == 0, -math.inf).log_softmax(-1)
        variance = (self.shared_log_variance + self.log_variance).exp() + SMALLEST_VARIANCE
        weight = logits.flatten(-2) - math.log(self.ensemble)
        plain = Mixture(weight, self.mean, self.shared_loadings + self.loadings, variance)
        by = Widening(*(getattr(self, f"widening_{name}") for name in Widening._fields))
        return widened(plain, by, None if types is None else self._group(types))

    def _group(self, types: Tensor) -> Tensor:
        """(n,): place of each star's type among what is calibrated by type; 0: unknown."""
        return types.clamp_min(-1) + 1 if self.by_type else torch.zeros_like(types)

    def _member(self, mixture: Mixture, i: int, rows: Tensor) -> Mixture:
        """One of the ensemble's mixtures, with the weights of the stars in ``rows``."""
        of_all = torch.arange(len(mixture.mean), device=rows.device)
        own = of_all.view(-1, self.ensemble, self.components)[:, i].flatten()
        log_weight = mixture.log_weight[..., own] + math.log(self.ensemble)
        log_weight = log_weight[rows] if log_weight.ndim == 2 else log_weight
        return Mixture(log_weight, *(part[own] for part in mixture[1:]))

    @staticmethod
    def stars(batch: Batch) -> Stars:
        return Stars(batch["value"], batch["variance"], batch["responses"], batch["limit"])

    def peers(self) -> dict[str, Mixture]:
        """Extreme deconvolution of the training stars, and one Gaussian."""
        return {
            "extreme deconvolution": self._peer("rival"), "one Gaussian": self._peer("one")
        }  # fmt: skip

    def _peer(self, name: str) -> Mixture:
        log_weight, mean, covariance = (
            getattr(self, f"{name}_{part}") for part in ("log_weight", "mean", "covariance")
        )
        used = log_weight.isfinite()
        return extreme_deconvolution.of_covariances(log_weight[used], mean[used], covariance[used])

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        """Start from Gaussians about random stars; elements follow iron along a line."""
        batch = data.training_batch()
        stars = self.stars(batch)
        self.n_training.fill_(stars.n)
        fitted = self._fitted_by(batch["row"])  # (n, ensemble)
        used = min(self.components, int(fitted.sum(0).min()) // STARS_PER_COMPONENT)
        line, iron_scatter, scatter = _line(stars, self.along)
        iron = stars.value[:, self.along, None] if self.along >= 0 else torch.zeros(stars.n, 1)
        known = stars.measured & iron.isfinite()
        iron = iron.where(iron.isfinite(), iron.nanmean())
        trend = line[0] + line[1] * iron
        x = trend + 0.5 * torch.where(known, stars.value - trend, 0.0)
        with torch.no_grad():
            self.line.copy_(line)
            for mean, rows in zip(self.mean.split(self.components), fitted.T, strict=True):
                among = rows.nonzero()[:, 0]
                chosen = torch.randint(len(among), (self.components,))
                mean.copy_(x[among[chosen]])
            self.shared_loadings.copy_(0.05 * torch.randn(len(self.elements), self.factors))
            self.shared_loadings[:, 0] = line[1] * iron_scatter / 2
            self.shared_log_variance.copy_(2 * scatter.log())
            self.used[max(1, used) :] = 0
        if self.along >= 0 and bool((known := stars.value[:, self.along].isfinite()).any()):
            of_stars = stars.value[known, self.along]
            self.iron_range.copy_(of_stars.quantile(torch.tensor(OUTSIDE).to(of_stars)))

    def loss(self, batch: Batch) -> Tensor:
        """-ln of the likelihood of all that was measured, per star and mixture, and the prior.

        In training each mixture leaves out its own share of the stars, see `calibrate`.
        """
        by_mixture = self._by_mixture(self.mixture(batch["type"]), batch)
        if not self.training:
            return -(by_mixture.logsumexp(1) - math.log(self.ensemble)).mean()
        prior = self.loadings.square().sum() / PRIOR_FACTORS**2
        ratio = self.shared_loadings - (
            self.line[1][:, None] * self.shared_loadings[self.along] if self.along >= 0 else 0.0
        )
        prior = prior + self.ensemble * ratio.square().sum() / PRIOR_RATIO**2
        prior = prior + self.log_variance.square().sum() / PRIOR_LOG_VARIANCE**2
        prior = prior + self.type_logits.square().sum() / PRIOR_TYPE**2
        iron = self.mean[:, self.along, None] if self.along >= 0 else 0.0
        prior = prior + (self.mean - self.line[0] - self.line[1] * iron).square().sum() / (
            PRIOR_MEAN**2
        )
        log_weight = self.logits.masked_fill(self.used == 0, -math.inf).log_softmax(-1)
        few = log_weight.where(self.used > 0, 0.0).sum()  # Dirichlet: none for a single star
        prior = prior - 2 * STARS_PER_COMPONENT * few
        fitted = self._fitted_by(batch["row"])
        fit = -(by_mixture * fitted).sum() / fitted.sum()
        return fit + 0.5 * prior / self.ensemble / self.n_training

    def _by_mixture(self, mixture: Mixture, batch: Batch) -> Tensor:
        """(n, ensemble): ln of the density of each star's data under each mixture."""
        joint = log_joint(mixture, self.stars(batch))
        joint = joint.unflatten(1, (-1, self.ensemble, self.components))
        return joint.logsumexp((1, 3)) + math.log(self.ensemble)

    def _fitted_by(self, row: Tensor) -> Tensor:
        """(n, ensemble): whether the star with this row number is fitted by each mixture."""
        if self.ensemble == 1:
            return torch.ones(len(row), 1, dtype=torch.bool, device=row.device)
        return row[:, None] % self.ensemble != torch.arange(self.ensemble, device=row.device)

    def calibrate(self, data: Data) -> None:
        """Widen the Gaussians to what stars outside the fit ask for; fit the peers.

        Each training star is scored by the mixture that it did not take part in, see `widening`.
        """
        batch = data.training_batch()
        if self.ensemble > 1:
            some, weight = self._some(batch)
            self._widen(some, weight)
            self._calibrate_p_values(some, weight)
        train, validation = self.stars(data.training_batch()), self.stars(data.validation_batch())
        work = train.n * sum(train.responses.shape[1:]) ** 2  # of a Gaussian
        most = min(train.n // STARS_PER_COMPONENT, MOST_RIVAL_WORK // work)
        enough = tuple(n for n in RIVAL_COMPONENTS if n <= most) or (1,)
        rival = extreme_deconvolution.best_of(train, validation, enough, steps=RIVAL_STEPS)
        self._keep("rival", rival)
        self._keep("one", extreme_deconvolution.fit(train, 1))

    def _some(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Stars to calibrate by, and how many each stands for: all with rare elements or types."""
        stars, group = self.stars(batch), self._group(batch["type"])
        rare = (stars.measured & (stars.measured.sum(0) < RARE)).any(1)
        rare |= group.bincount(minlength=1 + N_TYPES)[group] < RARE
        first, others = rare.nonzero()[:MOST_LEFT_OUT, 0], (~rare).nonzero()[:, 0]
        chosen = others[: MOST_LEFT_OUT - len(first)]
        weight = torch.ones(len(first) + len(chosen)).to(stars.value)
        weight[len(first) :] = len(others) / max(1, len(chosen))
        rows = torch.cat([first, chosen])
        return {name: values[rows] for name, values in batch.items()}, weight

    @torch.inference_mode(False)
    def _widen(self, batch: Batch, weight: Tensor) -> None:
        stars, group = self.stars(batch), self._group(batch["type"])
        plain = Mixture(*(part.detach() for part in self.mixture(batch["type"])))
        parts = [
            LeftOut(self._member(plain, i, rows), stars.select(rows), group[rows], weight[rows])
            for i, rows in enumerate((~self._fitted_by(batch["row"])).T)
        ]
        with torch.enable_grad():
            found = fit_widening(parts, 1 + N_TYPES, PRIOR_SCATTER)
        for name, values in found._asdict().items():
            getattr(self, f"widening_{name}").copy_(values)

    @torch.no_grad()
    def _calibrate_p_values(self, batch: Batch, weight: Tensor) -> None:
        """Powers by which stars' p-values are uniform where these are outside the fit; 1 at most.

        The p-values of a power law, p^a, are uniform where a is one over the mean of -ln p.
        """
        mixture, group = self.mixture(batch["type"]), self._group(batch["type"])
        n, log_p = len(weight), torch.full((len(weight), 2), torch.nan).to(weight)
        for i, rows in enumerate((~self._fitted_by(batch["row"])).T):
            own, stars = self._member(mixture, i, rows), self.stars(batch).select(rows)
            state = posterior(own, stars)
            elements = [predicted_element(own, stars, state, j) for j in range(len(self.elements))]
            random = Random(0, stars.value)
            p_density = density_p_values(own, stars, self.replicates, random)
            p = torch.stack([smallest_p_value(elements)[0], p_density], 1)
            log_p[rows] = p.clamp(SMALLEST_P, 1).log()
        each = torch.arange(1, 1 + N_TYPES).to(group)[:, None]
        of_group = torch.cat([torch.ones(1, n).to(weight), (group == each).to(weight)])
        known = of_group @ (weight[:, None] * ~log_p.isnan())  # (1 + types, 2): stars
        total = of_group @ (weight[:, None] * -log_p.nan_to_num(0.0))
        self.p_powers.copy_(((known + CALIBRATED_BY) / (total + CALIBRATED_BY)).clamp(max=1))

    def _keep(self, name: str, mixture: Mixture) -> None:
        n = len(mixture.mean)
        for part, values in (
            ("log_weight", mixture.log_weight), ("mean", mixture.mean),
            ("covariance", mixture.covariance()),
        ):  # fmt: skip
            getattr(self, f"{name}_{part}")[:n] = values.to(self.mean)

    def reinitialised_on_finetune(self, name: str, settings: Mapping[str, Any]) -> bool:
        return name.startswith(("rival_", "one_"))

    # --- predictions --------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return outputs_of(self.elements)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        stars, mixture = self.stars(batch), self.mixture(batch["type"])
        state = posterior(mixture, stars)
        random = Random(self.draw_seed, stars.value)
        elements = [predicted_element(mixture, stars, state, j) for j in range(len(self.elements))]
        rows = {
            "log_density": state.log_density,
            **self._p_values(batch, mixture, elements, random),
        }
        rows["n_measured"], rows["n_limits"] = stars.measured.sum(1), stars.limited.sum(1)
        rows |= self._classes(mixture, stars, state, random)
        for symbol, element in zip(self.elements, elements, strict=True):
            x = symbol.lower()
            low95, low68, high68, high95 = element.quantiles.unbind(1)
            rows |= {
                f"{x}_h_expected": element.mean, f"{x}_h_std": element.std,
                f"{x}_h_low95": low95, f"{x}_h_low68": low68,
                f"{x}_h_high68": high68, f"{x}_h_high95": high95, f"{x}_p_value": element.p_value,
            }  # fmt: skip
        rows["flags"] = self._flags(stars)
        return rows

    def _p_values(
        self, batch: Batch, mixture: Mixture, elements: Sequence[Element], random: Random
    ) -> dict[str, Tensor]:
        stars = self.stars(batch)
        of_elements, of_density = self.p_powers[self._group(batch["type"])].unbind(1)
        p_elements, most_unusual = smallest_p_value(elements)
        p_elements = p_elements**of_elements
        p_density = density_p_values(mixture, stars, self.replicates, random) ** of_density
        p_value = (2 * torch.minimum(p_density, p_elements)).clamp(max=1)
        nothing = p_elements.isnan()
        return {
            "p_value": p_value.masked_fill(nothing, torch.nan),
            "p_density": p_density.masked_fill(nothing, torch.nan),
            "p_elements": p_elements,
            "most_unusual": most_unusual,
        }

    def _classes(
        self, mixture: Mixture, stars: Stars, state: StarPosterior, random: Random
    ) -> dict[str, Tensor]:
        """Probabilities of classes, by draws of each star's true abundances."""
        classes = classes_of(self.elements)
        if not classes:
            return {}
        x_h = draw_abundances(mixture, stars, state, self.draws, random)
        iron = x_h[..., self.elements.index("Fe")]
        x_fe = {x: x_h[..., j] - iron for j, x in enumerate(self.elements)}
        return {f"p_{c.name}": c.holds(x_fe).to(iron).mean(1) for c in classes}

    def _flags(self, stars: Stars) -> Tensor:
        n = (stars.measured | stars.limited).sum(1)
        bits = [n == 0, n == 1]
        outside = torch.zeros_like(bits[0])
        if "Fe" in self.elements:
            iron = stars.value[:, self.elements.index("Fe")]
            outside = (iron < self.iron_range[0]) | (iron > self.iron_range[1])
        bits.append(outside)
        return sum((bit.to(torch.int16) << i for i, bit in enumerate(bits)), bits[0].short() * 0)

    # --- evaluation ---------------------------------------------------------------------------

    def domain_of_validity(self) -> list[str]:
        low, high = self.iron_range.tolist()
        return [
            f"[X/H] of {', '.join(self.elements)}; other elements of a table are not used.",
            f"Stars of {low:.1f} < [Fe/H] < {high:.1f}, like those trained on, measured in the "
            "same way: zero points of surveys differ by .1 to .2 dex, and a p-value feels that.",
            "Stars that were not trained on: with a star among few that were measured like it, the "
            "model has learned from the star itself, and its p-value is too large.",
        ]

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluation.evaluate(self, rows, data)

    def compare(self, data: GroupedStars, seed: int) -> Comparison:
        """Structures in pairs, relative to the learned density at each star's [Fe/H]."""
        batches = list(data.grouped_batches())
        parts = [self.stars(batch) for batch, _ in batches]
        stars = Stars(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        with torch.no_grad():
            return compare_structures(
                self.mixture(), stars, np.concatenate([names for _, names in batches]),
                self.elements, seed, data.least_stars, data.permutations, data.pairs,
            )  # fmt: skip

    def infer(self, data: StarsOfAGalaxy, folder: Path | None, seed: int) -> Posterior:
        """The history of the galaxy that all stars of ``data`` formed in; without the density."""
        return galaxy_posterior(data, seed)


def _line(stars: Stars, along: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each element against [Fe/H]: (2, k) at [Fe/H] = 0 and slope, scatters of iron and about it.

    ``along``: the place of iron; without it (-1) slopes are 0. Few stars have a slope near 1.
    """
    measured = stars.measured
    value = torch.where(measured, stars.value, 0.0)
    if along >= 0:
        measured = measured & measured[:, along, None]
        iron = value[:, along, None]
    else:
        iron = torch.zeros_like(value[:, :1])
    slope = torch.full_like(value[0], float(along >= 0))
    count = measured.sum(0).clamp(min=1)
    centre = (measured * iron).sum(0) / count
    height = (measured * (value - slope * iron)).sum(0) / count
    offset = measured * (iron - centre)
    residual = measured * (value - slope * iron - height)
    slope = slope + (offset * residual).sum(0) / (offset.square().sum(0) + SLOPE_STARS)
    residual = measured * (value - (height + centre * float(along >= 0)) - slope * (iron - centre))
    noise = (measured * stars.variance).sum(0) / count
    scatter = (residual.square().sum(0) / count - noise).clamp_min(PRIOR_SCATTER**2 / 4).sqrt()
    at_zero = height + centre * float(along >= 0) - slope * centre
    spread = iron[measured.any(1), 0].std() if along >= 0 else iron.new_tensor(0.3)
    return torch.stack([at_zero, slope]), spread.nan_to_num(0.3), scatter
