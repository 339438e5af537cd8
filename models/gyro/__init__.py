"""gyro: stellar ages from rotation and colour, learned from open clusters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import Batch, Component, Constant, Output
from models.blocks import grid
from models.blocks.stack import Stack
from models.gyro.ages import Table, summaries
from models.gyro.networks import FLOWS, Rotation, with_outliers
from models.gyro.scores import left_out, seismic, shown, star_batch
from physics.seismic_stars import SUN, Star

PRIORS = ("log_age", "age")
FLAGS = (
    "bits: 1 no period or colour, no age; 2 colour outside the clusters'; 4 age at an end of the "
    "clusters'; 8 errors larger than is sensible; 16 likely a fast rotator or an outlier"
)
QUANTILES = {"age_q025": 0.025, "age_q16": 0.16, "age_q50": 0.5, "age_q84": 0.84, "age_q975": 0.975}


class Gyro(Component):
    """p(log10 P | log10 age, (BP-RP)_0) by conditional flows, and Bayes, after arXiv:2307.08753.

    Flows learn the periods of open clusters of known age. A star is a member that the flow
    describes, with its membership probability, or an outlier, uniform in log P, of which members
    are a learned share too. Every network of the ensemble leaves one cluster out: what the
    ensemble says of that cluster by those networks alone is honest, and how far its ages are off
    is the model's discrepancy, which widens all ages of clusters. Ages of stars are posteriors on a
    grid of log10 age, whose prior is flat in it or in age (``prior``), up to ``oldest`` Gyr.

    In: the batch of `datamodules.gyro`. Out: see `outputs`.
    """

    last_is_best = True
    stacked_column = "log_likelihood"
    precisions = ("32-true",)  # networks too small to gain from less
    fast = frozenset(("rotation.logit_outliers",))
    smaller_is_better = frozenset(("nll", "cluster_age_rms_dex", "benchmark_rms_dex"))

    def __init__(
        self,
        clusters: Mapping[str, float],
        judge: Sequence[str] = (),
        flow: str = "zuko_nsf",
        bins: int = 6,
        components: int = 3,
        members: int = 2,
        width: int = 32,
        depth: int = 2,
        prior: str = "log_age",
        oldest: float = 13.8,
        n_grid: int = 140,
        lr: float = 5e-3,
        weight_decay: float = 1e-2,
        epochs: int = 60,
    ) -> None:
        super().__init__(lr, weight_decay, epochs)
        if flow not in FLOWS:
            raise ValueError(f"model.flow is '{flow}'; it is one of {', '.join(FLOWS)}")
        if prior not in PRIORS:
            raise ValueError(f"model.prior is '{prior}'; it is one of {', '.join(PRIORS)}")
        if oldest <= 0.01:
            raise ValueError(f"model.oldest={oldest} Gyr leaves no ages: the grid begins at 0.01")
        self.clusters, self.prior = dict(clusters), prior
        if unknown := sorted(set(judge) - set(self.clusters)):
            raise ValueError(
                f"model.judge names {', '.join(unknown)}, which are not among the clusters: "
                f"{', '.join(self.clusters)}"
            )
        self.judged_of = [not judge or name in judge for name in self.clusters]
        networks = members * len(self.clusters)
        self.rotation = Rotation(networks, flow, bins, components, width, depth)
        # ages: cells of log10 age, Myr
        self.edges: Tensor
        self.discrepancy: Tensor
        self.left_out: Tensor
        self.colours: Tensor
        edges = torch.linspace(1.0, math.log10(1e3 * oldest), n_grid + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("discrepancy", torch.zeros(()))  # dex, of a cluster's age
        self.register_buffer("left_out", torch.full((len(self.clusters), 3), torch.inf))
        self.register_buffer("colours", torch.tensor([0.5, 3.0]))  # of the training set
        self.table = Table(grid.centres(edges))

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        colour = data.training_batch()["colour"]
        self.colours = torch.quantile(colour, torch.tensor([0.01, 0.99]))

    @property
    def judged_mask(self) -> Tensor:
        """Whose ages are held to the literature's, (clusters,), bool."""
        return torch.tensor(self.judged_of)

    def loss(self, batch: Batch) -> Tensor:
        """-ln p of the periods, a weighted mean; of each network without its own cluster."""
        parameters = self.rotation.parameters_of(batch["log_age"], batch["colour"])
        log_p = self.rotation.log_prob(parameters, batch["log_period"])
        log_p = with_outliers(log_p, self.rotation.log_share()[0], batch["mem_prob"])
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
        own = torch.arange(len(self.rotation.logit_outliers)) % len(self.clusters) == cluster
        n, ages = len(batch["colour"]), grid.centres(self.edges)
        columns = []
        for age in ages:
            parameters = self.rotation.parameters_of(age.expand(n), batch["colour"])[own]
            log_p = self.rotation.log_prob(parameters, batch["log_period"])
            columns.append(log_p.logsumexp(0) - math.log(int(own.sum())))
        share = self.rotation.log_share()[0][own].exp().mean().log()
        return with_outliers(torch.stack(columns, 1), share, batch["mem_prob"][:, None])

    # --- prediction ---------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        columns = {
            **{
                name: Output("Gyr", f"{100 * q:g}% quantile of age")
                for name, q in QUANTILES.items()
            },
            "age_mean": Output("Gyr", "mean of age"),
            "log_evidence": Output("", "ln p(log10 P | colour), ages by their prior"),
            "flags": Output("", FLAGS),
            "log_likelihood": Output("", "ln p(log10 P | age, colour) on the grid log10_age_myr"),
            "age_true": Output("Gyr", "age of the catalogue"),
            "pit": Output("", "cumulative posterior at it"),
            "nll": Output("", "-ln p(log10 P) at it, per dex"),
        }
        return columns

    @property
    def constants(self) -> dict[str, Constant]:
        return {"log10_age_myr": Constant(grid.centres(self.edges).cpu().numpy(), "log10_age_myr")}

    def log_prior(self) -> Tensor:
        """ln of the prior mass of each cell of log10 age, (n_grid,)."""
        age = grid.centres(self.edges)
        weight = torch.zeros_like(age) if self.prior == "log_age" else age * math.log(10)
        return weight.log_softmax(0)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        log_p = self.table.log_likelihood(batch)
        share = self.rotation.log_share()[0].detach().exp().mean().log()
        member = with_outliers(log_p, share, batch["mem_prob"][:, None])
        rows = summaries(member, self.log_prior(), self.edges, QUANTILES)
        valid = batch["valid"]
        colour = batch["colour"]
        flags = (~valid).short()
        flags += 2 * ((colour < self.colours[0]) | (colour > self.colours[1])).short()
        oldest = 10 ** max(self.clusters.values()) / 1e3
        flags += 4 * ((rows["age_q50"] > oldest) | (rows["age_q50"] < 0.012)).short()
        wide = (batch["colour_error"] > 0.2) | (batch["log_period_error"] > 0.15)
        flags += 8 * wide.short()
        flags += 16 * (log_p.amax(1) < math.log(0.1)).short()
        rows["flags"] = flags
        rows["log_likelihood"] = torch.where(valid[:, None], member, 0.0)  # says nothing
        for name in (*QUANTILES, "age_mean", "log_evidence"):
            rows[name] = torch.where(valid, rows[name], torch.nan)
        if "log_age" in batch:
            cdf = rows.pop("cdf")
            at = batch["log_age"].nan_to_num(2.0)
            scored = grid.scores(cdf, self.edges, at)
            rows["age_true"] = 10 ** batch["log_age"] / 1e3
            rows["pit"] = scored["pit"]
            cell = torch.bucketize(at, self.edges).sub(1).clamp(0, len(self.edges) - 2)
            rows["nll"] = -member.gather(1, cell[:, None])[:, 0]
        rows.pop("cdf", None)
        return rows

    def stack_table(self, stacked: Stack) -> dict[str, np.ndarray]:
        """The age of each group, Gyr: the product over its stars, widened by the discrepancy."""
        rows: dict[str, list[Any]] = {}
        centres = grid.centres(self.edges).double()
        for name, total in sorted(stacked.sums.items()):
            posterior = (total[0] + self.log_prior().double()).softmax(0)
            if self.discrepancy > 0:
                apart = (centres[:, None] - centres) / self.discrepancy.double()
                posterior = (-0.5 * apart.square()).exp() @ posterior
                posterior = posterior / posterior.sum()
            cdf = torch.nn.functional.pad(posterior.cumsum(0), (1, 0)).clamp(max=1)[None].float()
            levels = torch.tensor([list(QUANTILES.values())])
            ages = 10 ** (grid.quantile(cdf, self.edges, levels)[0] - 3)
            found = {"group": name, "n_stars": stacked.counts[name]}
            found |= dict(zip(QUANTILES, ages.tolist(), strict=True))
            for key, value in found.items():
                rows.setdefault(key, []).append(value)
        return {key: np.array(values) for key, values in rows.items()}

    def age(
        self, prot: float, bp_rp0: float, e_prot: float | None = None, e_bp_rp0: float = 0.03
    ) -> dict[str, float]:
        """Age of one star, Gyr: its quantiles, mean and flags; period in days, colour in mag."""
        if not (prot > 0 and math.isfinite(prot) and math.isfinite(bp_rp0)):
            raise ValueError(f"expected a period in days and a colour, got {prot} and {bp_rp0}")
        error = 0.02 * prot if e_prot is None else e_prot
        star = Star("", prot, error, bp_rp0, e_bp_rp0, math.nan, math.nan)
        rows = self.predict_step(star_batch(star))
        return {name: float(rows[name].detach()) for name in (*QUANTILES, "age_mean", "flags")}

    # --- how good it is -----------------------------------------------------------------------

    def scope(self) -> list[str]:
        ages = [10**age for age in self.clusters.values()]
        low, high = self.colours.tolist()
        return [
            f"{len(ages)} clusters, {min(ages):.0f} to {max(ages):.0f} Myr: older ages are "
            f"extrapolated, and rest on the prior, flat in {self.prior}, to "
            f"{10 ** float(self.edges[-1]) / 1e3:.1f} Gyr",
            f"(BP-RP)_0 {low:.2f} to {high:.2f} mag",
            "main-sequence stars: subgiants turn slower than dwarfs of their colour",
            f"`flags`, {FLAGS}",
        ]

    def metrics(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        known = np.isfinite(rows.get("age_true", np.empty(0))) & (rows["flags"] & 1 == 0)
        if not known.any():
            return {}
        pit = rows["pit"][known]
        return {
            "n": int(known.sum()),
            "nll": float(np.mean(rows["nll"][known], dtype=float)),
            "star_coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
        }

    def learned(self) -> dict[str, float]:
        """Of clusters left out, of the Sun, and of stars with asteroseismic ages."""
        off, stated, log_p = self.left_out.cpu().numpy().T
        known = np.isfinite(off) & np.array(self.judged_of)
        total = np.hypot(stated, float(self.discrepancy))[known]
        found = {
            "cluster_age_rms_dex": float(np.sqrt(np.mean(off[known] ** 2))),
            "cluster_age_median_dex": float(np.median(np.abs(off[known]))),
            "cluster_coverage_68": float(np.mean(np.abs(off[known]) < total)),
            "cluster_worst_pull": float(np.max(np.abs(off[known]) / total)),
            "cluster_discrepancy_dex": float(self.discrepancy),
            "cluster_log_density": float(np.nanmean(log_p[known])),
        }
        sun = self.age(SUN.period, SUN.colour, SUN.period_error, SUN.colour_error)
        found["sun_age_gyr"] = sun["age_q50"]
        return found | seismic(self)

    def judged(self, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        with torch.no_grad():
            return {}, shown(self, data)

    def timed(self, batch: Batch) -> dict[str, Any]:
        work, count = super().timed(batch)["objects_per_second"]
        return {"stars_per_second": (work, count)}
