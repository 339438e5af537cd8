"""gyro: stellar ages from rotation and colour, learned from open clusters."""

import math
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
from orrery.models.gyro import groups
from orrery.models.gyro.ages import (
    COLOUR_GRID,
    MAX_ERRORS,
    DensityTable,
    log_dwarf_weight,
    log_prior,
    summaries,
)
from orrery.models.gyro.discrepancy import NONE
from orrery.models.gyro.evaluation import evaluate, seismic_metrics
from orrery.models.gyro.exported import exported
from orrery.models.gyro.left_out import (
    MIN_STARS,
    LeftOutScores,
    left_out_metrics,
    left_out_scores,
)
from orrery.models.gyro.migrations import (
    discrepancy_with_turnover,
    ranks_unknown,
    rename_settings_and_tensors,
)
from orrery.models.gyro.networks import FLOWS, Contamination, Rotation
from orrery.models.gyro.outputs import BIT, N_LEVELS, OF_PERIODS, QUANTILES, outputs
from orrery.models.gyro.stars import stars_batch
from orrery.models.layers import grid
from orrery.models.layers.slices import slices
from orrery.models.layers.stack import DensityStack
from orrery.physics.quantities import in_unit
from orrery.physics.rotation.gyrochrones import (
    MISSING_COLOUR_ERROR,
    MISSING_PERIOD_ERROR,
    POSSIBLE_COLOURS,
    POSSIBLE_PERIODS,
)
from orrery.physics.rotation.seismic_stars import SUN

GRID_START_GYR, GRID_END_GYR = 1e-3, 13.8
PRIORS = ("log_age", "age")
SIMILAR_AGE_DEX = 0.3  # between a star and clusters of similar age
FAST_ROTATOR_RATIO = 0.5  # period over that of the slow sequence
MISFIT_DENSITY = 0.1  # per dex: a period less likely at any age is a misfit
MISFIT_RATIO = 1.2  # period over that of the slow sequence at the oldest age
N_PERIOD_DRAWS = 16  # per star
STARS_PER_SLICE = 4096


@runtime_checkable
class LeavesOutCluster(Protocol):
    """Data of which a cluster may be kept for the test."""

    leave_out: str | None


