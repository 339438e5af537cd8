"""zephyr: photometric redshifts from a mixture of normalizing flows, one per source of labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Batch, Component, Constant, Output
from models.blocks import grid
from models.blocks.ensemble import Encoder, Linear
from models.blocks.flows import SplineFlow
from models.blocks.recalibration import (
    CELLS,
    apply_pit_map,
    for_ensemble,
    pit_map,
    pit_moments,
)
from models.blocks.stack import Stack
from models.blocks.support import Support
from physics.photometry import luptitude, luptitude_err

FLOOR = 1e-4  # share of p(z) that is uniform: no redshift is ever impossible
NODES = 33  # of the quadrature over the label noise, within 4 sigma
FLAGS = (
    "bits: 1 a band was not observed; 2 nothing was detected; 4 unlike 99.9% of the training "
    "objects; 8 an error larger than in training; 16 the central 68% is wider than 0.3 (1 + z)"
)
QUANTILES = {"z_q025": 0.025, "z_q16": 0.16, "z_median": 0.5, "z_q84": 0.84, "z_q975": 0.975}
CATASTROPHIC_CELLS = 64  # of the n(z) from which catastrophic labels may be drawn
TRAIN_FLOOR = 1e-3  # the same in training, where it tempers outliers
OUTLIER = 0.15  # |dz|/(1 + z) of an outlier: Hildebrandt et al. (2010)


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

    keep_location = "ancil/{name}"  # where qp looks for columns
    stacked_column = "pz"
    fast = frozenset(("log_sigma", "logit_catastrophic", "logit_uniform"))
    smaller_is_better = frozenset(
        ("nmad", "outlier_fraction", "crps", "nll", "cde_loss", "pit_ks", "pit_ks_raw")
    )

    def __init__(
        self,
        bands: Sequence[str],
        sources: Sequence[str],
        clean_source: str,
        z_max: float,
        target_source: str | None = None,
        clean_sigma: float = 0.0,
        flow: str = "zuko",
        bins: int = 16,
        components: int = 8,
        members: int = 10,
        folds: int = 5,
        width: int = 128,
        depth: int = 2,
        shrinkage: float = 1.0,
        n_grid: int = 300,
        n_samples: int = 0,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        epochs: int = 60,
    ) -> None:
        super().__init__(lr, weight_decay, epochs)
        self.bands, self.sources = list(bands), list(sources)
        self.clean, self.clean_sigma = self.sources.index(clean_source), clean_sigma
        if target_source is not None and target_source not in self.sources:
            raise ValueError(f"target_source '{target_source}' is not one of {self.sources}")
        self.target = None if target_source is None else self.sources.index(target_source)
        if members % folds:
            raise ValueError(f"members={members} is not a multiple of folds={folds}")
        self.members, self.folds, self.shrinkage = members, folds, shrinkage
        self.z_max, self.n_grid, self.n_samples = z_max, n_grid, n_samples

        n_bands, n_sources = len(self.bands), len(self.sources)
        n_features = 3 * n_bands - 1
        self.flow = SplineFlow(bins, components, backend=flow)
        self.encoder = Encoder(members, n_features, 2 * n_bands, width, depth)
        self.head = Linear(members, width, self.flow.n_parameters, gain=0.3)
        self.head.bias.data += self.flow.initial_bias()
        if n_sources > 1:
            self.deviation = Linear(members, width, n_sources * self.flow.n_parameters, gain=0.0)
            self.gate = Linear(members, width, n_sources, gain=0.1)
            # label noise of each source, as each member learns it
            self.log_sigma = nn.Parameter(torch.full((members, n_sources), math.log(0.02)))
            self.logit_catastrophic = nn.Parameter(torch.full((members, n_sources), -2.5))
            self.logit_uniform = nn.Parameter(torch.zeros(members, n_sources))

        self.softening: Tensor
        self.y_scale: Tensor
        self.edges: Tensor
        self.register_buffer("softening", torch.ones(n_bands))  # uJy
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_std", torch.ones(n_features))
        self.register_buffer("mag_range", torch.zeros(2, n_bands))  # of 98% of the training objects
        self.register_buffer("error_limit", torch.zeros(n_bands))  # in units of feature_std
        self.register_buffer("y_scale", torch.tensor([0.0, 1.0]))  # of log(1 + z)
        self.register_buffer("n_z", torch.full((CATASTROPHIC_CELLS,), 1.0 / z_max))
        self.register_buffer("reference", torch.zeros((), dtype=torch.long))
        self.register_buffer("edges", torch.linspace(0, z_max, n_grid + 1), persistent=False)
        self.register_buffer("pit_map", torch.linspace(0, 1, CELLS + 1))
        self.support = Support(2 * n_bands)

    # --- before and after the fit -------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        batch = data.training_batch()
        flux, error = batch["flux"], batch["flux_err"]
        self.softening = error.nanmedian(0).values
        features = self._features(batch)
        self.feature_mean = features.nanmean(0)
        spread = (features - self.feature_mean).square().nanmean(0).sqrt()
        self.feature_std = spread.clamp_min(1e-3)
        scaled = (features - self.feature_mean) / self.feature_std
        self.error_limit = scaled[:, -len(self.bands) :].nan_to_num(-torch.inf).amax(0)
        ends = torch.tensor([0.01, 0.99])
        self.mag_range = torch.nanquantile(features[:100_000, : len(self.bands)], ends, 0)
        y = torch.log1p(batch["redshift"])
        self.y_scale = torch.stack([y.mean(), y.std()])
        counts = torch.histc(batch["redshift"], CATASTROPHIC_CELLS, 0, self.z_max) + 1
        self.n_z = counts / counts.sum() * CATASTROPHIC_CELLS / self.z_max
        self.reference = (flux / error).nanmedian(0).values.nan_to_num(0).argmax()
        self.support.fit(self._support_features(batch))

    def calibrate(self, data: Any) -> None:
        """Recalibrate by the PIT of clean labels, each from the members that were not shown it."""
        several = self.members // self.folds
        pits: dict[str, list[Tensor]] = {"single": [], "several": []}
        for part in _slices(data.validation_batch(), 1024):
            part = {k: v[part["source"] == self.clean] for k, v in part.items()}
            own = self._own_fold(part)
            for i in range(several):
                pits["single"].append(self._pit(part, own & (own.cumsum(0) == i + 1)))
            pits["several"].append(self._pit(part, own))
        single, together = (pit_moments(torch.cat(pits[name])) for name in ("single", "several"))
        moments = for_ensemble(single, together, several, self.members)
        self.pit_map = pit_map(moments, n=sum(map(len, pits["several"]))).to(self.device)

    def _pit(self, batch: Batch, members: Tensor) -> Tensor:
        """PIT before recalibration, of the ``members`` (members, batch) chosen for each object."""
        cdf, *_ = self._mixture(batch, members)
        return grid.scores(cdf, self.edges, batch["redshift"])["pit"]

    # --- likelihood ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Minus the mean log likelihood of the labels, and of their sources given x.

        In training a member learns from all folds but its own, in validation it is scored on that.
        """
        z, source = batch["redshift"], batch["source"]
        own = self._own_fold(batch)
        weight = ~own * self.folds / (self.folds - 1) if self.training else own * self.folds
        h = self.encoder(*self._inputs(batch)).float()
        parameters = self.head(h).float()
        if len(self.sources) == 1:
            log_label = self._log_density(parameters, z)
            return -(log_label * weight).mean()
        deviation = self.deviation(h).float().unflatten(-1, (len(self.sources), -1))
        index = source.view(1, -1, 1, 1).expand(len(h), -1, 1, parameters.shape[-1])
        deviation = deviation.gather(2, index).squeeze(2)
        log_label = self._log_label(parameters + deviation, z, source, batch["label_error"])
        log_gate = F.log_softmax(self.gate(h.detach()).float(), -1)
        log_source = log_gate.gather(-1, source.view(1, -1, 1).expand(len(h), -1, 1)).squeeze(-1)
        penalty = self.shrinkage * deviation.square().mean() if self.training else 0.0
        return -((log_label + log_source) * weight).mean() + penalty

    def _log_density(self, parameters: Tensor, z: Tensor) -> Tensor:
        """log p(z) of a source's flow with the uniform floor, (members, batch)."""
        mean, std = self.y_scale
        log_p = self.flow.log_prob(parameters, (torch.log1p(z) - mean) / std)
        log_p = log_p - torch.log1p(z) - std.log()
        floor = torch.full_like(log_p, math.log(TRAIN_FLOOR / self.z_max))
        return torch.logaddexp(log_p + math.log1p(-TRAIN_FLOOR), floor)

    def _log_label(
        self, parameters: Tensor, z: Tensor, source: Tensor, label_error: Tensor
    ) -> Tensor:
        """log (1 - f) int p(z') N(z; z', sigma (1 + z')) dz' + f p_cat(z), (members, batch).

        The integral is a sum over cells of z' within 4 sigma of the label: the flow's own mass in a
        cell times the kernel at its centre, so that a density narrower than a cell is not missed.
        """
        sigma, catastrophic = self._label_noise()
        sigma = (sigma[:, source].square() + (label_error / (1 + z)).square()).sqrt()
        f = catastrophic[:, source]
        t = torch.linspace(-4, 4, NODES, device=z.device).view(-1, 1, 1)
        true_z = ((1 + z) / (1 + sigma * t).clamp_min(0.05) - 1).clamp_min(-0.5)  # falls with t
        mean, std = self.y_scale
        cdf = self.flow.cdf(parameters, (torch.log1p(true_z) - mean) / std)
        mass = (cdf[:-1] - cdf[1:]).clamp_min(0)
        mid = 0.5 * (t[1:] + t[:-1])
        kernel = torch.exp(-0.5 * mid.square()) / math.sqrt(2 * math.pi)
        kernel = kernel * (1 + sigma * mid) / (sigma.clamp_min(1e-6) * (1 + z))
        uniform = torch.sigmoid(self.logit_uniform)[:, source]
        cell = (z / self.z_max * CATASTROPHIC_CELLS).long().clamp(0, CATASTROPHIC_CELLS - 1)
        p_cat = uniform / self.z_max + (1 - uniform) * self.n_z[cell]
        noisy = torch.log((1 - f) * (mass * kernel).sum(0) + f * p_cat + 1e-12)
        return torch.where(sigma > 0, noisy, self._log_density(parameters, z))

    def _label_noise(self) -> tuple[Tensor, Tensor]:
        """sigma_s and f_s of each member, (members, sources); given for the clean source."""
        clean = torch.arange(len(self.sources), device=self.log_sigma.device) == self.clean
        sigma = torch.where(clean, self.clean_sigma, self.log_sigma.exp())
        return sigma, torch.where(clean, 0.0, torch.sigmoid(self.logit_catastrophic))

    def _own_fold(self, batch: Batch) -> Tensor:
        """(members, batch), bool: whether the row is in the fold that the member never learns."""
        member = torch.arange(self.members, device=batch["row"].device)
        return batch["row"] % self.folds == member[:, None] % self.folds

    # --- features -----------------------------------------------------------------------------

    def _features(self, batch: Batch) -> Tensor:
        """Luptitudes, neighbouring colours, log errors of luptitudes; NaN where not observed."""
        flux, error = batch["flux"], batch["flux_err"]
        mag = luptitude(flux, self.softening)
        mag_err = luptitude_err(flux, error, self.softening)
        return torch.cat([mag, mag[:, :-1] - mag[:, 1:], mag_err.log()], 1)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Standardised numbers, 0 where not observed, and flags (observed, detected)."""
        x = (self._features(batch) - self.feature_mean) / self.feature_std
        flags = torch.cat([batch["flux"].isfinite(), batch["detected"]], 1)
        return x.nan_to_num(0.0).clamp(-6, 6), flags

    def _support_features(self, batch: Batch) -> Tensor:
        n = len(self.bands)
        x = (self._features(batch) - self.feature_mean) / self.feature_std
        return torch.cat([x[:, :n], x[:, -n:]], 1)

    # --- prediction ---------------------------------------------------------------------------

    def _mixture(self, batch: Batch, chosen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative p(z) at the edges (batch, n_grid + 1), the responsibilities (batch, sources)
        and the weighted parts that sum to the first (sources, batch, n_grid + 1).

        ``chosen`` (members, batch), bool: the members that speak for each object; None: all.
        """
        h = self.encoder(*self._inputs(batch))
        common = self.head(h)
        share = torch.ones(common.shape[:2], device=h.device) if chosen is None else chosen.float()
        share = share / share.sum(0)
        mean, std = self.y_scale
        y = (torch.log1p(self.edges) - mean) / std
        if len(self.sources) == 1:
            deviations = torch.zeros_like(common)[:, :, None]
            gate = torch.ones_like(share)[..., None]
        else:
            deviations = self.deviation(h).unflatten(-1, (len(self.sources), -1))
            gate = F.softmax(self.gate(h), -1)
        responsibility = (gate * share[..., None]).sum(0)
        if self.target is not None:
            gate = torch.ones_like(gate)
        parts = []
        for s in range(len(self.sources)):
            if self.target not in (None, s):
                continue
            cdf = self.flow.cdf_on_grid(common + deviations[:, :, s], y)  # (members, batch, edges)
            first, last = cdf[..., :1], cdf[..., -1:]
            weight = (gate[..., s] * share)[..., None] / (last - first).clamp_min(1e-12)
            parts.append(((cdf - first) * weight).sum(0))
        stacked = torch.stack(parts)
        return stacked.sum(0).clamp(0, 1), responsibility, stacked

    def _flags(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """Bits, int16: see `FLAGS`."""
        n = len(self.bands)
        observed = batch["flux"].isfinite()
        x = (self._features(batch) - self.feature_mean) / self.feature_std
        bits = (
            ~observed.all(1),
            ~(batch["detected"] > 0).any(1),
            rows["ood"] > 0.999,
            (x[:, -n:].nan_to_num(0.0) > self.error_limit).any(1),
            rows["z_q84"] - rows["z_q16"] > 2 * OUTLIER * (1 + rows["z_median"]),
        )
        return sum(bit.short() * 2**i for i, bit in enumerate(bits))  # type: ignore[return-value]

    # --- what the rows are --------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        columns = {
            "z_mode": "highest peak of p(z), refined off the grid",
            "z_mean": "mean of p(z)",
            "z_std": "standard deviation of p(z)",
            **{name: f"{100 * q:g}% quantile of p(z)" for name, q in QUANTILES.items()},
            "mag_ref": "asinh magnitude in the reference band, AB",
            **{f"responsibility_{s}": f"share of source {s} in p(z)" for s in self.sources},
            "ood": "share of training objects that are less unusual than this one",
            "flags": FLAGS,
            "pz": "p(z) in the cells of the grid z_grid",
            "z_samples": "independent draws from p(z)",
            "z_true": "redshift of the catalogue",
            "pit": "cumulative p(z) at the true redshift",
            "pit_raw": "the same before recalibration",
            "crps": "continuous ranked probability score",
            "nll": "-ln of 0.999 p(z_true) + 0.001 uniform",
            "cde_loss": "integral of p^2 - 2 p(z_true)",
        }
        found = {name: Output("", text, f"ancil/{name}") for name, text in columns.items()}
        found["mag_ref"] = found["mag_ref"]._replace(unit="mag")
        found["pz"] = found["pz"]._replace(location="data/yvals")
        if not self.n_samples:
            del found["z_samples"]
        return found

    @property
    def constants(self) -> dict[str, Constant]:
        """The grid of ``pz``, and what else qp needs to read the HDF5 file: ``qp.read(path)``."""
        z = grid.centres(self.edges).cpu().numpy()[None]
        return {
            "z_grid": Constant(z, "meta/xvals"),
            "pdf_name": Constant(np.array([b"interp"]), "meta/pdf_name"),
            "pdf_version": Constant(np.array([0]), "meta/pdf_version"),
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
        with torch.autocast(self.device.type, enabled=False):  # a cdf needs float32
            parts = [self._predict(part) for part in _slices(tensors, 256)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raw, responsibility, _ = self._mixture(batch)
        cdf = grid.with_floor(apply_pit_map(self.pit_map, raw), FLOOR)
        mean, std = grid.moments(cdf, self.edges)
        levels = torch.tensor([list(QUANTILES.values())], device=cdf.device)
        quantiles = grid.quantile(cdf, self.edges, levels)
        mag = luptitude(batch["flux"], self.softening).nan_to_num(torch.nan)
        rows = {
            "z_mode": grid.mode(cdf, self.edges),
            "z_mean": mean,
            "z_std": std,
            **dict(zip(QUANTILES, quantiles.unbind(1), strict=True)),
            "mag_ref": mag.index_select(1, self.reference[None])[:, 0],
            **{f"responsibility_{s}": responsibility[:, i] for i, s in enumerate(self.sources)},
            "ood": self.support(self._support_features(batch)),
            "pz": grid.density(cdf, self.edges),
        }
        rows["flags"] = self._flags(batch, rows)
        if self.n_samples:
            rows["z_samples"] = grid.sample(cdf, self.edges, batch["row"], self.n_samples)
        if "redshift" in batch:
            z = batch["redshift"]
            rows |= {"z_true": z, **grid.scores(cdf, self.edges, z)}
            rows["pit_raw"] = grid.scores(raw, self.edges, z)["pit"]
        return rows

    def learned(self) -> dict[str, float]:
        """Label noise of each source but the clean one: sigma in units of 1 + z, and fraction."""
        if len(self.sources) == 1:
            return {}
        sigma, catastrophic = (values.mean(0).tolist() for values in self._label_noise())
        found = {}
        for i, source in enumerate(self.sources):
            if i != self.clean:
                found[f"label_sigma_{source}"] = sigma[i]
                found[f"label_catastrophic_{source}"] = catastrophic[i]
        return found

    def scope(self) -> list[str]:
        ranges = [
            f"{band} {low:.1f} to {high:.1f}"
            for band, (low, high) in zip(self.bands, self.mag_range.T.tolist(), strict=True)
        ]
        return [
            f"AB magnitudes (1% to 99% of the training objects): {', '.join(ranges)}",
            f"redshifts 0 to {self.z_max:g}, for objects selected as the training set is",
            "other objects are answered too; `ood` and `flags` say so",
            f"labels from: {', '.join(self.sources)}; clean: {self.sources[self.clean]}",
        ]

    def examples(self, batch: Batch) -> dict[str, Tensor]:
        """What each source adds to p(z), for the figures."""
        tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
        with torch.autocast(self.device.type, enabled=False):
            mixed, _, parts = self._mixture(tensors)
        whole = grid.density(grid.with_floor(apply_pit_map(self.pit_map, mixed), FLOOR), self.edges)
        share = (parts.diff(dim=-1) / mixed.diff(dim=-1).clamp_min(1e-12)).clamp(0, 1)
        shown_sources = self.sources if self.target is None else [self.sources[self.target]]
        shown = {f"pz_{s}": share[i] * whole for i, s in enumerate(shown_sources)}
        return shown

    def stack_table(self, stacked: Stack) -> dict[str, np.ndarray]:
        """n(z) of each group with its bootstrap error, from the stacked p(z)."""
        table = stacked.table(grid.centres(self.edges).cpu().double().numpy())
        names = {"x": "z", "density": "n_z", "density_std": "n_z_std"}
        return {names.get(key, key): values for key, values in table.items()}

    def metrics(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        if "z_true" not in rows:
            return {}
        z, pit = rows["z_true"].astype(float), rows["pit"].astype(float)
        dz = (rows["z_median"] - z) / (1 + z)
        found = {
            "n": len(z),
            "bias": float(np.median(dz)),
            "nmad": float(1.4826 * np.median(np.abs(dz - np.median(dz)))),
            "outlier_fraction": float(np.mean(np.abs(dz) > OUTLIER)),
            "crps": float(np.mean(rows["crps"], dtype=float)),
            "nll": float(np.mean(rows["nll"], dtype=float)),
            "cde_loss": float(np.mean(rows["cde_loss"], dtype=float)),
            "pit_ks": _ks(pit),
            "coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
            "coverage_95": float(np.mean(np.abs(pit - 0.5) < 0.475)),
        }
        if "pit_raw" in rows:
            found["pit_ks_raw"] = _ks(rows["pit_raw"].astype(float))
        return found

    def true_model(self, data: Any) -> dict[str, np.ndarray]:
        z, pdf = data.true_posterior(grid.centres(self.edges).double())
        if z is None:
            return {}
        mass = (pdf / pdf.sum(1, keepdim=True)).float()
        cdf = F.pad(mass.cumsum(1), (1, 0))
        rows = {"z_true": z.float(), **grid.scores(cdf, self.edges, z.float())}
        rows["z_median"] = grid.quantile(cdf, self.edges, torch.tensor([[0.5]]))[:, 0]
        return {name: values.numpy() for name, values in rows.items()}


def _ks(pit: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of PIT values from uniform."""
    pit, n = np.sort(pit), len(pit)
    step = np.arange(n + 1) / n
    return float(max(np.max(step[1:] - pit), np.max(pit - step[:-1])))


def _slices(batch: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    n = len(next(iter(batch.values())))
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, n, size)]
