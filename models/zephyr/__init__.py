"""zephyr: photometric redshifts from a mixture of normalising flows, one per source of labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.models.base import (
    Batch,
    Component,
    Constant,
    Data,
    Evaluation,
    Exported,
    Fit,
    Output,
    PredictedRows,
)
from orrery.models.layers import grid
from orrery.models.layers.ensemble import Encoder, Linear
from orrery.models.layers.flows import SplineFlow
from orrery.models.layers.slices import in_slices, slices
from orrery.models.layers.stack import DensityStack
from orrery.models.zephyr.evaluation import evaluate, local_limits
from orrery.models.zephyr.exported import exported
from orrery.models.zephyr.label_noise import LabelNoise
from orrery.models.zephyr.nz import TomographicNz, tomographic_nz
from orrery.models.zephyr.outputs import constants, edges_about, outputs, summaries, wide_flag
from orrery.models.zephyr.photometry import Photometry
from orrery.models.zephyr.recalibration import (
    PIT_CELLS,
    apply_pit_map,
    ensemble_pit_moments,
    pit_map,
)

UNIFORM_FRACTION = 1e-4  # of p(z): no redshift has a density of zero
TRAINING_UNIFORM_FRACTION = 1e-3  # the same in training, against outliers
SLICE_SIZE = 256  # objects predicted at once: enough to keep torch busy, few enough for the cache


class Zephyr(Component):
    """Photometric redshift p(z | x) = sum_s pi_s(x) p_s(z | x), a mixture over sources of labels.

    After arXiv:2310.20125. Each source s of training redshifts has its own conditional spline flow
    p_s on a shared encoder, a gate pi_s(x), the probability that s labels objects like x, and a
    kernel of label noise: a Gaussian of width sigma_s (1 + z) plus a fraction f_s of catastrophic
    labels. The likelihood of a label is the flow convolved with the kernel of its source, so that
    p_s is a density of the true redshift. The kernel of ``clean_source`` is fixed
    (``clean_sigma``), the others are learned. The flow of a source is a common one plus a deviation
    that is penalised by ``shrinkage``, so that sources with few labels are close to the common one.

    ``members`` networks are trained together; member m is not trained on the rows of fold
    m mod ``folds``, on which it is validated and the mixture is recalibrated.

    In: the batch of `datamodules.zephyr`: ``flux``, ``flux_err`` (batch, bands), uJy, NaN where not
    observed; ``detected`` (batch, bands), 0 or 1. Out: ``pz`` (batch, n_grid), its summaries and
    flags, see `outputs`.

    Args:
        bands: names of the bands, in the order of ``flux``; bluest first, for the colours.
        sources: names of the sources of labels; ``source`` in a batch is an index into them.
        clean_source: the source whose labels are right to within ``clean_sigma`` and their errors.
        z_max: end of the redshift grid, which begins at 0.
        target_source: predict p_s of this source alone, in place of the mixture.
        label_errors: whether labels have errors of their own, ``label_error`` in a batch.
        clean_sigma: label noise of ``clean_source``, in units of 1 + z.
        flow: library of the splines, "zuko" or "nflows".
        bins: bins of each spline.
        components: splines that are mixed per source.
        members: networks of the ensemble, a multiple of ``folds``.
        folds: parts of the training rows, each held out by ``members / folds`` networks.
        width: neurons of a hidden layer.
        depth: hidden layers.
        shrinkage: weight of the squared deviations of the sources in the loss.
        n_grid: cells of p(z).
        n_samples: draws from p(z) per object, ``z_samples``.
        z_grid: first, last and step of the redshifts at which ``pz`` is written; None: the cells.
        lr: peak learning rate.
        weight_decay: of the matrices.
        epochs: passes over the training rows.
    """

    prediction_settings: ClassVar = frozenset(("target_source", "n_grid", "n_samples", "z_grid"))
    may_be_zero: ClassVar = frozenset(("n_samples",))

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
        z_grid: Sequence[float] | None = None,
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
        n_features, n_masks = self.photometry.n_features, self.photometry.n_masks
        self.encoder = Encoder(members, n_features, n_masks, width, depth)
        self.head = Linear(members, width, self.flow.n_parameters, gain=0.3)
        self.head.bias.data += self.flow.initial_bias()
        if n_sources > 1:
            self.deviation = Linear(members, width, n_sources * self.flow.n_parameters, gain=0.0)
            self.gate = Linear(members, width, n_sources, gain=0.1)
        self.noise: LabelNoise | None = None  # None: labels are exact
        if n_sources > 1 or clean_sigma > 0 or label_errors:
            self.noise = LabelNoise(
                members, n_sources, self.clean, clean_sigma, z_max, TRAINING_UNIFORM_FRACTION
            )

        self.y_scale: Tensor
        self.edges: Tensor
        self.register_buffer("y_scale", torch.tensor([0.0, 1.0]))  # mean and std of log(1 + z)
        self.written_edges: Tensor
        edges = torch.linspace(0, z_max, n_grid + 1)
        self.register_buffer("edges", edges, persistent=False)
        written = edges if z_grid is None else edges_about(z_grid)
        self.register_buffer("written_edges", written, persistent=False)  # of the cells of ``pz``
        self.register_buffer("pit_map", torch.linspace(0, 1, PIT_CELLS + 1))

    # --- before and after the fit -------------------------------------------------------------

    def reinitialised_on_finetune(self, name: str, settings: Mapping[str, Any]) -> bool:
        if list(settings["bands"]) != self.bands:
            raise ValueError(
                f"init_from: the checkpoint has the bands {settings['bands']} in this order, this "
                f"model {self.bands}; set data.bands=[{','.join(settings['bands'])}]"
            )
        part = name.split(".")[0]
        if list(settings["sources"]) != self.sources:
            return part in ("deviation", "gate", "noise")
        return part == "noise" and settings["z_max"] != self.z_max

    def prepare(self, data: Data) -> None:
        batch = data.training_batch()
        self.photometry.fit(batch)
        if self.noise is not None:
            self.noise.fit(batch["redshift"])
        y = torch.log1p(batch["redshift"])
        self.y_scale = torch.stack([y.mean(), y.std()])

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Recalibrate by the PIT of exact labels, each from the members that hold its row out.

        The PIT of a noisy label is not that of the redshift: without exact labels nothing is done.
        """
        if self.noise is not None and len(self.sources) > 1:
            self._refit_noise(data.validation_batch())
        if self.noise is not None and self.noise.clean_sigma > 0:
            return
        pits, folds = [], []
        for part in slices(data.validation_batch(), SLICE_SIZE):
            exact = (part["source"] == self.clean) & (part["label_error"] == 0)
            part = {name: values[exact] for name, values in part.items()}
            pits.append(self._member_pits(part))
            folds.append(part["row"] % self.folds)
        n = sum(map(len, folds))
        if n:
            member_pits = torch.cat(pits, 1).unflatten(0, (-1, self.folds))
            moments = ensemble_pit_moments(member_pits, torch.cat(folds))
            self.pit_map = pit_map(moments, n).to(self.device)

    def _refit_noise(self, batch: Batch) -> None:
        """Refit the noise of each source to densities of members that hold the row out."""
        assert self.noise is not None
        noisy = (batch["source"] != self.clean) & (batch["label_error"] == 0)
        if not bool(noisy.any()):  # all labels have errors of their own
            return
        batch = {name: values[noisy] for name, values in batch.items()}
        cdfs = []
        for part in slices(batch, SLICE_SIZE):
            _, _, weighted = self._mixture(part, self._holds_out(part))
            cdf = weighted[part["source"], torch.arange(len(part["source"]))]
            cdfs.append(cdf / cdf[:, -1:])
        self.noise.refit(torch.cat(cdfs), self.edges, batch["redshift"], batch["source"])

    def _member_pits(self, batch: Batch) -> Tensor:
        """PIT of each member alone, before recalibration, (members, batch)."""
        z = batch["redshift"].repeat(self.members)
        cdf = self._member_cdfs(batch).flatten(0, 1)
        return grid.scores(cdf, self.edges, z)["pit"].unflatten(0, (self.members, -1))

    def _member_cdfs(self, batch: Batch) -> Tensor:
        """Cumulative p(z) of each member alone, before recalibration, (members, batch, edges)."""
        parameters, weight, _ = self._flow_parameters(batch)
        return self._mixture_cdf(parameters[None], weight[None]).sum(-2).clamp(0, 1)

    # --- likelihood ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Minus the mean log likelihood of the labels, and of their sources given x.

        In training a member learns from all folds but its own. In validation a row is scored by
        the mixture of the members that hold it out, since predictions are of a mixture.
        """
        source, held_out = batch["source"], self._holds_out(batch)
        h = self.encoder(*self.photometry(batch))
        parameters = self.head(h).float()
        penalty: Tensor | float = 0.0
        if len(self.sources) == 1:
            log_p = self._label_log_likelihood(parameters, batch)
        else:
            index = source.view(1, -1, 1, 1).expand(len(h), -1, 1, parameters.shape[-1])
            deviation = self.deviation(h).float().unflatten(-1, (len(self.sources), -1))
            deviation = deviation.gather(2, index).squeeze(2)
            log_gate = F.log_softmax(self.gate(h.detach()).float(), -1)
            log_source = log_gate.gather(-1, index[..., 0]).squeeze(-1)
            log_p = self._label_log_likelihood(parameters + deviation, batch) + log_source
            penalty = self.shrinkage * deviation.square().mean()
        if self.training:
            return -(log_p * ~held_out).mean() * self.folds / (self.folds - 1) + penalty
        mixture = torch.logsumexp(log_p.masked_fill(~held_out, -torch.inf), 0)
        return -(mixture - math.log(self.members / self.folds)).mean()

    def _label_log_likelihood(self, parameters: Tensor, batch: Batch) -> Tensor:
        """log p(label | x) of the source of each label, (members, batch)."""
        z = batch["redshift"]

        def log_p(z: Tensor) -> Tensor:
            return self._log_density(parameters, z)

        if self.noise is None:
            return log_p(z)

        def cdf(z: Tensor) -> Tensor:
            return self.flow.cdf_at_nodes(parameters, self._standardised(z))

        return self.noise.log_likelihood(log_p, cdf, z, batch["source"], batch["label_error"])

    def _standardised(self, z: Tensor) -> Tensor:
        """log(1 + z), less its mean in training, over its standard deviation."""
        mean, std = self.y_scale
        return (torch.log1p(z) - mean) / std

    def _log_density(self, parameters: Tensor, z: Tensor) -> Tensor:
        """log p(z) of a source's flow with the uniform fraction, (members, batch)."""
        log_p = self.flow.log_prob(parameters, self._standardised(z))
        log_p = log_p - torch.log1p(z) - self.y_scale[1].log()
        uniform = torch.full_like(log_p, math.log(TRAINING_UNIFORM_FRACTION / self.z_max))
        return torch.logaddexp(log_p + math.log1p(-TRAINING_UNIFORM_FRACTION), uniform)

    def _holds_out(self, batch: Batch) -> Tensor:
        """(members, batch), bool: whether the row is in the fold that the member holds out."""
        member = torch.arange(self.members, device=batch["row"].device)
        return batch["row"] % self.folds == member[:, None] % self.folds

    # --- prediction ---------------------------------------------------------------------------

    def _mixture(self, batch: Batch, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative p(z) at the edges (batch, n_grid + 1), the responsibilities (batch, sources)
        and the weighted cdfs of the sources, (sources, batch, n_grid + 1), that sum to the first.

        ``mask`` (members, batch), bool: the members that predict each object; None: all.
        """
        parameters, weight, gate = self._flow_parameters(batch)
        share = torch.ones_like(gate[..., :1]) if mask is None else mask.float()[..., None]
        share = share / share.sum(0)
        weighted = self._mixture_cdf(parameters, weight * share)
        return weighted.sum(1).clamp(0, 1), (gate * share).sum(0), weighted.movedim(1, 0)

    def _flow_parameters(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters of the flows (members, batch, sources, n_parameters), their weights (members,
        batch, sources) in the mixture of a member, and the gate, of the same shape.

        With a ``target_source`` parameters and weights are of that source alone, and the gate is
        still of all.
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

    def _mixture_cdf(self, parameters: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of the cdfs of the members' flows at the edges, (..., n_grid + 1)."""

        def grid_position(y: Tensor) -> Tensor:
            mean, std = self.y_scale
            return torch.expm1(y * std + mean) / (self.edges[1] - self.edges[0])

        nodes = self._standardised(self.edges)
        cdf = self.flow.mixture_on_grid(parameters, weight, nodes, grid_position)
        # the mass of members whose density is outside the grid is uniform
        outside = weight.sum(0)[..., None] - cdf[..., -1:]
        return cdf + outside * torch.linspace(0, 1, cdf.shape[-1], device=cdf.device)

    # --- predicted rows -----------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        return {
            **outputs(self.sources, samples=bool(self.n_samples)),
            **constants(self.written_edges),
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):  # a cdf needs float32
            return in_slices(self._predict, batch, SLICE_SIZE)

    def _predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raw, responsibility, _ = self._mixture(batch)
        cdf = self._recalibrated(raw)
        summary = summaries(cdf, self.edges)
        ood, flags = self.photometry.quality(batch)
        rows = {
            **summary,
            "mag_ref": self.photometry.reference_magnitude(batch),
            **{f"responsibility_{s}": responsibility[:, i] for i, s in enumerate(self.sources)},
            "ood": ood,
            "flags": flags + wide_flag(summary),
            "pz": grid.density(grid.at(cdf, self.edges, self.written_edges), self.written_edges),
        }
        if self.n_samples:
            rows["z_samples"] = grid.sample(
                cdf, self.edges, batch["row"], self.n_samples, self.draw_seed
            )
        if "redshift" in batch:
            truth = batch["redshift"]
            rows |= {"z_true": truth, **grid.scores(cdf, self.edges, truth)}
            rows["pit_raw"] = grid.scores(raw, self.edges, truth)["pit"]
            rows["tarp"] = grid.tarp(cdf, self.edges, truth, batch["row"])
        return rows

    def _recalibrated(self, cdf: Tensor) -> Tensor:
        """Cumulative p(z) after the map of the PIT, with the uniform fraction."""
        return grid.with_floor(apply_pit_map(self.pit_map, cdf), UNIFORM_FRACTION)

    def fitted_parameters(self) -> dict[str, float]:
        """Label noise of each source but the clean one: sigma in units of 1 + z, and fraction."""
        if self.noise is None:
            return {}
        sigma, catastrophic = self.noise.held_out.tolist()
        parameters = {}
        for i, source in enumerate(self.sources):
            if i != self.clean:
                parameters[f"label_sigma_{source}"] = sigma[i]
                parameters[f"label_catastrophic_{source}"] = catastrophic[i]
        return parameters

    def domain_of_validity(self) -> list[str]:
        lines = [
            self.photometry.describe(),
            f"redshifts 0 to {self.z_max:g}, for objects selected as the training set is",
            "other objects get a p(z) too, and are marked in `ood` and `flags`",
            f"`flags`, {self.columns['flags'].text}",
            f"labels from: {', '.join(self.sources)}; clean: {self.sources[self.clean]}",
        ]
        if self.noise is not None and len(self.sources) > 1:
            lines.append(
                "`label_sigma_*`, the recovered scatter of labels: one far below the width of p(z) "
                "cannot be measured, and the number is then an upper limit"
            )
        return lines + local_limits(self.record.get("metrics", {}))

    def source_densities(self, batch: Batch) -> dict[str, Tensor]:
        """Contribution of each source to p(z), by source, (batch, n_grid); they sum to ``pz``."""
        with torch.autocast(self.device.type, enabled=False):
            raw, _, weighted = self._mixture(batch)
        density = grid.density(self._recalibrated(raw), self.edges)
        share = (weighted.diff(dim=-1) / raw.diff(dim=-1).clamp_min(1e-12)).clamp(0, 1)
        if self.target is not None:
            is_target = torch.arange(len(self.sources), device=share.device) == self.target
            share = is_target[:, None, None] * share
        return {source: share[i] * density for i, source in enumerate(self.sources)}

    def stack(self) -> DensityStack:
        """n(z) of each group with its bootstrap error, from the stacked p(z)."""

        def table(stacked: DensityStack) -> dict[str, np.ndarray]:
            columns = stacked.densities(grid.centres(self.written_edges).cpu().double().numpy())
            names = {"x": "z", "density": "n_z", "density_std": "n_z_std"}
            return {names.get(key, key): values for key, values in columns.items()}

        def density(batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
            return rows["pz"] * batch["weight"][:, None] if "weight" in batch else rows["pz"]

        return DensityStack(density, table)

    def member_densities(self, batch: Batch) -> Tensor:
        """p(z) of each member, (members, batch, n_grid); their mean is ``pz`` on the cells."""
        with torch.autocast(self.device.type, enabled=False):
            cdfs = self._member_cdfs(batch)
        density = grid.density(self._recalibrated(cdfs.mean(0)), self.edges)
        mass = cdfs.diff(dim=-1).clamp_min(0) + 1e-7  # below which it is rounding
        return density * mass / mass.mean(0)

    def nz(
        self,
        catalogue: Any,
        bins: Sequence[float] | None = None,
        by: str = "z_median",
        weight: str | None = None,
        realisations: int = 100,
        seed: int = 0,
        **data: Any,
    ) -> TomographicNz:
        """n(z) of tomographic bins, stacked from p(z), with realisations of its error.

        Its file is read by CosmoSIS, or by qp and RAIL: ``nz(...).write("nz.fits")``. Streams a
        file in constant memory. p(z) holds the n(z) of the training set as a prior: where the
        sample was selected otherwise, a stack is biased towards that of the training set, and no
        realisation says so (Malz 2021, arXiv:2101.04675).

        Args:
            catalogue: path of a file, or a table in memory, as `predict` takes.
            bins: rising edges in ``by``; an object at an edge is in the upper bin, one outside of
                all in none. None: each value of ``by`` is a bin, of 100 at most.
            by: a predicted column, or a column of the catalogue.
            weight: column of the catalogue with the weight of each object.
            realisations: how many; each resamples the objects and takes the next network.
            seed: of the samples.
            data: settings of the data, such as ``columns``.

        Raises ValueError: for edges that do not rise, and for a bin without objects.
        """
        return tomographic_nz(self, catalogue, bins, by, weight, realisations, seed, data)

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """p(z) of fluxes and their errors."""
        return exported(self)
