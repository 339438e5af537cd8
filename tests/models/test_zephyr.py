"""Claims about zephyr: its densities, its label noise, its calibration."""

import math

import numpy as np
import pytest
import torch
from conftest import train
from scipy import integrate

from orrery import load
from orrery.checkpoint import RECORD, build, read_checkpoint, restore
from orrery.model_card import model_card
from orrery.models.layers import grid
from orrery.models.layers.ensemble import Encoder
from orrery.models.layers.flows import LEAST_MASS, SPLINES, SplineFlow, zuko_spline
from orrery.models.zephyr.evaluation import local_limits
from orrery.models.zephyr.label_noise import LabelNoise
from orrery.models.zephyr.recalibration import (
    apply_pit_map,
    ensemble_pit_moments,
    pit_map,
    pit_moments,
)
from orrery.models.zephyr.support import Support

BACKENDS = sorted(SPLINES)


def random_parameters(flow, n=7, spread=1.0):
    return spread * torch.randn(n, flow.n_parameters, generator=torch.Generator().manual_seed(1))


# --- the flow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_density_integrates_to_one_and_to_its_cdf(backend, bins, components):
    flow = SplineFlow(bins, components, backend=backend)
    p = random_parameters(flow).double()
    y = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    density = flow.log_prob(p, y[:, None]).exp()
    total = torch.trapezoid(density, y, dim=0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-4)
    until = torch.trapezoid(density[:22_000], y[:22_000], dim=0)
    torch.testing.assert_close(until, flow.cdf(p, y[21_999]), rtol=0, atol=2e-4)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixture_on_a_grid_is_that_of_the_cdfs(backend, bins, components):
    """Narrow flows and broad ones, some of them outside the grid: but 1e-6 of each is there."""
    flow, z = SplineFlow(bins, components, backend=backend), torch.linspace(0, 3, 301).double()
    p = torch.stack([random_parameters(flow, 200, spread) for spread in (0.5, 2.0, 6.0)]).double()
    weight = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)).double()
    y = 4 * torch.log1p(z) - 3
    mixture = flow.mixture_on_grid(p, weight, y, lambda y: 100 * torch.expm1((y + 3) / 4))
    cdf = flow.cdf(p, y[:, None, None])
    inside = (cdf[-1] - cdf[0]).clamp_min(LEAST_MASS)
    assert float(inside.min()) < 1e-3 and float(inside.max()) > 0.999
    error = (mixture.T - ((cdf - cdf[0]) / inside * weight).sum(1)).abs()
    assert torch.all(error <= 1.1 * (weight * 2e-6 / inside).sum(0))
    assert flow.mixture_on_grid(p[:, :0], weight[:, :0], y, torch.expm1).shape == (0, 301)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cdf_at_nodes_is_the_cdf(backend):
    for components in (1, 2):
        flow = SplineFlow(8, components, backend=backend)
        p = random_parameters(flow)
        nodes = torch.randn(len(p), 9, generator=torch.Generator().manual_seed(0)) * 4
        slow = torch.stack([flow.cdf(p, column) for column in nodes.T], -1)
        torch.testing.assert_close(flow.cdf_at_nodes(p, nodes), slow, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("nflows", [-3.9157717, -6.6915593]), ("zuko", [-3.1753309, -6.3452630])],
)
def test_golden_log_probabilities(backend, expected):
    """A library that changes the meaning of stored weights changes these numbers."""
    flow = SplineFlow(4, 2, backend=backend)
    p = torch.sin(torch.arange(2 * flow.n_parameters)).view(2, -1)
    log_p = flow.log_prob(p, torch.tensor([0.3, -1.2]))
    torch.testing.assert_close(log_p, torch.tensor(expected), rtol=0, atol=1e-5)


def test_an_unknown_backend_lists_the_known():
    with pytest.raises(ValueError, match=r"'pyro' is not one of zuko, nflows"):
        SplineFlow(4, 1, backend="pyro")


def test_members_are_independent():
    """A member's output and gradient do not depend on the others."""
    torch.manual_seed(0)
    encoder = Encoder(3, 5, 2, 8, 1)
    x, flags = torch.randn(4, 5), torch.ones(4, 2)
    encoder(x, flags)[1].sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad[[0, 2]].abs().max() == 0, name
        assert parameter.grad[1].abs().max() > 0 or "bias" in name, name


# --- densities on a grid ------------------------------------------------------------------------


