"""zephyr: photometric redshifts from a mixture of normalizing flows, one per source of labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.models.base import Batch, Component, Constant, Evaluation, Fit, Output, PredictedRows
from orrery.models.layers import grid
from orrery.models.layers.ensemble import Encoder, Linear
from orrery.models.layers.flows import SplineFlow
from orrery.models.layers.slices import in_slices, slices
from orrery.models.layers.stack import DensityStack
from orrery.models.zephyr.evaluation import evaluate
from orrery.models.zephyr.label_noise import LabelNoise
from orrery.models.zephyr.outputs import constants, is_wide, outputs, summaries
from orrery.models.zephyr.photometry import Photometry
from orrery.models.zephyr.recalibration import CELLS, apply_pit_map, for_ensemble, pit_map

FLOOR = 1e-4  # share of p(z) that is uniform: no redshift is ever impossible
TRAIN_FLOOR = 1e-3  # the same in training, where it tempers outliers
SLICE = 256  # objects predicted at once: enough to keep torch busy, few enough for the cache


class Zephyr(Component):
    """p(z | photometry) = sum_s pi_s(x) p_s(z | x), after arXiv:2310.20125.

    Each source s of training redshifts has its own conditional spline flow p_s on a shared encoder,
    a gate pi_s(x) that says which source labels objects like x, and a kernel of label noise: a
    Gaussian of width sigma_s (1 + z) plus a share f_s of catastrophic labels. The likelihood of a
    label is the flow convolved with the kernel of its source, so that p_s is a density of the true
    redshift. The kernel of ``clean_source`` is given (``clean_sigma``), the others are learned.
    The flow of a source is a common one plus a deviation that is penalised by ``shrinkage``, so
    that few labels borrow from many.

    ``members`` networks are trained together; member m does not see the training rows of fold
    m mod ``folds``, on which it is validated and the mixture is recalibrated.

    In: the batch of `datamodules.zephyr`: ``flux``, ``flux_err`` (batch, bands), uJy, NaN where not
    observed; ``detected`` (batch, bands). Out: see `outputs`. ``target_source`` gives p_s of that
    source alone, in place of the mixture.
    """

    def __init__(
        self,
        bands: Sequence[str],
        sources: Sequence[str],
        clean_source: str,
        z_max: float,
        target_source: str | None = None,
        label_errors: bool = False,
        clean_sigma: float = 0.0,
        flow: str = "zuko",
        bins: int = 16,
        components: int = 1,
        members: int = 10,
        folds: int = 5,
        width: int = 128,
        depth: int = 2,
        shrinkage: float = 1.0,
        n_grid: int = 300,
        n_samples: int = 0,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        epochs: int = 50,
    ) -> None:
        super().__init__(
            Fit(
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                high_lr=frozenset(
                    ("noise.log_sigma", "noise.logit_catastrophic", "noise.logit_uniform")
                ),
                precisions=("32-true", "bf16-mixed"),
            )
        )
        self.bands, self.sources = list(bands), list(sources)
        self.clean = self.sources.index(clean_source)
        if target_source is not None and target_source not in self.sources:
            raise ValueError(f"target_source '{target_source}' is not one of {self.sources}")
        self.target = None if target_source is None else self.sources.index(target_source)
        if folds < 2 or members % folds:
            raise ValueError(f"model.members={members} is not a multiple of folds={folds} >= 2")
        self.members, self.folds, self.shrinkage = members, folds, shrinkage
        self.z_max, self.n_grid, self.n_samples = z_max, n_grid, n_samples

        n_sources = len(self.sources)
        self.flow = SplineFlow(bins, components, backend=flow)
        self.photometry = Photometry(self.bands)
        n_numbers, n_flags = self.photometry.n_numbers, self.photometry.n_flags
        self.encoder = Encoder(members, n_numbers, n_flags, width, depth)
        self.head = Linear(members, width, self.flow.n_parameters, gain=0.3)
        self.head.bias.data += self.flow.initial_bias()
        if n_sources > 1:
            self.deviation = Linear(members, width, n_sources * self.flow.n_parameters, gain=0.0)
            self.gate = Linear(members, width, n_sources, gain=0.1)
        self.noise: LabelNoise | None = None  # of labels that are exact
        if n_sources > 1 or clean_sigma > 0 or label_errors:
            self.noise = LabelNoise(members, n_sources, self.clean, clean_sigma, z_max, TRAIN_FLOOR)

        self.y_scale: Tensor
        self.edges: Tensor
        self.register_buffer("y_scale", torch.tensor([0.0, 1.0]))  # mean and std of log(1 + z)
        self.register_buffer("edges", torch.linspace(0, z_max, n_grid + 1), persistent=False)
        self.register_buffer("pit_map", torch.linspace(0, 1, CELLS + 1))

    # --- before and after the fit -------------------------------------------------------------

    def reinitialised_on_finetune(self, name: str, settings: Mapping[str, Any]) -> bool:
        if list(settings["bands"]) != self.bands:
            raise ValueError(
                f"init_from: that model takes the bands {settings['bands']} in this order, yours "
                f"{self.bands}; say data.bands=[{','.join(settings['bands'])}]"
            )
        part = name.split(".")[0]
        if list(settings["sources"]) != self.sources:
            return part in ("deviation", "gate", "noise")
        return part == "noise" and settings["z_max"] != self.z_max

    def prepare(self, data: Any) -> None:
        batch = data.training_batch()
        self.photometry.fit(batch)
        if self.noise is not None:
            self.noise.fit(batch["redshift"])
        y = torch.log1p(batch["redshift"])
        self.y_scale = torch.stack([y.mean(), y.std()])

    @torch.no_grad()
    def calibrate(self, data: Any) -> None:
        """Recalibrate by the PIT of exact labels, each from the members that were not shown it.

        The PIT of a noisy label is not that of the redshift: without exact labels nothing is done.
        """
        if self.noise is not None and len(self.sources) > 1:
            self._refit_noise(data.validation_batch())
        if self.noise is not None and self.noise.clean_sigma > 0:
            return
        pits, fold = [], []
        for part in slices(data.validation_batch(), SLICE):
            exact = (part["source"] == self.clean) & (part["label_error"] == 0)
            part = {k: v[exact] for k, v in part.items()}
            pits.append(self._pits(part))
            fold.append(part["row"] % self.folds)
        n = sum(map(len, fold))
        if n:
            of_members = torch.cat(pits, 1).unflatten(0, (-1, self.folds))
            self.pit_map = pit_map(for_ensemble(of_members, torch.cat(fold)), n).to(self.device)

    def _refit_noise(self, batch: Batch) -> None:
        """The noise of each source from its densities, by members that did not learn the row."""
        assert self.noise is not None
        noisy = (batch["source"] != self.clean) & (batch["label_error"] == 0)
        batch = {name: values[noisy] for name, values in batch.items()}
        own = []
        for part in slices(batch, SLICE):
            _, _, parts = self._mixture(part, self._own_fold(part))
            of_row = parts[part["source"], torch.arange(len(part["source"]))]
            own.append(of_row / of_row[:, -1:])  # a weighted part, normed
        self.noise.refit(torch.cat(own), self.edges, batch["redshift"], batch["source"])

    def _pits(self, batch: Batch) -> Tensor:
        """PIT before recalibration of each member by itself, (members, batch)."""
        parameters, weight, _ = self._flows(batch)
        cdf = self._on_grid(parameters[None], weight[None]).sum(-2).clamp(0, 1).flatten(0, 1)
        z = batch["redshift"].repeat(self.members)
        return grid.scores(cdf, self.edges, z)["pit"].unflatten(0, (self.members, -1))

    # --- likelihood ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Minus the mean log likelihood of the labels, and of their sources given x.

        In training a member learns from all folds but its own. In validation a row is scored on
        the mixture of the members that did not learn it, for a mixture is what predicts.
        """
        source, own = batch["source"], self._own_fold(batch)
        h = self.encoder(*self.photometry(batch))
        parameters = self.head(h).float()
        penalty: Tensor | float = 0.0
        if len(self.sources) == 1:
            log_p = self._log_label(parameters, batch)
        else:
            index = source.view(1, -1, 1, 1).expand(len(h), -1, 1, parameters.shape[-1])
            deviation = self.deviation(h).float().unflatten(-1, (len(self.sources), -1))
            deviation = deviation.gather(2, index).squeeze(2)
            log_gate = F.log_softmax(self.gate(h.detach()).float(), -1)
            log_source = log_gate.gather(-1, index[..., 0]).squeeze(-1)
            log_p = self._log_label(parameters + deviation, batch) + log_source
            penalty = self.shrinkage * deviation.square().mean()
        if self.training:
            return -(log_p * ~own).mean() * self.folds / (self.folds - 1) + penalty
        mixture = torch.logsumexp(log_p.masked_fill(~own, -torch.inf), 0)
        return -(mixture - math.log(self.members / self.folds)).mean()

    def _log_label(self, parameters: Tensor, batch: Batch) -> Tensor:
        """log p(label | x) of the source of each label, (members, batch)."""
        z = batch["redshift"]

        def log_p(z: Tensor) -> Tensor:
            return self._log_density(parameters, z)

        if self.noise is None:
            return log_p(z)

        def cdf(z: Tensor) -> Tensor:
            return self.flow.cdf_at_nodes(parameters, self._scaled(z))

        return self.noise.log_likelihood(log_p, cdf, z, batch["source"], batch["label_error"])

    def _scaled(self, z: Tensor) -> Tensor:
        mean, std = self.y_scale
        return (torch.log1p(z) - mean) / std

    def _log_density(self, parameters: Tensor, z: Tensor) -> Tensor:
        """log p(z) of a source's flow with the uniform floor, (members, batch)."""
        log_p = self.flow.log_prob(parameters, self._scaled(z))
        log_p = log_p - torch.log1p(z) - self.y_scale[1].log()
        floor = torch.full_like(log_p, math.log(TRAIN_FLOOR / self.z_max))
        return torch.logaddexp(log_p + math.log1p(-TRAIN_FLOOR), floor)

    def _own_fold(self, batch: Batch) -> Tensor:
        """(members, batch), bool: whether the row is in the fold that the member never learns."""
        member = torch.arange(self.members, device=batch["row"].device)
        return batch["row"] % self.folds == member[:, None] % self.folds

    # --- prediction ---------------------------------------------------------------------------

    def _mixture(self, batch: Batch, chosen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative p(z) at the edges (batch, n_grid + 1), the responsibilities (batch, sources)
        and the weighted parts that sum to the first (sources, batch, n_grid + 1).

        ``chosen`` (members, batch), bool: the members that speak for each object; None: all.
        """
        parameters, weight, gate = self._flows(batch)
        share = torch.ones_like(gate[..., :1]) if chosen is None else chosen.float()[..., None]
        share = share / share.sum(0)
        parts = self._on_grid(parameters, weight * share)
        return parts.sum(1).clamp(0, 1), (gate * share).sum(0), parts.movedim(1, 0)

    def _flows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters (members, batch, sources, n_parameters) of the flows that speak, their weights
        (members, batch, sources) in the mixture of a member, and the gate, of the same shape.

        Weights and gate differ where ``target_source`` speaks alone.
        """
        h = self.encoder(*self.photometry(batch))
        parameters = self.head(h)[:, :, None]
        if len(self.sources) == 1:
            gate = torch.ones_like(parameters[..., 0])
            return parameters, gate, gate
        gate = F.softmax(self.gate(h), -1)
        parameters = parameters + self.deviation(h).unflatten(-1, (len(self.sources), -1))
        if self.target is not None:
            return parameters[:, :, [self.target]], torch.ones_like(gate[..., :1]), gate
        return parameters, gate, gate

    def _on_grid(self, parameters: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of the members' flows at the edges, (..., n_grid + 1)."""

        def place(y: Tensor) -> Tensor:
            mean, std = self.y_scale
            return torch.expm1(y * std + mean) / (self.edges[1] - self.edges[0])

        cdf = self.flow.mixture_on_grid(parameters, weight, self._scaled(self.edges), place)
        # a member that puts its density outside the grid says nothing: uniform
        lost = weight.sum(0)[..., None] - cdf[..., -1:]
        return cdf + lost * torch.linspace(0, 1, cdf.shape[-1], device=cdf.device)

    # --- what the rows are --------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        return {**outputs(self.sources, samples=bool(self.n_samples)), **constants(self.edges)}

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):  # a cdf needs float32
            return in_slices(self._predict, batch, SLICE)

    def _predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raw, responsibility, _ = self._mixture(batch)
        cdf = grid.with_floor(apply_pit_map(self.pit_map, raw), FLOOR)
        z = summaries(cdf, self.edges)
        unusual, flags = self.photometry.quality(batch)
        rows = {
            **z,
            "mag_ref": self.photometry.reference_magnitude(batch),
            **{f"responsibility_{s}": responsibility[:, i] for i, s in enumerate(self.sources)},
            "ood": unusual,
            "flags": flags + 16 * is_wide(z).short(),
            "pz": grid.density(cdf, self.edges),
        }
        if self.n_samples:
            rows["z_samples"] = grid.sample(
                cdf, self.edges, batch["row"], self.n_samples, self.draw_seed
            )
        if "redshift" in batch:
            truth = batch["redshift"]
            rows |= {"z_true": truth, **grid.scores(cdf, self.edges, truth)}
            rows["pit_raw"] = grid.scores(raw, self.edges, truth)["pit"]
        return rows

    def fitted_parameters(self) -> dict[str, float]:
        """Label noise of each source but the clean one: sigma in units of 1 + z, and fraction."""
        if self.noise is None:
            return {}
        sigma, catastrophic = self.noise.held_out.tolist()
        found = {}
        for i, source in enumerate(self.sources):
            if i != self.clean:
                found[f"label_sigma_{source}"] = sigma[i]
                found[f"label_catastrophic_{source}"] = catastrophic[i]
        return found

    def domain_of_validity(self) -> list[str]:
        lines = [
            self.photometry.describe(),
            f"redshifts 0 to {self.z_max:g}, for objects selected as the training set is",
            "other objects are answered too; `ood` and `flags` say so",
            f"`flags`, {self.columns['flags'].description}",
            f"labels from: {', '.join(self.sources)}; clean: {self.sources[self.clean]}",
        ]
        if self.noise is not None and len(self.sources) > 1:
            lines.append(
                "`label_sigma_*`, the recovered scatter of labels: one that is far below the width "
                "of p(z) cannot be measured, and the number is then no more than a bound"
            )
        return lines

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """What each source adds to p(z), by source, (batch, n_grid), for the figures."""
        with torch.autocast(self.device.type, enabled=False):
            mixed, _, parts = self._mixture(batch)
        whole = grid.density(grid.with_floor(apply_pit_map(self.pit_map, mixed), FLOOR), self.edges)
        share = (parts.diff(dim=-1) / mixed.diff(dim=-1).clamp_min(1e-12)).clamp(0, 1)
        if self.target is not None:
            only = torch.arange(len(self.sources), device=share.device) == self.target
            share = only[:, None, None] * share
        return {source: share[i] * whole for i, source in enumerate(self.sources)}

    def stack(self) -> DensityStack:
        """n(z) of each group with its bootstrap error, from the stacked p(z)."""

        def table(stacked: DensityStack) -> dict[str, np.ndarray]:
            columns = stacked.densities(grid.centres(self.edges).cpu().double().numpy())
            names = {"x": "z", "density": "n_z", "density_std": "n_z_std"}
            return {names.get(key, key): values for key, values in columns.items()}

        return DensityStack(lambda batch, rows: rows["pz"], table)

    def evaluate(self, rows: PredictedRows, data: Any) -> Evaluation:
        return evaluate(self, rows, data)