class Gyro(Component):
    """Posterior of a star's age from p(log10 P | log10 age, (BP-RP)_0), learned from open clusters.

    After arXiv:2307.08753. Conditional flows model the periods of open clusters of known age. A
    star is a dwarf of its cluster, which the flow describes, or an outlier of any period: a
    logistic regression on the catalogue's membership and on the height above the dwarfs' sequence
    gives the probability. Every network of the ensemble holds one cluster out: the error of the
    ages of clusters by the networks that hold them out is the model's discrepancy, which widens the
    ages of groups of stars. Ages are posteriors on a grid of log10 age.

    In: the batch of `datamodules.gyro`. Out: quantiles and mean of the age, Gyr, and flags, see
    `outputs`.

    Args:
        clusters: name -> log10 age, Myr, of the training clusters; ``cluster`` in a batch is an
            index into them.
        benchmark_clusters: clusters whose held-out ages enter ``cluster_*`` metrics; empty: all.
        flow: "mixture" (of normals), or with splines before it "zuko_nsf" or "nflows_rqs".
        bins: bins of the splines.
        components: normals of the mixture.
        members: networks that hold out each cluster.
        width: neurons of a hidden layer.
        depth: hidden layers.
        prior: flat in "log_age" or in "age", between ``youngest`` and ``oldest``.
        youngest: Gyr, 0.001 at least.
        oldest: Gyr, 13.8 at most.
        field_scatter: mag, between the colours of a star and of a cluster star of its mass and age,
            for metallicity, reddening and zero point: added in quadrature to the colour errors of
            field stars, and common to the stars of a cluster.
        n_grid: cells of log10 age from 1 Myr to 13.8 Gyr.
        lr: peak learning rate.
        weight_decay: of the matrices.
        epochs: passes over the training stars.
    """

    migrations: ClassVar[Sequence[Migration]] = (
        rename_settings_and_tensors,
        discrepancy_with_turnover,
        ranks_unknown,
    )

    prediction_settings: ClassVar = frozenset(("prior", "youngest", "oldest", "field_scatter"))

    def __init__(
        self,
        clusters: Mapping[str, float],
        benchmark_clusters: Sequence[str] = (),
        flow: str = "mixture",
        bins: int = 6,
        components: int = 5,
        members: int = 4,
        width: int = 32,
        depth: int = 2,
        prior: str = "log_age",
        youngest: float = 0.01,
        oldest: float = 12.0,
        field_scatter: float = 0.04,
        n_grid: int = 180,
        lr: float = 5e-3,
        weight_decay: float = 0.1,
        epochs: int = 80,
    ) -> None:
        super().__init__(
            Fit(
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                high_lr=frozenset(
                    ("contamination.logit_coefficients", "contamination.outlier_period")
                ),
                result="last",
            )
        )
        if flow not in FLOWS:
            raise ValueError(f"model.flow is '{flow}'; it is one of {', '.join(FLOWS)}")
        if prior not in PRIORS:
            raise ValueError(f"model.prior is '{prior}'; it is one of {', '.join(PRIORS)}")
        if not GRID_START_GYR <= youngest < oldest <= GRID_END_GYR:
            raise ValueError(
                f"model.youngest={youngest} and model.oldest={oldest} Gyr leave no ages: the grid "
                f"lies between {GRID_START_GYR} and {GRID_END_GYR}"
            )
        self.clusters, self.prior = dict(clusters), prior
        self.youngest, self.oldest, self.field_scatter = youngest, oldest, field_scatter
        self.benchmark_clusters = list(benchmark_clusters)
        self.is_benchmark = [
            not benchmark_clusters or name in benchmark_clusters for name in self.clusters
        ]
        networks, n_clusters = members * len(self.clusters), len(self.clusters)
        self.rotation = Rotation(networks, flow, bins, components, width, depth)
        self.contamination = Contamination(networks)
        self.edges: Tensor  # of cells of log10 age, Myr
        self.discrepancies: Tensor
        self.left_out_scores: Tensor
        self.colour_ranges: Tensor
        self.density_levels: Tensor
        grid_ends = math.log10(1e3 * GRID_START_GYR), math.log10(1e3 * GRID_END_GYR)
        edges = torch.linspace(*grid_ends, n_grid + 1)
        self.register_buffer("edges", edges, persistent=False)
        # of clusters' ages: of each from all others, at the end from all; weights of candidates
        self.register_buffer("discrepancies", NONE.repeat(n_clusters + 1, 1))
        scores = torch.full((n_clusters, len(LeftOutScores._fields)), torch.inf)
        self.register_buffer("left_out_scores", scores)  # columns: `LeftOutScores`
        # mag: bluest and reddest of each cluster
        self.register_buffer("colour_ranges", torch.tensor([[0.5, 3.0]]).repeat(n_clusters, 1))
        # of ln p(log10 P | colour) of training stars, in order; infinite: not known
        self.register_buffer("density_levels", torch.full((N_LEVELS,), torch.inf))
        self.table = DensityTable(grid.centres(edges))

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        """The colour range of each cluster, without one star in fifty at either end."""
        known = set(self.clusters)
        if isinstance(data, LeavesOutCluster) and data.leave_out:
            known.add(data.leave_out)
        if unknown := sorted(set(self.benchmark_clusters) - known):
            raise ValueError(
                f"model.benchmark_clusters names {', '.join(unknown)}, which are not among the "
                f"clusters: {', '.join(self.clusters)}"
            )
        batch, levels = data.training_batch(), torch.tensor([0.02, 0.98])
        for i in range(len(self.clusters)):
            colours = batch["colour"][batch["cluster"] == i]
            if len(colours) >= MIN_STARS:
                ends = torch.quantile(colours, levels)
                self.colour_ranges[i] = ends.clamp(COLOUR_GRID[0], COLOUR_GRID[-1])
            else:
                self.colour_ranges[i] = torch.tensor([torch.inf, -torch.inf])  # an empty range
        if self.colour_ranges.isinf().all():
            raise ValueError(f"no cluster of {data.label} has {MIN_STARS} stars")

    def loss(self, batch: Batch) -> Tensor:
        """-ln p of the periods, a weighted mean; of each network without its held-out cluster."""
        log_p = self.rotation.log_prob(batch["log_period"], batch["log_age"], batch["colour"])
        dwarf, outlier = self.contamination.log_parts(
            batch["log_period"], batch["mem_prob"], batch["overluminosity"]
        )
        log_p = torch.logaddexp(dwarf + log_p, outlier)
        held_out = torch.arange(len(log_p), device=log_p.device) % len(self.clusters)
        weight = (held_out[:, None] != batch["cluster"]) * batch["weight"]
        return -(log_p * weight).sum(1).mean() / len(batch["weight"])

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Fill the table of densities; scores of held-out clusters, discrepancy, ranks."""
        self.table.fill(self.rotation)
        self.density_levels = self.levels(data.training_batch()).to(self.density_levels)
        scores, discrepancies = left_out_scores(self, data.training_batch())
        self.discrepancies = discrepancies.to(self.discrepancies)
        self.left_out_scores = scores.to(self.left_out_scores)

    def levels(self, batch: Batch) -> Tensor:
        """Quantiles of ln p(log10 P | colour) of stars, from the least to the largest."""
        parts = [
            self.with_contamination(self.table.log_likelihood(part, self.field_scatter), part)
            for part in slices(batch, STARS_PER_SLICE)
        ]
        density = torch.cat([part.logsumexp(1) for part in parts]).sort().values
        return density[torch.linspace(0, len(density) - 1, N_LEVELS).round().long()]

    def period_rank(self, log_p: Tensor) -> Tensor:
        """Fraction of the training stars of less probable periods, (batch,), of (batch, n_grid).

        All cells of log10 age count alike, so that settings of the prior do not change the rank.
        """
        rank = torch.searchsorted(self.density_levels, log_p.logsumexp(1).contiguous())
        return torch.where(self.density_levels[0].isinf(), torch.nan, rank / N_LEVELS)

    def log_likelihood_left_out(self, batch: Batch, cluster: int) -> Tensor:
        """ln p (batch, n_grid) of stars at each age, by networks that hold ``cluster`` out."""
        mask = torch.arange(self.rotation.members) % len(self.clusters) == cluster
        rotation, n = self.rotation.subset(mask), len(batch["colour"])
        columns = []
        for age in self.table.ages:
            log_p = rotation.log_prob(batch["log_period"], age.expand(n), batch["colour"])
            columns.append(log_p.logsumexp(0) - math.log(rotation.members))
        return self.with_contamination(torch.stack(columns, 1), batch, mask)

    def with_contamination(
        self, log_p: Tensor, batch: Batch, members: Tensor | slice = slice(None)
    ) -> Tensor:
        """ln p (batch, n_grid) of stars; ``log_p`` as if all were dwarfs of their cluster.

        ``members``: the networks whose mean it is, a mask or a slice.
        """
        return self.contamination.added(log_p, batch, members)

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        return outputs(self.edges)

    def cluster_log_prior(self) -> Tensor:
        """ln of the prior mass of each cell of log10 age, (n_grid,), of clusters."""
        return log_prior(self.edges, self.prior, self.youngest, self.oldest)

    def star_log_prior(self, colour: Tensor) -> Tensor:
        """The same of stars, (batch, n_grid): within the lifetime of dwarfs of their colour."""
        weight = log_dwarf_weight(colour, self.table.ages)
        return (self.cluster_log_prior() + weight).log_softmax(1)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        valid, colour = batch["valid"], batch["colour"]
        dwarf_log_p = self.table.log_likelihood(batch, self.field_scatter)
        log_p = self.with_contamination(dwarf_log_p, batch)
        rows = summaries(log_p, self.star_log_prior(colour), self.edges, QUANTILES)
        cdf = rows.pop("cdf")
        rows["flags"] = self._flags(batch, dwarf_log_p, rows["age_q50"])
        u = grid.counter_uniform(batch["row"], 2 * N_PERIOD_DRAWS, self.draw_seed)
        ages = grid.quantile(cdf, self.edges, u[:, :N_PERIOD_DRAWS])
        rows["period_draws"] = 10 ** self.table.draw(colour, ages, u[:, N_PERIOD_DRAWS:])
        rows["period_rank"] = self.period_rank(log_p)
        rows["log_likelihood"] = log_p
        for name in (*QUANTILES, *OF_PERIODS):
            mask = valid.view(-1, *[1] * (rows[name].ndim - 1))
            rows[name] = torch.where(mask, rows[name], torch.nan)
        if "log_age" in batch:
            age = 10 ** (batch["log_age"] - 3)
            in_prior = valid & (age >= self.youngest) & (age <= self.oldest)
            truth = torch.where(in_prior, batch["log_age"], torch.nan)
            rows["age_true"] = age
            rows["pit"] = grid.scores(cdf, self.edges, truth)["pit"]
            cell = torch.bucketize(truth.nan_to_num(2), self.edges).sub(1)
            cell = cell.clamp(0, len(self.edges) - 2)
            nll = -log_p.gather(1, cell[:, None])[:, 0]
            rows["nll"] = torch.where(truth.isnan(), truth, nll)
        return rows

    def _flags(self, batch: Batch, dwarf_log_p: Tensor, age: Tensor) -> Tensor:
        """The bits of `outputs.FLAGS`, (batch,), int16; ``age`` (batch,), Gyr."""
        colour, log_age = batch["colour"], age.log10() + 3
        slow = self.table.slow_sequence(colour, log_age)
        slowest = self.table.slow_sequence(colour, self.edges[-1].expand(len(colour)))
        cluster_ages = torch.tensor([*self.clusters.values()]).to(log_age)
        masks = {
            "extrapolated_colour": self._is_extrapolated_colour(colour, log_age, cluster_ages),
            "extrapolated_age": (log_age > cluster_ages.max()) | (log_age < cluster_ages.min()),
            "extrapolated_error": (batch["colour_error"] > MAX_ERRORS["colour"])
            | (batch["log_period_error"] > MAX_ERRORS["log_period"]),
            "fast_rotator": batch["log_period"] < slow + math.log10(FAST_ROTATOR_RATIO),
            "evolved": batch["is_evolved"],
            "misfit": (dwarf_log_p.amax(1) < math.log(MISFIT_DENSITY))
            | (batch["log_period"] > slowest + math.log10(MISFIT_RATIO)),
        }
        flags = torch.zeros_like(colour).short()
        for name, mask in masks.items():
            flags += BIT[name] * mask.short()
        return torch.where(batch["valid"], flags, BIT["no_age"]).short()

    def _is_extrapolated_colour(
        self, colour: Tensor, log_age: Tensor, cluster_ages: Tensor
    ) -> Tensor:
        """Mask of colours outside those of all clusters of similar age, or of the nearest one."""
        has_range = self.colour_ranges[:, 0].isfinite()
        difference = (log_age[:, None] - cluster_ages[has_range]).abs()
        similar = difference <= difference.amin(1, keepdim=True).clamp_min(SIMILAR_AGE_DEX)
        low, high = self.colour_ranges[has_range].T
        lowest = torch.where(similar, low, torch.inf).amin(1)
        highest = torch.where(similar, high, -torch.inf).amax(1)
        return (colour < lowest) | (colour > highest)

    def stack(self) -> DensityStack:
        """The age of each group, Gyr: the product over its stars, widened by the discrepancy."""
        return DensityStack(
            lambda batch, rows: groups.with_expectation(self, batch),
            lambda stacked: groups.age_table(self, stacked, QUANTILES),
            units=dict.fromkeys(QUANTILES, "Gyr"),
        )

    def age(
        self,
        prot: Any,
        bp_rp0: Any,
        e_prot: Any = None,
        e_bp_rp0: Any = MISSING_COLOUR_ERROR,
    ) -> dict[str, Any]:
        """Ages of stars, Gyr: quantiles, mean and flags, of the shape of the arguments.

        Numbers, arrays or Quantities: period and its error (2% where None) in days, colour and its
        error in mag. ``posterior`` (..., n_grid), probabilities of the cells about
        ``log10_age_myr``. For a catalogue call ``predict(table)``.
        """
        prot, bp_rp0, e_bp_rp0 = (
            in_unit(prot, "d"),
            in_unit(bp_rp0, "mag"),
            in_unit(e_bp_rp0, "mag"),
        )
        e_prot = MISSING_PERIOD_ERROR * prot if e_prot is None else in_unit(e_prot, "d")
        e_prot = np.where(e_prot == 0, MISSING_PERIOD_ERROR * prot, e_prot)
        columns = np.broadcast_arrays(prot, e_prot, bp_rp0, e_bp_rp0)
        shape = columns[0].shape
        period, period_error, colour, colour_error = (x.ravel().astype(float) for x in columns)
        (shortest, longest), (bluest, reddest) = POSSIBLE_PERIODS, POSSIBLE_COLOURS
        possible = (period > shortest) & (period < longest) & (colour > bluest) & (colour < reddest)
        if not possible.all():
            wrong = int(np.flatnonzero(~possible)[0])
            raise ValueError(
                f"expected a period in days and a colour in mag, got {period[wrong]} and "
                f"{colour[wrong]}"
            )
        right = (period_error > 0) & (colour_error >= 0)
        if not (right & np.isfinite(period_error + colour_error)).all():
            raise ValueError(f"expected errors in days and mag, got {period_error}, {colour_error}")
        batch = stars_batch(period, period_error, colour, colour_error)
        rows = self.predict_step(batch)
        posterior = (rows["log_likelihood"] + self.star_log_prior(batch["colour"])).softmax(1)
        ages: dict[str, Any] = {}
        for name in (*QUANTILES, "age_mean", "flags"):
            values = rows[name].numpy().reshape(shape)
            ages[name] = values if shape else values.item()
        ages["posterior"] = posterior.numpy().reshape(*shape, -1)
        return ages | {"log10_age_myr": self.table.ages.numpy()}

    # --- evaluation ---------------------------------------------------------------------------

    def domain_of_validity(self) -> list[str]:
        ages = [10**age for age in self.clusters.values()]
        ranges = self.colour_ranges[self.colour_ranges[:, 0].isfinite()]
        return [
            f"{len(ages)} clusters, {min(ages):.0f} to {max(ages):.0f} Myr: older ages are "
            f"extrapolated, and rest on the prior, flat in {self.prior}, to "
            f"{self.oldest:g} Gyr or the lifetime of dwarfs of the star's colour",
            f"(BP-RP)_0 {ranges[:, 0].min():.2f} to {ranges[:, 1].max():.2f} mag, less for old "
            f"stars",
            "settings and the prior were tuned on the benchmark clusters, the Sun and the stars of "
            "asteroseismic age; the gyrochrone from which networks extrapolate (Angus et al. 2019) "
            "was fitted to Praesepe and the Sun",
            "held-out stars are of training clusters: `nll` and `star_coverage_68` are of new "
            "stars of known clusters, `cluster_*` of new clusters",
            "main-sequence stars: subgiants rotate more slowly than dwarfs of their colour",
            f"`flags`, {self.columns['flags'].text}",
        ]

    def fitted_parameters(self) -> dict[str, float]:
        """Metrics of held-out clusters, the Sun's age, and metrics of seismic stars."""
        sun = self.age(SUN.period, SUN.colour, SUN.period_error, SUN.colour_error)
        return left_out_metrics(self) | {"sun_age_gyr": sun["age_q50"]} | seismic_metrics(self)

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """The likelihood of the ages of stars of a period and a colour."""
        return exported(self)