@pytest.fixture
def normals():
    """The cumulative distributions of three normals on a grid."""
    edges = torch.linspace(0, 4, 801, dtype=torch.float64)
    mean, std = torch.tensor([[1.0], [2.0], [2.5]]).double(), torch.tensor([[0.1], [0.3], [0.2]])
    cdf = torch.special.ndtr((edges - mean) / std)
    return (cdf - cdf[:, :1]) / (cdf[:, -1:] - cdf[:, :1]), edges, mean[:, 0], std[:, 0].double()


def test_summaries_of_normals(normals):
    cdf, edges, mean, std = normals
    found_mean, found_std = grid.moments(cdf, edges)
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(found_std, std, rtol=2e-3, atol=0)
    torch.testing.assert_close(grid.mode(cdf, edges), mean, rtol=0, atol=1e-4)
    upper = grid.quantile(cdf, edges, torch.tensor([[0.841344746]]).double())[:, 0]
    torch.testing.assert_close(upper, mean + std, rtol=0, atol=1e-3)


def test_scores_of_normals(normals):
    """CRPS and log density of a normal: Gneiting & Raftery (2007), eq. 21."""
    cdf, edges, mean, std = normals
    z = mean + std * torch.tensor([0.5, -1.0, 2.0])
    z = ((z / 0.005).floor() + 0.5) * 0.005  # at the centre of a cell, where its density is p(z)
    scores = grid.scores(cdf, edges, z)
    x = ((z - mean) / std).numpy()
    phi, big_phi = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + _erf(x / math.sqrt(2)))
    crps = std.numpy() * (x * (2 * big_phi - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    np.testing.assert_allclose(scores["crps"], crps, rtol=2e-3)
    np.testing.assert_allclose(scores["pit"], big_phi, atol=1e-4)
    density = 0.999 * phi / std.numpy() + 0.001 / 4
    np.testing.assert_allclose(scores["nll"], -np.log(density), atol=2e-3)
    square = 1 / (2 * math.sqrt(math.pi) * std.numpy())
    np.testing.assert_allclose(scores["cde_loss"], square - 2 * phi / std.numpy(), rtol=5e-3)


def test_crps_is_the_integral_that_defines_it():
    cdf, edges = torch.tensor([[0.0, 0.2, 0.9, 1.0]]).double(), torch.linspace(0, 3, 4).double()
    crps = grid.scores(cdf, edges, torch.tensor([1.3]).double())["crps"]

    def integrand(x):
        return (np.interp(x, edges, cdf[0]) - (x > 1.3)) ** 2

    expected, _ = integrate.quad(integrand, 0, 3, points=[1, 1.3, 2])
    assert float(crps) == pytest.approx(expected, rel=1e-6)


def test_a_truth_beyond_the_grid_is_finite_and_bad(normals):
    cdf, edges, *_ = normals
    scores = grid.scores(cdf, edges, torch.full((3,), 9.0).double())
    assert all(torch.isfinite(values).all() for values in scores.values())
    assert torch.all(scores["crps"] > 5) and torch.all(scores["pit"] == 1)


def test_samples_follow_the_density_and_the_row(normals):
    cdf, edges, mean, std = (v.float() for v in normals)
    rows = torch.tensor([5, 900, 10**12])
    draws = grid.sample(cdf, edges, rows, 20_000)
    torch.testing.assert_close(draws.mean(1), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(draws.std(1), std, rtol=0.03, atol=0)
    again = grid.sample(cdf[1:], edges, rows[1:], 20_000)
    assert torch.equal(draws[1:], again)
    u = grid.counter_uniform(torch.arange(2000), 50)
    assert abs(float(torch.corrcoef(u.T[:2])[0, 1])) < 0.08, "columns are independent"
    assert abs(float(torch.corrcoef(u[:2])[0, 1])) < 0.6, "rows are independent"


def test_recalibration_makes_the_pit_uniform():
    generator = torch.Generator().manual_seed(0)
    pit = torch.special.ndtr(1.4 * torch.randn(20_000, generator=generator) + 0.2)
    table = pit_map(pit_moments(pit[:10_000]), 10_000)
    before, after = (_ks(values) for values in (pit[10_000:], apply_pit_map(table, pit[10_000:])))
    assert before > 0.1 and after < 0.03
    assert torch.all(table.diff() > 0) and float(table[-1]) == pytest.approx(1, abs=1e-5)


def test_recalibration_leaves_the_calibrated_alone():
    identity = torch.linspace(0, 1, 513)
    pit = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert float((pit_map(pit_moments(pit), 10_000) - identity).abs().max()) < 0.015
    few = pit_map(pit_moments(pit[:3] ** 4), 3, ridge=100.0)
    assert float((few - identity).abs().max()) < 0.02


@pytest.mark.parametrize("of_rows", [0.0, 0.2])
def test_recalibration_of_an_ensemble_is_that_of_all_its_members(of_rows):
    """Members scatter about the truth by their start and by the rows that they learned, less where
    they have learned the object; two of one fold foretell the calibration of all ten."""
    generator = torch.Generator().manual_seed(0)
    n, folds = 40_000, 5
    fold = torch.arange(n) % folds
    truth = torch.randn(n, generator=generator)
    offset = 0.3 * torch.randn(2, folds, n, generator=generator)
    offset = offset + of_rows * torch.randn(folds, n, generator=generator)
    learned = torch.arange(folds)[:, None] != fold
    new = torch.special.ndtr(truth - offset)
    pits = torch.special.ndtr(truth * torch.where(learned, 0.7, 1.0) - offset * (1 - 0.4 * learned))
    ensemble, one_fold = pit_moments(new.mean((0, 1))), pit_moments(new[:, 0].mean(0))
    assert float((one_fold - ensemble).norm()) > 0.015
    assert float((ensemble_pit_moments(pits, fold) - ensemble).norm()) < 0.005
    single = ensemble_pit_moments(pits[:1], fold)
    torch.testing.assert_close(single, pit_moments(new[0, fold, torch.arange(n)]))


def test_support_is_a_quantile_of_the_training_set():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    support = Support(4)
    support.fit(x)
    score = support(x)
    assert float((score < 0.3).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(support(x[:5] + 100).min()) > 0.999
    gaps = x[:5].clone()
    gaps[:, 2] = torch.nan
    assert torch.isfinite(support(gaps)).all()


# --- the model ----------------------------------------------------------------------------------


def trained(runs, **settings):
    """The model of a quick run with other ``settings``, and a batch of its test objects."""
    checkpoint = read_checkpoint(runs("zephyr") / "best.ckpt")
    data = build(checkpoint[RECORD]["config"]["data"])
    return restore(checkpoint, settings), next(data.prediction_batches())


def test_p_of_z_integrates_to_one_and_is_never_zero(runs):
    for target in (None, "spec", "manyband"):
        model, batch = trained(runs, target_source=target)
        rows = model.predict_step(batch)
        width = float(model.edges[1])
        total = rows["pz"].sum(1) * width
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
        assert float(rows["pz"].detach().min()) > 0
        shares = sum(rows[f"responsibility_{s}"] for s in model.sources)
        torch.testing.assert_close(shares, torch.ones_like(shares))


def test_p_of_z_is_that_of_the_cdfs_on_the_whole_grid(runs):
    model, batch = trained(runs)
    with torch.inference_mode():
        fast = model._mixture(batch)
        model.flow.spline = lambda *spline: zuko_spline(*spline)  # one that has no fast way
        plain = model._mixture(batch)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


def test_parts_of_the_sources_sum_to_p_of_z(runs):
    model, batch = trained(runs)
    with torch.inference_mode():
        densities, rows = model.source_densities(batch), model.predict_step(batch)
    total = sum(densities[source] for source in model.sources)
    torch.testing.assert_close(total, rows["pz"], rtol=1e-3, atol=1e-3)


def test_the_label_likelihood_is_the_convolution(runs):
    """The quadrature over the label noise against a fine one of the same integral."""
    model = restore(read_checkpoint(runs("zephyr") / "best.ckpt"))
    common = model.head(torch.randn(model.members, 5, 32) * 2)
    label, source = torch.tensor([0.2, 0.7, 1.1, 1.9, 2.5]), torch.full((5,), 1)
    with torch.inference_mode():
        labels = {"redshift": label, "source": source, "label_error": torch.zeros(5)}
        log_likelihood = model._label_log_likelihood(common, labels)
        sigma, share = (values[:, 1] for values in model.noise.sigma_and_fraction())
        z = torch.linspace(1e-4, 5, 50_001)
        mean, std = model.y_scale
        log_p = model.flow.log_prob(common[..., None, :], (torch.log1p(z) - mean) / std)
        p = log_p.exp() / ((1 + z) * std)
        width = sigma[:, None, None] * (1 + z)
        kernel = torch.exp(-0.5 * ((label[:, None] - z) / width) ** 2) / (
            width * math.sqrt(2 * math.pi)
        )
        inside = torch.trapezoid(p * kernel, z, dim=-1)
        uniform = torch.sigmoid(model.noise.logit_uniform[:, 1])[:, None]
        cell = (label / model.z_max * 64).long()
        p_cat = uniform / model.z_max + (1 - uniform) * model.noise.n_z[cell]
        expected = ((1 - share[:, None]) * inside + share[:, None] * p_cat).log()
    torch.testing.assert_close(log_likelihood, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_noise_far_below_the_width_of_the_densities_is_estimated_without_running_away(seed):
    """The likelihood is flat towards sigma = 0: the search must end at numbers that mean something.

    Without a prior it ends at sigma = 0 and f = 1, at NaN, or out of bounds of the grid.
    """
    generator = torch.Generator().manual_seed(seed)
    n, width, share = 120, 0.1, 0.6
    edges = torch.linspace(0, 3, 101)
    centre = 0.5 + 2 * torch.rand(n, generator=generator)
    cdf = torch.special.ndtr((edges - centre[:, None]) / width)
    z = (centre + 0.3 * width * torch.randn(n, generator=generator)).clamp(0.01, 2.99)
    wrong = torch.rand(n, generator=generator) < share
    z = torch.where(wrong, z[torch.randperm(n, generator=generator)], z)
    noise = LabelNoise(1, 3, clean=0, clean_sigma=0.0, z_max=3.0, uniform_fraction=1e-3)
    noise.fit(z)
    noise.refit(cdf, edges, z, 1 + (torch.arange(n) < n // 3).long())
    sigma, catastrophic = noise.held_out[:, 1:]
    assert torch.all((sigma > 1e-3) & (sigma < width / 2))
    assert float(catastrophic[0]) == pytest.approx(share, abs=0.15)  # of 80 labels


def test_a_density_outside_the_grid_becomes_uniform(runs):
    model, batch = trained(runs)
    with torch.no_grad():
        model.head.bias[..., -2] = 60.0  # the mean of the base, far beyond the grid
        rows = model.predict_step(batch)
    total = rows["pz"].sum(1) * model.edges[1]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)


def test_flags_say_what_is_wrong(runs):
    model, batch = trained(runs)
    batch = {k: v[:4] for k, v in batch.items() if k != "keep"}
    batch["flux"][0, 0] = torch.nan
    batch["detected"][1] = 0
    batch["flux"][2] *= torch.tensor([1e4, 1e-4, 1e4, 1e-4, 1e4, 1e-4])
    batch["flux_err"][3] *= 1e4
    flags = model.predict_step(batch)["flags"]
    for row, bit in enumerate((1, 2, 4, 8)):
        assert flags[row] & bit, (row, bit)
    assert not flags[3] & 1


def test_the_card_says_what_the_flags_mean_and_what_cannot_be_measured(runs):
    model = restore(read_checkpoint(runs("zephyr") / "best.ckpt"))
    card = model_card("zephyr", model)
    for text in ("1 missing_band, a band", "16 wide, the central 68%", "cannot be measured"):
        assert text in card


def test_the_card_says_where_p_of_z_is_not_calibrated():
    metrics = {"n": 3000, "local_pit_p": 7e-4, "local_pit_rms": 0.13, "pit_faint": 0.55}
    (line,) = local_limits(metrics)
    assert "local_pit_p` 0.0007" in line and "faintest is a little too low" in line
    assert "too high" in local_limits(metrics | {"pit_faint": 0.45})[0]
    assert "faintest" not in local_limits(metrics | {"pit_faint": 0.51})[0], "that is noise"
    assert local_limits(metrics | {"local_pit_p": 0.2}) == local_limits({}) == []
    cosmos = load("zephyr_cosmos")
    assert local_limits(cosmos.record["metrics"])[0] in cosmos.domain_of_validity()


def test_nflows_trains_too(tmp_path):
    metrics = train("zephyr", tmp_path, "model.flow=nflows", "model.epochs=3")
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["crps"] < 0.4


@pytest.mark.slow
def test_label_noise_is_recovered_and_calibration_holds(tmp_path):
    """Three sources of labels: their noise is learned, and p(z) is of the true redshift."""
    from conftest import ROOT
    from hydra import compose, initialize_config_dir

    from orrery.train import train as run

    settings = ["members=2", "folds=2", "width=96", "epochs=15"]
    overrides = [f"run_dir={tmp_path}", *(f"model.{s}" for s in settings)]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        metrics = run(compose("train", overrides), overrides)
    assert metrics["label_sigma_manyband"] == pytest.approx(0.02, rel=0.25)
    assert metrics["label_catastrophic_manyband"] == pytest.approx(0.10, abs=0.03)
    assert metrics["label_catastrophic_grism"] == pytest.approx(0.05, abs=0.03)
    assert metrics["crps"] < 0.07 and metrics["pit_ks"] < 0.06
    assert metrics["nll"] > -1.9, "nothing beats the true model"


def _erf(x):
    return torch.erf(torch.as_tensor(x)).numpy()


def _ks(pit):
    pit = pit.sort().values
    return float((pit - torch.linspace(0, 1, len(pit))).abs().max())
