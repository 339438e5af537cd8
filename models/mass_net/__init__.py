"""mass_net: masses over the Hertzsprung-Russell diagram from the motion of wide binaries."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from orrery.models.base import (
    Batch,
    Component,
    Data,
    Evaluation,
    Exported,
    Fit,
    Output,
    PredictedRows,
)
from orrery.models.layers import grid
from orrery.models.mass_net import diagram
from orrery.models.mass_net.evaluation import evaluate
from orrery.models.mass_net.exported import exported
from orrery.models.mass_net.likelihood import PairDensity, pair_density
from orrery.models.mass_net.migrations import no_misfit
from orrery.models.mass_net.networks import LOG_SEPARATIONS, MassNetwork, PairStatistics
from orrery.models.mass_net.outputs import (
    BIT,
    LARGE_ERROR,
    LARGE_MISFIT,
    MIN_INFORMATION,
    OUTPUTS,
)
from orrery.physics.quantities import in_unit

# P(n <= k) of a Poisson distribution of mean 1: how often a pair occurs in a bootstrap
POISSON = (0.36788, 0.73576, 0.91970, 0.98101, 0.99634)
DERIVATIVE_STEP = 0.05  # mag
STEPS = {"bp_rp_error": (DERIVATIVE_STEP, 0.0), "abs_g_error": (0.0, DERIVATIVE_STEP)}
MEAN_SQUARE_U = math.pi / 16  # of a component of u
SCORE_STEP = 0.02  # of ln M
SCORED_AT_ONCE = 8192  # pairs
MISFIT_REACH = (1, 3)  # cells: few stars tell something together alone
CHANCE = 2.0  # errors of the step that scores ask for, which are not counted
LARGEST_MISFIT = 1.0  # of ln m


class MassNet(Component):
    """ln m over the Hertzsprung-Russell diagram, learned from nothing but orbits of wide binaries.

    After arXiv:2308.08584. A network gives ln m of a star from its colour and absolute magnitude.
    The relative velocity v of the two stars of a pair at their separation s, u = v sqrt(s / G M),
    has a distribution that Kepler's laws fix (`physics.wide_binaries.motion`), so that the
    likelihood of the observed motion teaches the total mass M. With it are learned the distribution
    of eccentricities, e^alpha, and the fraction of outliers, both against separation. Every
    member of the ensemble is fitted to a bootstrap of the pairs; their scatter is the error.

    In: the batch of `datamodules.mass_net`. Out: see `outputs`.

    Args:
        members: networks of the ensemble.
        width: neurons of a hidden layer.
        depth: hidden layers.
        largest_circular_mass: Msun, or None: pairs of the catalogue are slower than on a circular
            orbit about this mass, by its selection; the likelihood is normalised over these.
        lr: peak learning rate.
        weight_decay: of the matrices.
        epochs: passes over the training pairs.
    """

    migrations: ClassVar = (no_misfit,)
    hr_counts: Tensor
    hr_information: Tensor
    hr_misfit: Tensor
    counts_sorted: Tensor
    mass_table: Tensor
    n_pairs: Tensor
    poisson: Tensor  # cumulative, of mean 1

    def __init__(
        self,
        members: int = 6,
        width: int = 32,
        depth: int = 3,
        largest_circular_mass: float | None = 5.0,
        lr: float = 1e-2,
        weight_decay: float = 0.1,
        epochs: int = 20,
    ) -> None:
        statistics = ("alpha_logit", "outlier_logit", "tail_logit")
        super().__init__(
            Fit(
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                high_lr=frozenset(f"statistics.{name}" for name in statistics),
                result="last",
            )
        )
        if members < 2:
            raise ValueError(f"model.members={members}; expected 2 or more, for an error")
        self.largest_circular_mass = largest_circular_mass
        self.network = MassNetwork(members, width, depth)
        self.statistics = PairStatistics(members)
        # training stars in and about each cell of the diagram; the same of each star, quantiles
        shape = diagram.N_BP_RP, diagram.N_ABS_G
        self.register_buffer("hr_counts", torch.zeros(shape))
        self.register_buffer("hr_information", torch.zeros(shape))  # the same in pairs: see outputs
        # of ln m, by which the training pairs about a cell contradict the network
        self.register_buffer("hr_misfit", torch.zeros(shape))
        self.register_buffer("counts_sorted", torch.zeros(1001))
        # mean of ln m, Msun, over the members, and its error, over the diagram
        n_x, n_y = (len(axis) for axis in diagram.fine_grid())
        self.register_buffer("mass_table", torch.zeros(n_x, n_y, 2))
        self.register_buffer("poisson", torch.tensor(POISSON), persistent=False)
        self.register_buffer("n_pairs", torch.zeros((), dtype=torch.int64))

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        """Where in the diagram the training stars lie."""
        batch = data.training_batch()
        bp_rp, abs_g = batch["bp_rp"].flatten(), batch["abs_g"].flatten()
        self.hr_counts.copy_(diagram.counts(bp_rp, abs_g, torch.ones(len(bp_rp))))
        near = diagram.at(self.hr_counts.cpu(), bp_rp, abs_g)
        levels = np.linspace(0, 1, len(self.counts_sorted))
        self.counts_sorted.copy_(torch.from_numpy(np.quantile(near.numpy(), levels)))
        self.n_pairs.fill_(len(batch["row"]))

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Fill the tables of masses, of what pairs tell of them, and of where they contradict."""
        x, y = (axis.to(self.mass_table) for axis in diagram.fine_grid())
        factor = error_factor(self.network.members)
        for i, bp_rp in enumerate(x):
            log_mass = self.network(bp_rp.expand(len(y)), y)
            self.mass_table[i] = torch.stack([log_mass.mean(0), factor * log_mass.std(0)], 1)
        batch = data.training_batch()
        places = batch["bp_rp"].flatten(), batch["abs_g"].flatten()
        table = diagram.counts(*places, self._information(batch).flatten())
        self.hr_information.copy_(table)
        score = self._score(batch).flatten()
        found = [
            misfit(*(diagram.counts(*places, x, reach) for x in (score, score.square())))
            for reach in MISFIT_REACH
        ]
        self.hr_misfit.copy_(torch.stack(found).amax(0))

    def _information(self, batch: Batch) -> Tensor:
        """Fisher information of ln m of each star, (n, 2), over that of ln M without noise."""
        places = [(x.to(self.mass_table), y.to(self.mass_table)) for x, y in self.places(batch)]
        mass = torch.stack([self.mean_log_mass(*place).exp() for place in places], 1).cpu()
        total = mass.sum(1)
        noise = 0.5 * batch["covariance"].diagonal(dim1=1, dim2=2).sum(1) / total
        precision = 1 / (1 + noise / MEAN_SQUARE_U).square()
        return (mass / total[:, None]).square() * precision[:, None]

    def _score(self, batch: Batch) -> Tensor:
        """Derivative of ln p of each pair by ln m of each of its stars, (n, 2), on the CPU."""
        scores = []
        for rows in torch.arange(len(batch["row"])).split(SCORED_AT_ONCE):
            some = {
                name: values[rows].to(self.mass_table)
                if values.is_floating_point()
                else values[rows].to(self.mass_table.device)
                for name, values in batch.items()
            }
            mass = torch.stack([self.mean_log_mass(*x).exp() for x in self.places(some)], 1)
            total = mass.sum(1)
            above, below = (
                pair_density(
                    self.statistics,
                    some,
                    (total.log() + step).expand(self.network.members, -1),
                    self.largest_circular_mass,
                ).log_p.mean(0)
                for step in (SCORE_STEP, -SCORE_STEP)
            )
            by_total = (above - below) / (2 * SCORE_STEP)
            scores.append((by_total[:, None] * mass / total[:, None]).cpu())
        return torch.cat(scores)

    def loss(self, batch: Batch) -> Tensor:
        """-ln p of the relative motions, mean over members, each with its bootstrap of pairs.

        Of alpha and the fraction of outliers against separation there is a weak prior.
        """
        density = self.density(batch)
        uniform = grid.counter_uniform(batch["row"], self.network.members).T
        weight = torch.bucketize(uniform.contiguous(), self.poisson)
        smooth = self.statistics.roughness().mean() / self.n_pairs.clamp_min(1)
        return -(density.log_p * weight).mean() + smooth

    def density(self, batch: Batch) -> PairDensity:
        """ln p of pairs' relative motions by each member, (members, batch)."""
        first, second = (self.network(x, y) for x, y in self.places(batch))
        log_mass = torch.logaddexp(first, second)
        return pair_density(self.statistics, batch, log_mass, self.largest_circular_mass)

    @staticmethod
    def places(batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(BP - RP, M_G) of both stars of pairs."""
        return list(zip(batch["bp_rp"].unbind(1), batch["abs_g"].unbind(1), strict=True))

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return OUTPUTS

    def mean_log_mass(self, bp_rp: Tensor, abs_g: Tensor) -> Tensor:
        """ln m, Msun, of stars, (batch,)."""
        return diagram.interpolated(self.mass_table, bp_rp, abs_g)[:, 0]

    def log_mass(
        self, bp_rp: Tensor, abs_g: Tensor, errors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ln m of stars, Msun, and its error; ``errors`` of those in `STEPS` that are not zero."""
        mean, std = diagram.interpolated(self.mass_table, bp_rp, abs_g).unbind(1)
        variance = std.square() + diagram.at(self.hr_misfit, bp_rp, abs_g).square()
        for name, error in errors.items():
            step = STEPS[name]
            slope = (self.mean_log_mass(bp_rp + step[0], abs_g + step[1]) - mean) / DERIVATIVE_STEP
            variance = variance + (slope * error).square()
        return mean, variance.sqrt()

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        if batch["bp_rp"].ndim == 1:
            rows, flags = self._star(batch)
            rows["flags"] = flags
            if "mass" in batch:
                rows["mass_true"] = batch["mass"]
            return rows
        names = ("bp_rp", "abs_g", "bp_rp_error", "abs_g_error", "valid")
        stars = [self._star({name: batch[name][:, i] for name in names}) for i in (0, 1)]
        rows = dict(stars[0][0])
        flags = stars[0][1] | stars[1][1]
        rows["flags"] = flags | BIT["no_motion"] * (~batch["moves"]).short()
        rows |= {f"{name}_2": values for name, values in stars[1][0].items()}
        density = self.density(batch)
        log_p = density.log_p.logsumexp(0) - math.log(self.network.members)
        total = rows["mass"] + rows["mass_2"]
        known = batch["moves"] & batch["valid"].all(1)
        pair = {
            "u": batch["motion"].norm(dim=1) / total.sqrt(),
            "p_outlier": density.outlier_probability.mean(0),
            "nll": -log_p,
        }
        rows |= {name: torch.where(known, values, torch.nan) for name, values in pair.items()}
        if "mass" in batch:
            rows["mass_true"], rows["mass_true_2"] = batch["mass"].unbind(1)
        return rows

    def _star(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Mass and its quantiles of stars, and flags, each (batch,)."""
        bp_rp, abs_g, valid = batch["bp_rp"], batch["abs_g"], batch["valid"]
        errors = {name: batch[name] for name in STEPS if bool((batch[name] > 0).any())}
        mean, std = self.log_mass(bp_rp, abs_g, errors)
        near = diagram.at(self.hr_counts, bp_rp, abs_g)
        information = diagram.at(self.hr_information, bp_rp, abs_g)
        rank = torch.searchsorted(self.counts_sorted, near.contiguous()) / len(self.counts_sorted)
        rows = {
            "mass": mean.exp(),
            "mass_q16": (mean - std).exp(),
            "mass_q84": (mean + std).exp(),
            "lnm_std": std,
            "n_near": near,
            "ood": 1 - rank,
        }
        rows = {name: torch.where(valid, values, torch.nan) for name, values in rows.items()}
        masks = {
            "extrapolated": valid & (information < MIN_INFORMATION),
            "contradicted": valid & (diagram.at(self.hr_misfit, bp_rp, abs_g) > LARGE_MISFIT),
            "no_mass": ~valid,
            "poor_magnitude": valid & (batch["abs_g_error"] > LARGE_ERROR),
        }
        flags = torch.zeros_like(valid, dtype=torch.int16)
        for name, mask in masks.items():
            flags |= BIT[name] * mask.short()
        return rows, flags

    @torch.no_grad()
    def mass(
        self, bp_rp: Any, abs_g: Any, e_bp_rp: Any = 0.0, e_abs_g: Any = 0.0
    ) -> dict[str, Any]:
        """Masses of stars, Msun: median, 16% and 84% quantile, flags, shaped as the arguments.

        Numbers, arrays or Quantities in mag: BP - RP and M_G, dereddened, with their errors. For a
        catalogue call ``predict(table)``.
        """
        columns = np.broadcast_arrays(
            *(in_unit(x, "mag") for x in (bp_rp, abs_g, e_bp_rp, e_abs_g))
        )
        names = ("bp_rp", "abs_g", "e_bp_rp", "e_abs_g")
        for name, values in zip(names, columns, strict=True):
            bad = ~np.isfinite(values) | ((values < 0) & name.startswith("e_"))
            if bad.any():
                expected = "an error of 0 or more" if name.startswith("e_") else "a finite number"
                raise ValueError(
                    f"mass(): {name} is {values[bad][0]} for {int(bad.sum()):,} of {bad.size:,} "
                    f"stars; expected {expected}, mag; predict(table) answers with a flag instead"
                )
        shape = columns[0].shape
        names = ("bp_rp", "abs_g", "bp_rp_error", "abs_g_error")
        batch = {
            name: torch.from_numpy(np.array(column, float).ravel()).float()
            for name, column in zip(names, columns, strict=True)
        }
        rows, flags = self._star(batch | {"valid": torch.ones(len(batch["bp_rp"])).bool()})
        rows["flags"] = flags
        shaped = {name: values.numpy().reshape(shape) for name, values in rows.items()}
        return shaped if shape else {name: values.item() for name, values in shaped.items()}

    # --- evaluation ---------------------------------------------------------------------------

    @torch.no_grad()
    def statistics_at(self, log_separation: np.ndarray) -> dict[str, np.ndarray]:
        """alpha and the fraction of outliers, with their errors, (n,), at log10 of AU."""
        x = torch.from_numpy(np.asarray(log_separation)).float()
        alpha = self.statistics.alpha(x)
        fraction = self.statistics.log_outlier_fractions(x)[0].exp()
        values = {"alpha": alpha, "outlier_fraction": fraction}
        found = {name: value.mean(0).numpy() for name, value in values.items()}
        return found | {f"{name}_std": value.std(0).numpy() for name, value in values.items()}

    def domain_of_validity(self) -> list[str]:
        used = (self.hr_information >= MIN_INFORMATION).cpu()
        x = diagram.BP_RP_START + diagram.BP_RP_CELL * torch.arange(diagram.N_BP_RP)[used.any(1)]
        y = diagram.ABS_G_START + diagram.ABS_G_CELL * torch.arange(diagram.N_ABS_G)[used.any(0)]
        within = "nowhere"
        if len(x):
            within = (
                f"within BP - RP {float(x.min()):.1f} to {float(x.max()):.1f} and M_G "
                f"{float(y.min()):.1f} to {float(y.max()):.1f} mag, dereddened"
            )
        return [
            f"stars {within}, where training pairs tell ln m to 0.3 or better; others are flagged "
            f"as extrapolated",
            "places where the training pairs do not contradict the network, as they do where they "
            "are few: others are flagged, and have wider errors",
            "where single stars and unresolved binaries overlap in the diagram, the mass is a mean "
            "of both",
            f"separations {10 ** LOG_SEPARATIONS[0]:.0f} to {10 ** LOG_SEPARATIONS[-1]:.0f} AU: "
            f"alpha and the fraction of outliers are constant beyond",
            "errors are those of the sample of pairs; what the law of outliers' velocities, which "
            "is assumed, adds is not in them",
            f"`flags`, {OUTPUTS['flags'].text}",
        ]

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """Masses of stars of a colour and an absolute magnitude."""
        return exported(self)


def misfit(score: Tensor, variance: Tensor) -> Tensor:
    """Error of ln m by sums of the scores of stars and of their squares, of any shape.

    The sum of scores over that of squares is the step of ln m that the pairs ask for, with a
    variance of one over the latter (Fisher's scoring). What is beyond `CHANCE` errors counts.
    """
    known = variance.clamp_min(1e-12)
    step, noise = score / known, known.rsqrt()
    return (step.square() - (CHANCE * noise).square()).clamp_min(0).sqrt().clamp_max(LARGEST_MISFIT)


def error_factor(members: int) -> float:
    """By which the error of the mean of ``members`` bootstraps exceeds their scatter.

    What the pairs are a sample of and the mean of some bootstraps differ as one more bootstrap and
    that mean do: half of the 68% interval of Student's distribution, times sqrt(1 + 1/members).
    """
    return float(stats.t.ppf(stats.norm.cdf(1), members - 1) * math.sqrt(1 + 1 / members))
