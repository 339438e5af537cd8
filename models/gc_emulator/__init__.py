"""gc_emulator: a differentiable globular cluster, and inference with it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from orrery.models.base import (
    Batch,
    Component,
    Data,
    Evaluation,
    Exported,
    Fit,
    Output,
    Posterior,
    PredictedRows,
)
from orrery.models.gc_emulator.calibration import calibration_metrics, simulated_posteriors
from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.evaluation import (
    HasMockCluster,
    outlier_warnings,
    posterior_warnings,
)
from orrery.models.gc_emulator.exported import exported
from orrery.models.gc_emulator.figure_data import sky_profiles, space_profiles
from orrery.models.gc_emulator.goodness_of_fit import (
    description,
    goodness_of_fit,
    star_fit,
)
from orrery.models.gc_emulator.inference import (
    ClusterData,
    Draws,
    posterior_of,
    sample,
    summary_metrics,
)
from orrery.models.gc_emulator.posterior import PhaseSpacePosterior
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.models.gc_emulator.start import ClusterPosterior
from orrery.models.layers.grid import counter_uniform
from orrery.models.layers.slices import in_slices
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.cluster_projection import project
from orrery.physics.clusters.observations import PhaseSpaceStars, SimulatedSets, SkyStars

MIN_ENERGY = 1e-3  # of W0: stars of a lower energy are not compared, relative errors of f diverge
N_RADII, OUTERMOST_RADIUS = 100, 0.99  # projected radii compared, and the last of them, r_t
FIGURE_DRAWS = 400  # posterior draws whose profiles are drawn over the stars
PCA_MODELS = 600  # whose principal components compress the tables
MODELS_PER_SLICE = 64  # models that are tested at once
TEST_MASS, TEST_RH = 10**5.5, 5.0  # of the clusters that are tested and timed, Msun and pc


class GCEmulator(Component):
    """Emulator of lowered isothermal (LIMEPY) globular clusters, and inference with it.

    Paper: arXiv:2311.03704. The potential phi(r; W0, g), the scale radii, the masses and the
    profiles on the sky are interpolated from their values at Chebyshev nodes; the distribution
    function f, the density and the velocity dispersions are closed forms of phi. The fit is one
    pass: a gradient step of unit length on the squared error at a node gives the node its value.
    float64 throughout.

    In: the batch of `datamodules.gc_emulator`, each (batch,) without unit: ``W0``, central
    potential; ``g``, truncation index; of an anisotropic emulator ``rh_ra``, half-mass over
    anisotropy radius. Out: a row per model, see `outputs`. `infer` returns the posterior of a
    cluster given `physics.clusters.observations`.

    Settings:
        n_W0, n_g: Chebyshev nodes in W0 and in g.
        n_q: nodes in the radial coordinate q.
        n_ra: nodes in (r_h / r_a)^2; 1: isotropic models only.
        modes: principal components kept of the table of phi and scales, and of the table of
            profiles on the sky; empty: all columns are kept.
        steps: Runge-Kutta steps of the solver that gives the values at the nodes.
        n_stars: simulated stars per model on which a model is tested.
        chains, warmup, draws: of HMC; warmup and draws are transitions of each chain.
        marginal: whether the true coordinates of stars on the sky are integrated out by
            quadrature; otherwise they are sampled.
        epochs: passes over the nodes; one is the fit.
    """

    prediction_settings: ClassVar = frozenset(("chains", "warmup", "draws", "marginal", "n_stars"))

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

    def prepare(self, data: Data) -> None:
        """Principal components of the tables, from an evenly spaced subset of the nodes."""
        if self.modes:
            nodes = data.training_batch()
            stride = max(1, len(nodes["W0"]) // PCA_MODELS)
            W0, g, *rh_ra = (
                nodes[name][::stride] for name in ("W0", "g", "rh_ra") if name in nodes
            )
            self.emulator.fit_modes(_solve(W0, g, rh_ra[0] if rh_ra else None, self.steps))

    def loss(self, batch: Batch) -> Tensor:
        """Half the squared error of all table columns, summed over columns, mean over models."""
        parameters = batch["W0"], batch["g"], batch.get("rh_ra")
        predicted = self.emulator.columns_at(*parameters)
        with torch.no_grad():
            exact = self.emulator.targets(_solve(*parameters, self.steps))
        errors = [(a - b).square().sum(1) for a, b in zip(predicted, exact, strict=True)]
        return 0.5 * torch.stack(errors).sum(0).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        """Step length = batch size: the loss is a mean over a batch, which has each node once."""
        return torch.optim.SGD(self.parameters(), lr=float(self.trainer.datamodule.batch_size))  # type: ignore[attr-defined]

    # --- tests of the emulator ----------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        columns = {
            "W0": Output("", "central potential in units of s^2"),
            "g": Output("", "truncation index"),
            "rt_rh": Output("", "truncation radius over half-mass radius"),
            "rh_r0": Output("", "half-mass radius over King radius"),
            "mass_model": Output("", "mass in units of r_0 s^2 / G"),
            "sigma_0": Output("", "central one-dimensional velocity dispersion, in units of s"),
            "flags": Output(
                "",
                f"bits: 1 g within {limepy.MARGIN:g} of g_max; 2 outside the domain, all NaN",
                dtype="int32",
            ),
            "f_max_rel_error": Output("", f"largest relative error of f over {self.n_stars} stars"),
            "phi_max_rel_error": Output("", "the same of the potential"),
            "rho_max_rel_error": Output("", "the same of the density"),
            "surface_density_max_rel_error": Output(
                "", "largest relative error at projected radii R < 0.99 r_t"
            ),
            "sigma_sky_max_rel_error": Output(
                "", "the same of the three velocity dispersions on the sky"
            ),
            "dlogl": Output("", "error of the log likelihood of the stars, nats"),
        }
        return {
            name: column if name == "flags" else column._replace(dtype="float64")
            for name, column in columns.items()
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        return in_slices(self._test_models, batch, MODELS_PER_SLICE)

    def _test_models(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of `outputs`: each model against a solution in twice the steps of the training's.

        The stars lie at radii drawn from the mass profile, with kinetic energies uniform up to
        escape: more of them near the edge of f than a cluster has, where f is hardest to emulate.
        """
        W0, g, row, rh_ra = batch["W0"], batch["g"], batch["row"], batch.get("rh_ra")
        inside = (W0 >= limepy.W0_MIN) & (W0 <= limepy.W0_MAX) & (g >= 0)
        inside &= g <= limepy.g_limit(W0.clamp(limepy.W0_MIN, limepy.W0_MAX), rh_ra)
        W0_in, g_in = torch.where(inside, W0, 7.0), torch.where(inside, g, 0.5)
        mass, rh = torch.full_like(W0, TEST_MASS), torch.full_like(W0, TEST_RH)
        ra = inverse_ra2 = None
        if rh_ra is not None:
            inside &= (rh_ra >= 0) & (rh_ra <= 1)
            rh_ra = torch.where(inside, rh_ra, 0.0)
            ra, inverse_ra2 = rh / rh_ra, (rh_ra / rh).square()[:, None]
        solution = _solve(W0_in, g_in, rh_ra, 2 * self.steps)
        cluster = self.emulator.cluster(W0_in, g_in, mass, rh, ra)

        u = counter_uniform(row, 3 * self.n_stars).double().split(self.n_stars, 1)
        r = limepy.radius_of_mass(solution, u[0])
        phi, _ = limepy.at_radius(solution, r)
        energy = phi * u[1]
        compared = energy > MIN_ENERGY * W0_in[:, None]
        r0 = rh / solution.rh
        s2 = limepy.G * mass / (r0 * solution.mt)
        log_f = limepy.log_df(solution, energy.clamp_min(1e-300), r0, s2)
        r2, v2 = (r * r0[:, None]).square(), 2 * (phi - energy) * s2[:, None]
        j2 = None
        if inverse_ra2 is not None:
            j2 = r2 * v2 * u[2]
            log_f = log_f - 0.5 * j2 * inverse_ra2 / s2[:, None]

        def largest(error: Tensor) -> Tensor:
            return _largest(torch.where(compared, error, 0.0))

        d_log_f = cluster.log_df(r2, v2, j2) - log_f
        # projected radii: equal steps of ln(1 + R^2), to the outermost
        steps = torch.linspace(0, 1, N_RADII, dtype=r.dtype, device=r.device)
        R2 = torch.expm1(torch.log1p((OUTERMOST_RADIUS * solution.rt[:, None]).square()) * steps)
        emulated, exact = cluster.projected(R2 * r0[:, None] ** 2), project(solution, R2.sqrt())
        v2_ratio = torch.cat(emulated[1:], 1) / (torch.cat(exact[1:], 1) * s2[:, None])
        rows = {
            "rt_rh": cluster.rt[:, 0] / TEST_RH,
            "rh_r0": TEST_RH / cluster.r0[:, 0],
            "mass_model": cluster.mt[:, 0],
            "sigma_0": cluster.dispersions(torch.zeros_like(r2[:, :1]))[0][:, 0] / cluster.s[:, 0],
            "f_max_rel_error": largest(torch.expm1(d_log_f)),
            "phi_max_rel_error": largest(cluster.potential(r2) / phi - 1),
            "rho_max_rel_error": largest(
                cluster.density(r2) * (4 * torch.pi * r0**3 * solution.mt / 9 / mass)[:, None]
                / limepy.density(solution, phi, r) - 1
            ),
            "surface_density_max_rel_error": _largest(
                emulated.surface_density / exact.surface_density * (r0**2 / mass)[:, None] - 1
            ),
            "sigma_sky_max_rel_error": _largest(v2_ratio.sqrt() - 1),
            "dlogl": torch.where(compared, d_log_f, 0.0).sum(1).abs(),
        }  # fmt: skip
        flags = (g > limepy.g_max(W0_in) - limepy.MARGIN).short() + 2 * (~inside).short()
        return {
            "W0": W0,
            "g": g,
            **{name: torch.where(inside, values, torch.nan) for name, values in rows.items()},
            "flags": flags,
        }

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        """Errors of the emulator over all rows, and the posterior of a mock cluster."""
        inside = rows["flags"] < 2
        errors = [name for name in self.columns if name.endswith("max_rel_error")]
        metrics: dict[str, float] = {"n": int(inside.sum())}
        metrics |= {name: float(rows[name][inside].max()) for name in errors}
        metrics["dlogl_2000_max"] = float(rows["dlogl"][inside].max())
        evaluation = Evaluation(
            metrics,
            timings=self.timing_cases(),
            smaller_is_better=frozenset((*errors, "dlogl_2000_max")),
        )
        mock = data.mock_cluster() if isinstance(data, HasMockCluster) else None
        if mock is not None:
            posterior = self.infer(mock, None, mock.seed)
            evaluation.fitted_parameters = dict(posterior.metrics)
            evaluation.figures["mock"] = dict(posterior.draws)
        return evaluation

    # --- inference ----------------------------------------------------------------------------

    def infer(self, data: ClusterData, folder: Path | None, seed: int) -> Posterior:
        """The posterior of W0, g, M, r_h and what else the observations of ``data`` need."""
        observations = data.observations()
        emulator = self.emulator.requires_grad_(False)
        if isinstance(observations, SimulatedSets):
            return self._calibrate_posteriors(observations, folder, seed)
        posterior = posterior_of(emulator, observations, self.marginal)
        draws = self._sample(posterior, folder, seed)
        metrics = draws.metrics | summary_metrics(draws, data.truth())
        warnings = posterior_warnings(draws.u, metrics, posterior.distance_index)
        if isinstance(posterior, ProfilesPosterior):
            fit = goodness_of_fit(posterior, draws.u, seed)
            metrics |= fit.metrics
            warnings = _described(metrics, "profiles") + fit.warnings + warnings
            return Posterior(
                draws.arrays(), posterior.units, metrics, warnings, fit.groups,
                {"profiles": fit.figure} if fit.figure else {},
            )  # fmt: skip
        stride = max(1, draws.u[0, :, :, 0].numel() // FIGURE_DRAWS)
        u = draws.u.flatten(1, 2)[:, ::stride]
        groups, membership = {}, None
        if isinstance(posterior, PhaseSpacePosterior):
            if posterior.has_outliers:
                membership = posterior.mean_membership(u)
                warnings = warnings + outlier_warnings(membership)
            figure, p_values = star_fit(lambda: space_profiles(posterior, u, membership))
        else:
            if posterior.has_field_stars:
                membership = posterior.mean_membership(draws.with_latents)
            figure, p_values = star_fit(lambda: sky_profiles(posterior, u, membership))
        metrics |= p_values
        warnings = _described(metrics, "stars") + warnings
        if membership is not None:
            groups["members"] = {"probability": membership.cpu().numpy()}
            if isinstance(observations, PhaseSpaceStars | SkyStars):
                groups["members"] = {**observations.rows, **groups["members"]}
        metrics["n"] = float(posterior.n_stars)
        figures = {"profiles": figure} if figure else {}
        return Posterior(draws.arrays(), posterior.units, metrics, warnings, groups, figures)

    def _calibrate_posteriors(
        self, sets: SimulatedSets, folder: Path | None, seed: int
    ) -> Posterior:
        """Ranks of the truth in posteriors of simulated data sets; draws of the first of them."""
        posterior, truth = simulated_posteriors(self.emulator, sets)
        posterior.accept = 0.95  # at the ends of the prior posteriors have walls
        draws = self._sample(posterior, folder, seed)
        metrics, ranks = calibration_metrics(draws.named, truth, sets.seed)
        metrics, figures = draws.metrics | metrics, {"calibration": ranks}
        return Posterior(draws.arrays(), posterior.units, metrics, figures=figures)

    def _sample(self, posterior: ClusterPosterior, folder: Path | None, seed: int) -> Draws:
        return sample(posterior, self.chains, self.warmup, self.draws, seed, folder)

    def timing_cases(self) -> dict[str, tuple[Callable[[], object], float]]:
        """Value and gradient of star likelihoods and of profiles, and the solver."""
        parameters = torch.tensor([[7.0, 1.3, TEST_MASS, TEST_RH]], dtype=torch.float64)
        W0 = torch.linspace(2, 12, 512, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)

        def gradient(n: int) -> Callable[[], object]:
            x, v = 3 * torch.randn(2, 1, n, 3, dtype=torch.float64, generator=generator)

            def value_and_gradient() -> object:
                with torch.inference_mode(False), torch.enable_grad():
                    p, x_, v_ = (t.clone().requires_grad_() for t in (parameters, x, v))
                    cluster = self.emulator.cluster(*p.unbind(1))
                    j2 = None
                    if cluster.inverse_ra2 is not None:
                        j2 = torch.linalg.cross(x_, v_).square().sum(-1)
                    value = cluster.log_df(x_.square().sum(-1), v_.square().sum(-1), j2).sum()
                    return torch.autograd.grad(value, (p, x_, v_))

            return value_and_gradient

        R2 = torch.linspace(0, 30, 250, dtype=torch.float64).square().expand(8, -1)

        def profiles() -> object:
            with torch.inference_mode(False), torch.enable_grad():
                p = parameters.repeat(8, 1).requires_grad_()
                projected = self.emulator.cluster(*p.unbind(1)).projected(R2.clone())
                value = torch.stack(projected).log().sum()
                return torch.autograd.grad(value, p)

        cases: dict[str, tuple[Callable[[], object], float]] = {
            f"gradient_ms_{n}": (gradient(n), 1) for n in (1000, 10_000, 100_000)
        }
        cases["gradient_ms_profiles"] = (profiles, 1)  # of 8 clusters at 250 radii
        # 150 steps: 2e-6 in phi
        cases["solve_ms_per_model"] = (lambda: limepy.solve(W0, 0.1 * W0, steps=150), len(W0))
        return cases

    def domain_of_validity(self) -> list[str]:
        kind, limit = "isotropic", f"{limepy.MARGIN:g} below g_max(W0)"
        if self.emulator.shape[0] > 1:
            kind, limit = "radially anisotropic (r_a from 1 r_h up)", "0.2 to 0.3 below the g"
        return [
            f"{kind} single-mass models, W0 {limepy.W0_MIN:g} to {limepy.W0_MAX:g}, "
            f"g from 0 to {limit}, where the truncation radius diverges",
            "float64; clusters without rotation, tides or mass segregation",
        ]

    def exported(self) -> Exported:
        """Profiles on the sky of parameters."""
        return exported(self)


def _described(p_values: Mapping[str, float], data: str) -> list[str]:
    """Whether the model describes the ``data``: printed if it does, else a warning."""
    text, describes = description(p_values, data)
    if describes:
        print(text)
        return []
    return [text]


def _largest(error: Tensor) -> Tensor:
    """Largest absolute error of each model, (models,), of (models, n)."""
    return error.abs().amax(1)


def _solve(W0: Tensor, g: Tensor, rh_ra: Tensor | None, steps: int) -> limepy.Model:
    if rh_ra is None:
        return limepy.solve(W0, g, steps=steps)
    return limepy.solve_rh_ra(W0, g, rh_ra, steps)
