"""gyro: stellar ages from rotation and colour, learned from open clusters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Component, Constant, Evaluation, Fit, Output, PredictedRows
from orrery.models.gyro import groups
from orrery.models.gyro.ages import (
    COLOURS,
    LARGEST,
    Table,
    log_alive,
    log_prior,
    stretched,
    summaries,
)
from orrery.models.gyro.evaluation import FEWEST, evaluate, left_out, seismic, star_batch
from orrery.models.gyro.networks import FLOWS, Contamination, Rotation
from orrery.models.layers import grid
from orrery.models.layers.stack import DensityStack
from orrery.physics.rotation.gyrochrones import (
    MISSING_COLOUR_ERROR,
    MISSING_PERIOD_ERROR,
    POSSIBLE_COLOURS,
    POSSIBLE_PERIODS,
)
from orrery.physics.rotation.seismic_stars import SUN, Star

YOUNGEST, OLDEST = 1e-3, 13.8  # Gyr, of the grid
PRIORS = ("log_age", "age")
FLAGS = {
    "no_age": "no period or colour",
    "extrapolated_colour": "no such colour in the clusters of about that age",
    "extrapolated_age": "median outside the clusters' ages",
    "extrapolated_error": f"error above {LARGEST['colour']:g} mag or {LARGEST['log_period']:g} dex "
    f"of the period, taken as that",
    "fast_rotator": "period under half of the slow sequence's at this colour and age",
    "evolved": "above the dwarfs by .9 mag, or log g below 4.1: evolved, or not yet a dwarf",
    "misfit": "a period that no age explains",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}
NEAR_DEX = 0.3  # clusters of about a star's age
FAST = 0.5  # of the slow sequence's period
MISFIT = 0.1  # greatest density per dex at any age
SLOWEST = 1.2  # of the slow sequence's period at the oldest age
QUANTILES = {"age_q025": 0.025, "age_q16": 0.16, "age_q50": 0.5, "age_q84": 0.84, "age_q975": 0.975}
DRAWS = 16  # periods that are drawn for a star


class Gyro(Component):
    """p(log10 P | log10 age, (BP-RP)_0) by conditional flows, and Bayes, after arXiv:2307.08753.

    Flows learn the periods of open clusters of known age. A star is a dwarf of its cluster, which
    the flow describes, or anything else, of any period: a logistic regression on the catalogue's
    membership and on the height above the dwarfs' sequence tells how likely. Every network of the
    ensemble leaves one cluster out: what the ensemble says of that cluster by those networks alone
    is honest, and how far its ages are off is the model's discrepancy, which widens all ages of
    clusters. Ages are posteriors on a grid of log10 age, whose prior is flat in it or in age
    (``prior``), from ``youngest`` to ``oldest`` Gyr.

    In: the batch of `datamodules.gyro`. Out: see `outputs`.
    """

    def __init__(
        self,
        clusters: Mapping[str, float],
        judge: Sequence[str] = (),
        flow: str = "mixture",
        bins: int = 6,
        components: int = 5,
        members: int = 4,
        width: int = 32,
        depth: int = 2,
        prior: str = "log_age",
        youngest: float = 0.01,
        oldest: float = 12.0,
        field: float = 0.04,
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
                high_lr=frozenset(("contamination.evidence", "contamination.others")),
                result="last",
            )
        )
        if flow not in FLOWS:
            raise ValueError(f"model.flow is '{flow}'; it is one of {', '.join(FLOWS)}")
        if prior not in PRIORS:
            raise ValueError(f"model.prior is '{prior}'; it is one of {', '.join(PRIORS)}")
        if not YOUNGEST <= youngest < oldest <= OLDEST:
            raise ValueError(
                f"model.youngest={youngest} and model.oldest={oldest} Gyr leave no ages: the grid "
                f"lies between {YOUNGEST} and {OLDEST}"
            )
        self.clusters, self.prior = dict(clusters), prior
        self.youngest, self.oldest, self.field = youngest, oldest, field
        self.judge = list(judge)
        self.judged_of = [not judge or name in judge for name in self.clusters]
        networks = members * len(self.clusters)
        self.rotation = Rotation(networks, flow, bins, components, width, depth)
        self.contamination = Contamination(networks)
        self.edges: Tensor  # of cells of log10 age, Myr
        self.discrepancy: Tensor
        self.left_out: Tensor
        self.colours: Tensor
        edges = torch.linspace(math.log10(1e3 * YOUNGEST), math.log10(1e3 * OLDEST), n_grid + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("discrepancy", torch.zeros(()))  # dex, of a cluster's age
        self.register_buffer("left_out", torch.full((len(self.clusters), 6), torch.inf))
        # mag: lowest and highest of each cluster
        self.register_buffer("colours", torch.tensor([[0.5, 3.0]]).repeat(len(self.clusters), 1))
        self.table = Table(grid.centres(edges))

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        """The colours of each cluster, but for one star in fifty at either end."""
        known = set(self.clusters) | {getattr(data, "leave_out", None)}
        if unknown := sorted(set(self.judge) - known):
            raise ValueError(
                f"model.judge names {', '.join(unknown)}, which are not among the clusters: "
                f"{', '.join(self.clusters)}"
            )
        batch, levels = data.training_batch(), torch.tensor([0.02, 0.98])
        for i in range(len(self.clusters)):
            mine = batch["colour"][batch["cluster"] == i]
            if len(mine) >= FEWEST:
                self.colours[i] = torch.quantile(mine, levels).clamp(COLOURS[0], COLOURS[-1])
            else:
                self.colours[i] = torch.tensor([torch.inf, -torch.inf])  # tells nothing
        if self.colours.isinf().all():
            raise ValueError(f"no cluster of {data.label} has {FEWEST} stars")

    def loss(self, batch: Batch) -> Tensor:
        """-ln p of the periods, a weighted mean; of each network without its own cluster."""
        log_p = self.rotation.log_prob(batch["log_period"], batch["log_age"], batch["colour"])
        dwarf, other = self.contamination.parts(
            batch["log_period"], batch["mem_prob"], batch["above"]
        )
        log_p = torch.logaddexp(dwarf + log_p, other)
        mine = torch.arange(len(log_p), device=log_p.device) % len(self.clusters)
        learned = (mine[:, None] != batch["cluster"]) * batch["weight"]
        return -(log_p * learned).sum(1).mean() / len(batch["weight"])

    @torch.no_grad()
    def calibrate(self, data: Any) -> None:
        """The table of densities, and what clusters that were left out tell of the model."""
        self.table.fill(self.rotation)
        found, self.discrepancy = left_out(self, data.training_batch())
        self.left_out = found.to(self.left_out)

    def log_likelihood_left_out(self, batch: Batch, cluster: int) -> Tensor:
        """ln p (batch, n_grid) of stars at each age, by networks that did not see ``cluster``."""
        own = torch.arange(self.rotation.members) % len(self.clusters) == cluster
        rotation, n = self.rotation.only(own), len(batch["colour"])
        columns = []
        for age in self.table.ages:
            log_p = rotation.log_prob(batch["log_period"], age.expand(n), batch["colour"])
            columns.append(log_p.logsumexp(0) - math.log(rotation.members))
        return self.contaminated(torch.stack(columns, 1), batch, own)

    def contaminated(
        self, log_p: Tensor, batch: Batch, own: Tensor | slice = slice(None)
    ) -> Tensor:
        """ln p (batch, n_grid) of stars; ``log_p`` as if all were dwarfs of their cluster.

        ``own``: the networks to ask.
        """
        parts = self.contamination.parts(batch["log_period"], batch["mem_prob"], batch["above"])
        dwarf, other = (part[own].logsumexp(0) - math.log(len(part[own])) for part in parts)
        return torch.logaddexp(dwarf[:, None] + log_p, other[:, None])

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        return {
            **{
                name: Output("Gyr", f"{100 * q:g}% quantile of age")
                for name, q in QUANTILES.items()
            },
            "age_mean": Output("Gyr", "mean of age"),
            "log_evidence": Output("", "ln p(log10 P | colour), ages by their prior"),
            "flags": Output("", _flags()),
            "period_draws": Output("d", "periods expected at this colour, age by its posterior"),
            "log_likelihood": Output("", "ln p(log10 P | age, colour) on the grid log10_age_myr"),
            "age_true": Output("Gyr", "age of the catalogue"),
            "pit": Output("", "cumulative posterior at it, NaN where the prior excludes it"),
            "nll": Output("", "-ln p(log10 P) at it, per dex"),
            "log10_age_myr": Constant(grid.centres(self.edges).cpu().numpy(), "log10_age_myr"),
        }

    def log_prior(self) -> Tensor:
        """ln of the prior mass of each cell of log10 age, (n_grid,), of clusters."""
        return log_prior(self.edges, self.prior, self.youngest, self.oldest)

    def log_prior_of(self, colour: Tensor) -> Tensor:
        """The same of stars, (batch, n_grid): no dwarf is older than dwarfs of its colour live."""
        return (self.log_prior() + log_alive(colour, self.table.ages)).log_softmax(1)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        valid, colour = batch["valid"], batch["colour"]
        log_p = self.table.log_likelihood(batch, self.field)
        member = self.contaminated(log_p, batch)
        rows = summaries(member, self.log_prior_of(colour), self.edges, QUANTILES)
        cdf = rows.pop("cdf")
        rows["flags"] = self._flagged(batch, log_p, rows["age_q50"])
        u = grid.counter_uniform(batch["row"], 2 * DRAWS, self.draw_seed)
        ages = grid.quantile(cdf, self.edges, u[:, :DRAWS])
        rows["period_draws"] = 10 ** self.table.draw(colour, ages, u[:, DRAWS:])
        rows["log_likelihood"] = member
        for name in (*QUANTILES, "age_mean", "log_evidence", "period_draws", "log_likelihood"):
            known = valid.view(-1, *[1] * (rows[name].ndim - 1))
            rows[name] = torch.where(known, rows[name], torch.nan)
        if "log_age" in batch:
            age = 10 ** (batch["log_age"] - 3)
            inside = valid & (age >= self.youngest) & (age <= self.oldest)  # of the prior
            at = torch.where(inside, batch["log_age"], torch.nan)
            rows["age_true"] = age
            rows["pit"] = grid.scores(cdf, self.edges, at)["pit"]
            cell = torch.bucketize(at.nan_to_num(2), self.edges).sub(1)
            cell = cell.clamp(0, len(self.edges) - 2)
            rows["nll"] = torch.where(at.isnan(), at, -member.gather(1, cell[:, None])[:, 0])
        return rows

    def _flagged(self, batch: Batch, log_p: Tensor, age: Tensor) -> Tensor:
        """The bits of `FLAGS`, (batch,)."""
        colour, log_age = batch["colour"], age.log10() + 3
        slow = self.table.slow_sequence(colour, log_age)
        slowest = self.table.slow_sequence(colour, self.edges[-1].expand(len(colour)))
        of_clusters = torch.tensor([*self.clusters.values()]).to(log_age)
        raised = {
            "extrapolated_colour": self._beyond_colours(colour, log_age, of_clusters),
            "extrapolated_age": (log_age > of_clusters.max()) | (log_age < of_clusters.min()),
            "extrapolated_error": (batch["colour_error"] > LARGEST["colour"])
            | (batch["log_period_error"] > LARGEST["log_period"]),
            "fast_rotator": batch["log_period"] < slow + math.log10(FAST),
            "evolved": batch["evolved"],
            "misfit": (log_p.amax(1) < math.log(MISFIT))
            | (batch["log_period"] > slowest + math.log10(SLOWEST)),
        }
        flags = torch.zeros_like(colour).short()
        for name, mask in raised.items():
            flags += BIT[name] * mask.short()
        return torch.where(batch["valid"], flags, BIT["no_age"]).short()

    def _beyond_colours(self, colour: Tensor, log_age: Tensor, of_clusters: Tensor) -> Tensor:
        """Whether there is no such colour in any cluster of about that age, or the nearest one."""
        told = self.colours[:, 0].isfinite()
        apart = (log_age[:, None] - of_clusters[told]).abs()
        near = apart <= apart.amin(1, keepdim=True).clamp_min(NEAR_DEX)
        low, high = self.colours[told].T
        lowest = torch.where(near, low, torch.inf).amin(1)
        highest = torch.where(near, high, -torch.inf).amax(1)
        return (colour < lowest) | (colour > highest)

    def stack(self) -> DensityStack:
        """The age of each group, Gyr: the product over its stars, widened by the discrepancy."""
        return DensityStack(
            lambda batch, rows: groups.with_expectation(self, batch),
            lambda stacked: groups.table(self, stacked, QUANTILES),
            units=dict.fromkeys(QUANTILES, "Gyr"),
        )

    def age(
        self,
        prot: float,
        bp_rp0: float,
        e_prot: float | None = None,
        e_bp_rp0: float = MISSING_COLOUR_ERROR,
    ) -> dict[str, Any]:
        """Age of one star, Gyr: its quantiles, mean and flags; period in days, colour in mag.

        ``posterior`` (n_grid,), probabilities of the cells about ``log10_age_myr``.
        """
        (least, most), (bluest, reddest) = POSSIBLE_PERIODS, POSSIBLE_COLOURS
        if not (least < prot < most and bluest < bp_rp0 < reddest):
            raise ValueError(
                f"expected a period in days and a colour in mag, got {prot} and {bp_rp0}; for many "
                f"stars there is predict(table)"
            )
        if e_prot is None or e_prot == 0:
            e_prot = MISSING_PERIOD_ERROR * prot
        if not (e_prot > 0 and e_bp_rp0 >= 0 and math.isfinite(e_prot + e_bp_rp0)):
            raise ValueError(f"expected errors in days and mag, got {e_prot} and {e_bp_rp0}")
        star = Star("", prot, e_prot, bp_rp0, e_bp_rp0, math.nan, math.nan)
        batch = star_batch(star)
        rows = self.predict_step(batch)
        posterior = (rows["log_likelihood"] + self.log_prior_of(batch["colour"])).softmax(1)[0]
        found = {name: float(rows[name]) for name in (*QUANTILES, "age_mean", "flags")}
        return found | {"posterior": posterior.numpy(), "log10_age_myr": self.table.ages.numpy()}

    # --- how good it is -----------------------------------------------------------------------

    def domain_of_validity(self) -> list[str]:
        ages = [10**age for age in self.clusters.values()]
        told = self.colours[self.colours[:, 0].isfinite()]
        return [
            f"{len(ages)} clusters, {min(ages):.0f} to {max(ages):.0f} Myr: older ages are "
            f"extrapolated, and rest on the prior, flat in {self.prior}, to "
            f"{self.oldest:g} Gyr or where dwarfs of the star's colour end",
            f"(BP-RP)_0 {told[:, 0].min():.2f} to {told[:, 1].max():.2f} mag, less for old stars",
            "settings and the prior were chosen with an eye on the clusters that are judged, the "
            "Sun and the stars of asteroseismic age; the gyrochrone that networks start from "
            "(Angus et al. 2019) was fitted to Praesepe and the Sun",
            "stars that are held out are of clusters that were learned from: `nll` and "
            "`star_coverage_68` are of new stars of known clusters, `cluster_*` of new clusters",
            "main-sequence stars: subgiants turn slower than dwarfs of their colour",
            f"`flags`, {_flags()}",
        ]

    def fitted_parameters(self) -> dict[str, float]:
        """Of clusters left out, of the Sun, and of stars with asteroseismic ages."""
        off, stated, log_p, n, others, inside = self.left_out.cpu().numpy().T
        told = np.isfinite(off)
        known = told & np.array(self.judged_of)
        found = {}
        if known.any():
            stretch = stretched(torch.tensor([*self.clusters.values()])).numpy()
            each = np.abs(off) / np.hypot(stated, others * stretch)
            pull = each[known]
            found = {
                "cluster_age_rms_dex": float(np.sqrt(np.mean(off[known] ** 2))),
                "cluster_age_median_dex": float(np.median(np.abs(off[known]))),
                "cluster_coverage_68": float(np.mean(pull < 1)),
                "cluster_coverage_68_all": float(np.mean(each[told] < 1)),
                "cluster_worst_pull": float(np.max(pull)),
                "cluster_discrepancy_dex": float(self.discrepancy),
                "cluster_log_density": float(np.average(log_p[known], weights=n[known])),
                "cluster_star_coverage_68": float(np.average(inside[known], weights=n[known])),
                "cluster_age_median_dex_all": float(np.median(np.abs(off[told]))),
            }
        sun = self.age(SUN.period, SUN.colour, SUN.period_error, SUN.colour_error)
        found["sun_age_gyr"] = sun["age_q50"]
        return found | seismic(self)

    def evaluate(self, rows: PredictedRows, data: Any) -> Evaluation:
        return evaluate(self, rows, data)


def _flags() -> str:
    return "bits: " + "; ".join(f"{BIT[name]} {name}, {text}" for name, text in FLAGS.items())
