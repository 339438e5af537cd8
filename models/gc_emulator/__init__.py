"""gc_emulator: a differentiable globular cluster, and inference with it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orrery.models.base import Batch, Component, Evaluation, Fit, Output, Posterior, PredictedRows
from orrery.models.gc_emulator.calibration import calibration_metrics, simulated
from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.evaluation import warnings_of
from orrery.models.gc_emulator.figure_data import in_space, on_the_sky
from orrery.models.gc_emulator.goodness_of_fit import fit
from orrery.models.gc_emulator.inference import sample
from orrery.models.gc_emulator.posterior import PHASE, Stars
from orrery.models.gc_emulator.profiles import Profiles
from orrery.models.gc_emulator.selection import select
from orrery.models.gc_emulator.sky import Sky, sky_stars
from orrery.models.layers.grid import counter_uniform
from orrery.models.layers.slices import in_slices
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.cluster_projection import project

COUNTED = 1e-3  # of W0: energy of the stars that count; below it relative errors of f diverge
SEEN, RIM = 100, 0.99  # projected radii judged, and the outermost, r_t
SHOWN_DRAWS = 400  # models whose profiles are drawn over the stars
MODE_MODELS = 600  # whose principal components compress the tables
SLICE = 64  # models judged at once
MASS, RH = 10**5.5, 5.0  # of the cluster that is judged and timed, Msun and pc


class GCEmulator(Component):
    """Lowered isothermal (LIMEPY) globular clusters as an emulator, after arXiv:2311.03704.

    phi(r; W0, g), the scale radii, the masses and the profiles on the sky are held as values at
    Chebyshev nodes and follow by interpolation; the distribution function, the density and the
    dispersions are closed forms of phi. With ``n_ra`` > 1, r_h / r_a is a third parameter. The fit
    is one pass: a gradient step of unit length on the squared error at a node is the node's value.
    float64 throughout.

    In: the batch of `datamodules.gc_emulator`: ``W0``, ``g`` (, ``rh_ra``), (batch,). Out: a row
    per model, see `outputs`; `infer` gives the posterior of a star list.
    """

    def __init__(
        self,
        n_W0: int,
        n_g: int,
        n_q: int = 40,
        n_ra: int = 1,
        modes: Sequence[int] = (),
        steps: int = 800,
        n_stars: int = 2000,
        chains: int = 8,
        warmup: int = 300,
        draws: int = 1000,
        marginal: bool = False,
        epochs: int = 1,
    ) -> None:
        # the gradient's step is exact as it is; the tables are float64 in either precision
        super().__init__(Fit(epochs=epochs, clip=None, precisions=("32-true", "64-true")))
        self.steps, self.n_stars, self.modes = steps, n_stars, modes
        self.chains, self.warmup, self.draws = chains, warmup, draws
        self.marginal = marginal
        self.emulator = IsothermalEmulator(n_W0, n_g, n_q, n_ra, modes)

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        """The modes, from every so many of the nodes."""
        if self.modes:
            batch = data.training_batch()
            some = slice(None, None, max(1, len(batch["W0"]) // MODE_MODELS))
            share = batch["rh_ra"][some] if "rh_ra" in batch else None
            self.emulator.find_modes(
                _solved(batch["W0"][some], batch["g"][some], share, self.steps)
            )

    def loss(self, batch: Batch) -> Tensor:
        """Half the squared error at the nodes of q and of the scales, summed, model mean."""
        parameters = batch["W0"], batch["g"], batch.get("rh_ra")
        found = self.emulator.at(*parameters)
        with torch.no_grad():
            true = self.emulator.targets(_solved(*parameters, self.steps))
        errors = [(a - b).square().sum(1) for a, b in zip(found, true, strict=True)]
        return 0.5 * torch.stack(errors).sum(0).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        """A step of one batch's size: the loss is a mean over the batch, a node is in it once."""
        return torch.optim.SGD(self.parameters(), lr=float(self.trainer.datamodule.batch_size))  # type: ignore[attr-defined]

    # --- what the rows are --------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return {
            "W0": Output("", "central potential in units of s^2"),
            "g": Output("", "truncation index"),
            "rt_rh": Output("", "truncation radius over half-mass radius"),
            "rh_r0": Output("", "half-mass radius over King radius"),
            "mass_model": Output("", "mass in units of r_0 s^2 / G"),
            "sigma_0": Output("", "central one-dimensional velocity dispersion, in units of s"),
            "flags": Output(
                "",
                f"1 g is nearer than {limepy.MARGIN:g} to g_max, 2 outside the domain: no answer",
            ),
            "f_max_rel_error": Output("", f"worst error of f over {self.n_stars} stars"),
            "phi_max_rel_error": Output("", "the same of the potential at the stars"),
            "rho_max_rel_error": Output("", "the same of the density at the stars"),
            "surface_density_max_rel_error": Output("", "worst error where R < 0.99 r_t"),
            "sigma_sky_max_rel_error": Output("", "the same of the three dispersions on the sky"),
            "dlogl": Output("", "error of the log likelihood of all these stars"),
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        return in_slices(self._rows, batch, SLICE)

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of `outputs`, by a solution of twice the training's steps for each model.

        The stars lie at radii drawn from the mass profile, with kinetic energies uniform up to
        escape: more of them near the edge of f than a cluster has, where it is hardest.
        """
        W0, g, row, share = batch["W0"], batch["g"], batch["row"], batch.get("rh_ra")
        known = (W0 >= limepy.W0_MIN) & (W0 <= limepy.W0_MAX) & (g >= 0)
        known &= g <= limepy.g_limit(W0.clamp(limepy.W0_MIN, limepy.W0_MAX), share)
        W0_in, g_in = torch.where(known, W0, 7.0), torch.where(known, g, 0.5)
        mass, rh = torch.full_like(W0, MASS), torch.full_like(W0, RH)
        ra = inverse_ra2 = None
        if share is not None:
            known &= (share >= 0) & (share <= 1)
            share = torch.where(known, share, 0.0)
            ra, inverse_ra2 = rh / share, (share / rh).square()[:, None]
        truth = _solved(W0_in, g_in, share, 2 * self.steps)
        cluster = self.emulator.cluster(W0_in, g_in, mass, rh, ra)

        u = counter_uniform(row, 3 * self.n_stars).double().split(self.n_stars, 1)
        r = limepy.radius_of_mass(truth, u[0])
        phi, _ = limepy.at_radius(truth, r)
        energy = phi * u[1]
        counted = energy > COUNTED * W0_in[:, None]
        r0 = rh / truth.rh
        s2 = limepy.G * mass / (r0 * truth.mt)
        log_f = limepy.log_df(truth, energy.clamp_min(1e-300), r0, s2)
        r2, v2 = (r * r0[:, None]).square(), 2 * (phi - energy) * s2[:, None]
        j2 = None
        if inverse_ra2 is not None:
            j2 = r2 * v2 * u[2]
            log_f = log_f - 0.5 * j2 * inverse_ra2 / s2[:, None]

        def worst(error: Tensor) -> Tensor:
            return _worst(torch.where(counted, error, 0.0))

        d_log_f = cluster.log_df(r2, v2, j2) - log_f
        # projected radii: equal steps of ln(1 + R^2), to the rim
        steps = torch.linspace(0, 1, SEEN, dtype=r.dtype, device=r.device)
        R2 = torch.expm1(torch.log1p((RIM * truth.rt[:, None]).square()) * steps)
        seen, exact = cluster.projected(R2 * r0[:, None] ** 2), project(truth, R2.sqrt())
        v2_ratio = torch.cat(seen[1:], 1) / (torch.cat(exact[1:], 1) * s2[:, None])
        rows = {
            "rt_rh": cluster.rt[:, 0] / RH,
            "rh_r0": RH / cluster.r0[:, 0],
            "mass_model": cluster.mt[:, 0],
            "sigma_0": cluster.dispersions(torch.zeros_like(r2[:, :1]))[0][:, 0] / cluster.s[:, 0],
            "f_max_rel_error": worst(torch.expm1(d_log_f)),
            "phi_max_rel_error": worst(cluster.potential(r2) / phi - 1),
            "rho_max_rel_error": worst(
                cluster.density(r2) * (4 * torch.pi * r0**3 * truth.mt / 9 / mass)[:, None]
                / limepy.density(truth, phi, r) - 1
            ),
            "surface_density_max_rel_error": _worst(
                seen.surface_density / exact.surface_density * (r0**2 / mass)[:, None] - 1
            ),
            "sigma_sky_max_rel_error": _worst(v2_ratio.sqrt() - 1),
            "dlogl": torch.where(counted, d_log_f, 0.0).sum(1).abs(),
        }  # fmt: skip
        flags = (g > limepy.g_max(W0_in) - limepy.MARGIN).short() + 2 * (~known).short()
        return {
            "W0": W0,
            "g": g,
            **{name: torch.where(known, values, torch.nan) for name, values in rows.items()},
            "flags": flags,
        }

    def evaluate(self, rows: PredictedRows, data: Any) -> Evaluation:
        """Errors of the emulator over all rows, and the posterior of a mock cluster."""
        known = rows["flags"] < 2
        worst = [name for name in self.columns if name.endswith("max_rel_error")]
        metrics: dict[str, float] = {"n": int(known.sum())}
        metrics |= {name: float(rows[name][known].max()) for name in worst}
        metrics["dlogl_2000_max"] = float(rows["dlogl"][known].max())
        evaluation = Evaluation(
            metrics,
            timings=self.timing_cases(),
            smaller_is_better=frozenset((*worst, "dlogl_2000_max")),
        )
        if (mock := data.mock()) is not None:
            posterior = self.infer(mock, None, mock.seed)
            evaluation.fitted_parameters = dict(posterior.metrics)
            evaluation.figures["mock"] = dict(posterior.draws)
        return evaluation

    # --- inference ----------------------------------------------------------------------------

    def infer(self, data: Any, folder: Path | None, seed: int) -> Posterior:
        """The posterior of W0, g, M and r_h, and what else `GCStars` or `GCProfile` need."""
        if data.product == "calibration":
            return self._calibration(data, folder, seed)
        posterior = self._posterior(data)
        found = sample(posterior, self.chains, self.warmup, self.draws, seed, folder)
        draws = {name: values[0].cpu().numpy() for name, values in found.named.items()}
        facts = dict(found.facts)
        for name, values in draws.items():
            facts[name], facts[f"{name}_std"] = float(values.mean()), float(values.std())
            if name in data.truth():
                facts[f"{name}_true"] = data.truth()[name]
                facts[f"{name}_z"] = (facts[name] - data.truth()[name]) / facts[f"{name}_std"]
        if isinstance(posterior, Profiles):
            beside = fit(posterior, found.u, seed)
            told = [*beside.remarks, *warnings_of(found.u, facts, posterior.distance_index)]
            facts |= beside.facts
            return Posterior(
                draws, posterior.units, facts, told, beside.groups, {"profiles": beside.shown}
            )
        facts["n"] = float(posterior.n_stars)
        some = found.u.flatten(1, 2)[:, :: max(1, found.u[0, :, :, 0].numel() // SHOWN_DRAWS)]
        told = warnings_of(found.u, facts, posterior.distance_index)
        if isinstance(posterior, Stars):
            return Posterior(
                draws, posterior.units, facts, told, figures={"profiles": in_space(posterior, some)}
            )
        groups, member = {}, None
        if posterior.field:
            member = torch.stack([posterior.membership(u) for u in found.whole]).mean((0, 1, 2))
            groups["members"] = {**data.listed, "probability": member.cpu().numpy()}
        shown = on_the_sky(posterior, some, member)
        return Posterior(draws, posterior.units, facts, told, groups, {"profiles": shown})

    def _calibration(self, data: Any, folder: Path | None, seed: int) -> Posterior:
        """Ranks of the truth in posteriors of simulated data sets, in place of draws."""
        posterior, truth = simulated(self.emulator.requires_grad_(False), data, data.seed)
        posterior.accept = 0.95  # at the ends of the prior there are posteriors with walls
        found = sample(posterior, self.chains, self.warmup, self.draws, seed, folder)
        facts, ranks = calibration_metrics(found.named, truth, data.seed)
        draws = {name: values[0].cpu().numpy() for name, values in found.named.items()}
        return Posterior(draws, posterior.units, {**found.facts, **facts}, figures={"ranks": ranks})

    def _posterior(self, data: Any) -> Stars | Sky | Profiles:
        emulator = self.emulator.requires_grad_(False)
        if data.product == "profiles":
            return Profiles(emulator, data.profiles(), data.distance())
        stars = data.stars()
        if "ra" not in stars:
            return Stars(emulator, torch.stack([stars[name] for name in PHASE], -1)[None])
        chosen = data.selected()
        selection = None if chosen is None else select(*chosen)
        seen = sky_stars({name: value[None] for name, value in stars.items()})
        distance = data.distance(stars)
        return Sky(emulator, seen, distance, selection, data.field, self.marginal)

    def timing_cases(self) -> dict[str, tuple[Callable[[], object], int]]:
        """Value and gradient of the likelihood of so many stars, of profiles, and the solver."""
        parameters = torch.tensor([[7.0, 1.3, MASS, RH]], dtype=torch.float64)
        W0 = torch.linspace(2, 12, 512, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)

        def gradient(n: int) -> Callable[[], object]:
            x, v = 3 * torch.randn(2, 1, n, 3, dtype=torch.float64, generator=generator)

            def work() -> object:
                with torch.inference_mode(False), torch.enable_grad():
                    p, x_, v_ = (t.clone().requires_grad_() for t in (parameters, x, v))
                    cluster = self.emulator.cluster(*p.unbind(1))
                    j2 = None
                    if cluster.inverse_ra2 is not None:
                        j2 = torch.linalg.cross(x_, v_).square().sum(-1)
                    value = cluster.log_df(x_.square().sum(-1), v_.square().sum(-1), j2).sum()
                    return torch.autograd.grad(value, (p, x_, v_))

            return work

        R2 = torch.linspace(0, 30, 250, dtype=torch.float64).square().expand(8, -1)

        def profiles() -> object:
            with torch.inference_mode(False), torch.enable_grad():
                p = parameters.repeat(8, 1).requires_grad_()
                seen = self.emulator.cluster(*p.unbind(1)).projected(R2.clone())
                value = torch.stack(seen).log().sum()
                return torch.autograd.grad(value, p)

        works: dict[str, tuple[Callable[[], object], int]] = {
            f"gradient_ms_{n}": (gradient(n), 1) for n in (1000, 10_000, 100_000)
        }
        works["gradient_ms_profiles"] = (profiles, 1)  # of 8 clusters at 250 radii
        # 150 steps: 2e-6 in phi
        works["solve_ms_per_model"] = (lambda: limepy.solve(W0, 0.1 * W0, steps=150), len(W0))
        return works

    def domain_of_validity(self) -> list[str]:
        kind, limit = "isotropic", f"{limepy.MARGIN:g} below g_max(W0)"
        if self.emulator.shape[0] > 1:
            kind, limit = "radially anisotropic (r_a from 1 r_h up)", "0.2 to 0.3 below the g"
        return [
            f"{kind} single-mass models, W0 {limepy.W0_MIN:g} to {limepy.W0_MAX:g}, "
            f"g from 0 to {limit}, where the truncation radius diverges",
            "float64; clusters without rotation, tides or mass segregation",
        ]


def _worst(error: Tensor) -> Tensor:
    return error.abs().amax(1)


def _solved(W0: Tensor, g: Tensor, share: Tensor | None, steps: int) -> limepy.Model:
    if share is None:
        return limepy.solve(W0, g, steps=steps)
    return limepy.solve_share(W0, g, share, steps)
