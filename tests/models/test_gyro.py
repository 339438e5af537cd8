"""Claims about gyro: its densities, its ages and their limits, and what is refused."""

import math

import numpy as np
import pytest
import torch
from conftest import command, fresh_python

from orrery import pretrained
from orrery.checkpoint import build
from orrery.datamodules.gyro import GyroData
from orrery.models.gyro import BIT
from orrery.models.gyro.ages import (
    COLOUR_GRID,
    LOG_PERIOD_GRID,
    TYPICAL_ERRORS,
    cumulative,
)
from orrery.models.gyro.discrepancy import (
    COLOUR_OFFSETS,
    NONE,
    SCALES,
    TURNOVERS,
    fitted_discrepancies,
    growth,
    joint_cdf,
    mean_scale_and_turnover,
    without_colour_offset,
)
from orrery.models.gyro.migrations import ranks_unknown
from orrery.models.gyro.networks import Contamination, Rotation
from orrery.models.layers import grid
from orrery.physics.rotation import gyrochrones

GOLDEN = {
    "zuko_nsf": [-1.240014, -1.127509, -1.173472, -1.017804],
    "nflows_rqs": [-1.283593, -1.076838, -1.145491, -1.045794],
    "mixture": [-0.983033, -1.06911, -0.994289, -0.824902],
}
QUANTILES = ("age_q025", "age_q16", "age_q50", "age_q84", "age_q975")


@pytest.fixture(scope="module")
def model(runs):
    return pretrained.load(runs("gyro") / "best.ckpt")


@pytest.fixture(scope="module")
def shipped():
    return pretrained.load("gyro")


@pytest.fixture
def stars():
    table = gyrochrones.simulate(np.random.default_rng(1), 4, 60)
    return {name: np.array(values) for name, values in table.items()}


def test_the_density_of_a_period_integrates_to_one(model):
    rotation = model.rotation
    y = torch.linspace(-4, 5, 4000)
    with torch.no_grad():
        p = rotation.log_prob(y[:, None], torch.tensor([2.0]), torch.tensor([1.2])).exp()[..., 0]
    np.testing.assert_allclose(np.trapezoid(p.numpy(), y.numpy(), axis=1), 1, rtol=2e-3)


def test_outliers_may_have_any_period():
    contamination = Contamination(2)
    y = torch.linspace(-6, 7, 4000)
    with torch.no_grad():
        contamination.logit_coefficients[:, 2:] = torch.tensor([1.0, 2.0, 3.0])
        half = torch.full_like(y, 0.5)
        dwarf, outlier = contamination.log_parts(y, half, torch.zeros_like(y))
        np.testing.assert_allclose(dwarf.exp().numpy(), 0.5, rtol=1e-5)
        share = np.trapezoid(outlier.exp().numpy(), y.numpy(), axis=1)
        np.testing.assert_allclose(share, 0.5, rtol=1e-3)
        overluminosity = torch.tensor([0.0, 0.3, 0.8, 2.0, -1.0])
        half = torch.full((5,), 0.5)
        dwarf, _ = contamination.log_parts(overluminosity, half, overluminosity)
    logit = torch.logit(dwarf.exp())[0]
    expected = [0, 0, -0.5, -(2 - 0.3) - 2 * (2 - 0.9), -3 * (1 - 0.3)]
    np.testing.assert_allclose(logit.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("flow", ["zuko_nsf", "nflows_rqs", "mixture"])
def test_golden_densities(flow):
    """Neither of the libraries may change its spline unseen."""
    torch.manual_seed(0)
    rotation = Rotation(2, flow, 6, 3, 8, 1)
    with torch.no_grad():
        at = torch.tensor([0.7, 1.3]), torch.tensor([2.0, 3.0]), torch.tensor([0.8, 2.0])
        log_p = rotation.log_prob(*at).flatten()
    np.testing.assert_allclose(log_p, GOLDEN[flow], rtol=1e-4)


def exact_ages(gyro, batch, nodes=1):
    """Medians of log10 age, Gyr, by the networks themselves; errors by quadrature."""
    points = torch.linspace(-3.5, 3.5, nodes) if nodes > 1 else torch.zeros(1)
    weight = (-0.5 * points.square()).softmax(0).log()
    moved = {}
    for name, typical in TYPICAL_ERRORS.items():
        variance = (batch[f"{name}_error"].square() - typical**2).clamp_min(0)
        variance = variance + (gyro.field_scatter**2 if name == "colour" else 0)
        moved[name] = batch[name] + points[:, None] * variance.sqrt()
    columns = []
    with torch.no_grad():
        for age in gyro.table.ages:
            parts = []
            for colour, w in zip(moved["colour"], weight, strict=True):
                log_p = gyro.rotation.log_prob(moved["log_period"], age.expand(len(colour)), colour)
                log_p = log_p.logsumexp(0) - math.log(len(log_p))
                parts.append((log_p.view(nodes, -1) + weight[:, None]).logsumexp(0) + w)
            columns.append(torch.stack(parts).logsumexp(0))
        member = gyro.with_contamination(torch.stack(columns, 1), batch, slice(None))
        mass = (member + gyro.star_log_prior(batch["colour"])).softmax(1)
    return grid.quantile(cumulative(mass), gyro.edges, torch.tensor([[0.5]]))[:, 0] - 3


@pytest.mark.parametrize("colour_error, period_error, field, worst", [
    (0.01, 1e-3, 0.0, 0.005), (0.01, 0.05, 0.0, 0.01), (0.08, 0.02, 0.04, 0.01),
])  # fmt: skip
def test_the_table_gives_the_ages_of_the_exact_density(
    shipped, stars, colour_error, period_error, field, worst, monkeypatch
):
    """Of the shipped model, whose densities are the sharpest."""
    gyro = shipped
    monkeypatch.setattr(gyro, "field_scatter", field)
    data = GyroData(split="all")
    data.table = {name: values[:8] for name, values in stars.items()}
    batch = next(data.prediction_batches())
    n = len(batch["colour"])
    batch |= {
        "colour_error": torch.full((n,), colour_error),
        "log_period_error": torch.full((n,), period_error),
    }
    ours = gyro.predict_step(batch)["age_q50"].log10()
    off = ours - exact_ages(gyro, batch, nodes=1 if worst == 0.005 else 9)
    inside = (batch["colour"] > 0.5) & (batch["colour"] < 3.2)
    assert float(off[inside].abs().median()) < 0.002
    assert float(off[inside].abs().quantile(0.95)) < worst


@pytest.mark.parametrize("prot, colour", [(20.0, 0.9), (25.4, 0.82), (8.0, 0.72)])
def test_an_age_does_not_jump_with_the_colour_error(shipped, prot, colour):
    errors = np.linspace(0.001, 0.3, 60)
    ages = np.array([shipped.age(prot, colour, 0.2, e)["age_q50"] for e in errors])
    assert 0.001 < np.abs(np.diff(np.log10(ages))).max() < 0.02
    assert int(shipped.age(prot, colour, 0.2, 0.5)["flags"]) & BIT["extrapolated_error"]


@pytest.mark.parametrize(
    "prot, colour", [(np.nan, 0.8), (-3.0, 0.8), (0.0, 0.8), (600.0, 0.8), (5.0, np.nan)]
)
def test_one_star_without_a_period_or_colour_is_refused(model, prot, colour):
    with pytest.raises(ValueError, match="expected a period in days and a colour"):
        model.age(prot, colour)


def test_the_posterior_of_a_star_is_what_its_quantiles_are_of(shipped):
    age = shipped.age(25.4, 0.82)
    cdf = age["posterior"].cumsum()
    assert cdf[-1] == pytest.approx(1, abs=1e-5)
    for name, level in (("age_q16", 0.16), ("age_q50", 0.5), ("age_q84", 0.84)):
        cell = np.searchsorted(cdf, level)
        assert 10 ** (age["log10_age_myr"][cell] - 3) == pytest.approx(age[name], rel=0.03)


@pytest.mark.parametrize("errors", [(np.nan, 0.01), (-1.0, 0.01), (0.1, np.nan), (0.1, -0.1)])
def test_one_star_with_errors_that_are_none_is_refused(model, errors):
    with pytest.raises(ValueError, match="expected errors in days and mag"):
        model.age(20.0, 0.8, *errors)


def test_a_colour_that_clusters_of_that_age_do_not_have_is_flagged(shipped):
    bit = BIT["extrapolated_colour"]
    stars = ((10.0, 1.0), (1.0, 3.0), (80.0, 3.2), (10.0, 5.0), (1.0, 0.1))
    raised = [bool(int(shipped.age(*star)["flags"]) & bit) for star in stars]
    assert raised == [False, False, True, True, True]


@pytest.mark.parametrize("settings, message", [
    ({"flow": "spline"}, "it is one of"), ({"prior": "old"}, "it is one of"),
    ({"oldest": 0.001}, "leave no ages"), ({"oldest": 20.0}, "between 0.001 and 13.8"),
    ({"youngest": 0.0}, "leave no ages"), ({"youngest": 2.0, "oldest": 1.0}, "leave no ages"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message):
    from orrery.models.gyro import Gyro

    with pytest.raises(ValueError, match=message):
        Gyro(clusters={"A": 2.0, "B": 3.0}, **settings)


def test_a_fast_rotator_is_flagged(shipped):
    slow = 10 ** float(gyrochrones.slow_sequence(3.0, 1.0))
    flags = {p: int(shipped.age(p, 1.0)["flags"]) for p in (slow, 0.4)}
    assert not flags[slow] and flags[0.4] & BIT["fast_rotator"]
    sequence = shipped.table.slow_sequence(torch.tensor([1.0]), torch.tensor([3.0]))
    assert 10 ** float(sequence) == pytest.approx(slow, rel=0.15)


def test_drawn_periods_are_those_of_the_density(shipped):
    table = shipped.table
    i, k, n = 21, 120, 4000
    u = torch.rand(1, n, generator=torch.Generator().manual_seed(0))
    drawn = table.draw(COLOUR_GRID[i : i + 1], table.ages[k].expand(1, n), u)[0]
    p = table.values[i, :, k].float().exp()
    cdf = (p.cumsum(0) / p.sum()).numpy()
    for level in (0.2, 0.5, 0.8):
        expected = LOG_PERIOD_GRID[np.searchsorted(cdf, level)]
        assert float(drawn.quantile(level)) == pytest.approx(float(expected), abs=0.02)


def test_no_dwarf_is_older_than_dwarfs_of_its_colour_live(shipped):
    prior = shipped.star_log_prior(torch.tensor([0.55, 0.82, 2.0]))
    np.testing.assert_allclose(prior.exp().sum(1).numpy(), 1, rtol=1e-5)
    high = prior > prior.amax(1, keepdim=True) - 1  # where it has not fallen by a factor of e
    end = torch.stack([10 ** (shipped.edges[1:][row].amax() - 3) for row in high])
    mass = gyrochrones.dwarf_mass([0.55, 0.82])
    expected = np.minimum(11 * mass**-2.5 * 10**0.08, shipped.oldest)
    np.testing.assert_allclose(end[:2].numpy(), expected, rtol=0.07)
    assert float(end[2]) == pytest.approx(shipped.oldest, rel=0.07)
    assert shipped.age(8.0, 0.55)["age_q975"] < 7 < shipped.age(25.0, 0.9)["age_q975"]


def one_candidate(scale, turnover):
    """A discrepancy of this scale, dex, and turnover, Myr, for certain."""
    weights = torch.zeros(len(TURNOVERS), len(SCALES))
    weights[(TURNOVERS - turnover).abs().argmin(), (SCALES - scale).abs().argmin()] = 1
    return weights.flatten()


@pytest.mark.parametrize("turnover", [0.0, 450.0])
def test_the_discrepancy_widens_and_does_not_move_the_age_of_old_clusters(turnover):
    ages, edges = torch.linspace(-1, 5, 600), torch.linspace(-1.005, 5.005, 601)
    log_age = math.log10(3000.0)
    likelihood = -0.5 * ((ages - log_age) / 0.02).square()
    levels = torch.tensor([[0.16, 0.5, 0.84]])
    for scale in (0.0, 0.05):
        weights = one_candidate(scale, turnover) if scale else NONE
        cdf = joint_cdf(likelihood, torch.zeros(600), weights, edges)
        low, mid, high = grid.quantile(cdf, edges, levels)[0]
        width = math.hypot(0.02, scale * math.hypot(1, turnover / 3000))
        assert float(mid) == pytest.approx(log_age, abs=0.01)
        assert float(high - low) == pytest.approx(2 * 0.994 * width, rel=0.05)


def test_the_discrepancy_depends_on_the_true_age():
    """An apparent age is rather that of a younger cluster, whose ages are more uncertain."""
    ages, edges = torch.linspace(0, 5, 500), torch.linspace(-0.005, 5.005, 501)
    likelihood = -0.5 * ((ages - math.log10(250.0)) / 0.02).square()
    cdf = joint_cdf(likelihood, torch.zeros(500), one_candidate(0.06, 450.0), edges)
    low, mid, high = grid.quantile(cdf, edges, torch.tensor([[0.16, 0.5, 0.84]]))[0].tolist()
    assert mid < math.log10(250.0) and mid - low > 1.2 * (high - mid)


def test_the_discrepancy_of_clusters_drawn_with_it_is_found():
    generator = torch.Generator().manual_seed(0)
    edges = torch.linspace(0, 4.2, 181)
    ages, log_age = grid.centres(edges), torch.linspace(1.6, 3.6, 60)
    width = 0.06 * growth(log_age, torch.tensor(300.0))
    apparent = log_age + width * torch.randn(60, generator=generator)
    likelihood = -0.5 * ((ages - apparent[:, None]) / 0.02).square()
    prior = torch.full((180,), -math.log(180))
    of_others, of_all = fitted_discrepancies(likelihood, log_age, prior, edges)
    scale, turnover = mean_scale_and_turnover(of_all)
    assert 0.04 < scale < 0.085 and 150 <= turnover <= 600
    covered = []
    for i, weights in enumerate(of_others):
        cdf = joint_cdf(likelihood[i], prior, weights, edges)
        low, high = grid.quantile(cdf, edges, torch.tensor([[0.16, 0.84]]))[0]
        covered.append(bool(low < log_age[i] < high))
    assert 0.55 < np.mean(covered) < 0.85


def test_a_common_offset_of_colours_is_integrated_out(shipped):
    """Stars on a steep sequence, all redder by an error: the age moves by less, and is wider."""
    colour = torch.linspace(0.75, 1.2, 30)
    period = shipped.table.slow_sequence(colour, torch.full_like(colour, 2.6))
    quantiles = []
    for scatter in (0.0, 0.04):
        sums = []
        for offset in COLOUR_OFFSETS:
            stars = {"colour": colour + 0.05 + offset, "log_period": period}
            stars |= {"colour_error": 0 * colour + 0.01, "log_period_error": 0 * colour + 0.005}
            sums.append(shipped.table.log_likelihood(stars).sum(0))
        joint = without_colour_offset(torch.stack(sums), scatter)
        cdf = joint_cdf(joint, shipped.cluster_log_prior(), NONE, shipped.edges)
        quantiles.append(grid.quantile(cdf, shipped.edges, torch.tensor([[0.16, 0.5, 0.84]]))[0])
    naive, ours = quantiles
    assert abs(ours[1] - 2.6) < abs(naive[1] - 2.6)
    assert ours[2] - ours[0] > 1.5 * (naive[2] - naive[0])


def test_no_cluster_is_older_than_the_prior(shipped):
    likelihood = -0.5 * ((shipped.table.ages - 4.1) / 0.02).square()
    cdf = joint_cdf(
        likelihood,
        shipped.cluster_log_prior(),
        one_candidate(0.1, 0.0),
        shipped.edges,
    )
    end = grid.quantile(cdf, shipped.edges, torch.tensor([[0.999]]))[0, 0]
    assert 10 ** (float(end) - 3) <= shipped.oldest * 1.06  # a cell


def test_the_true_model_scores_better_than_a_quick_one(runs):
    import json

    metrics = json.loads((runs("gyro") / "metrics.json").read_text())
    assert metrics["nll_true_model"] < metrics["nll"]
    assert 0.6 < metrics["star_coverage_68_true_model"] < 0.85  # its prior is not the simulation's


def test_draws_of_two_jobs_are_their_own(shipped):
    batch = next(GyroData(n_test=240).prediction_batches())
    first, again = (shipped.predict_step(batch)["period_draws"] for _ in range(2))
    shipped.draw_seed = 1
    other = shipped.predict_step(batch)
    shipped.draw_seed = 0
    assert torch.equal(first, again)
    assert float((other["period_draws"] == first).double().mean()) < 0.1


def test_periods_that_no_dwarf_of_any_age_has_are_misfits(shipped):
    for period, colour, expected in (
        (50.0, 0.5, True),
        (99.0, 0.8, True),
        (490.0, 2.5, True),
        (12.0, 0.5, False),
        (25.4, 0.82, False),
        (60.0, 1.4, False),
    ):
        misfit = int(shipped.age(period, colour)["flags"]) & BIT["misfit"] > 0
        assert misfit == expected, (period, colour)


def test_what_is_shipped_is_what_the_card_says(shipped):
    """The Sun and stars of asteroseismic age, by the shipped model."""
    metrics = shipped.fitted_parameters()
    assert 4.0 < metrics["sun_age_gyr"] < 5.1
    sun = shipped.age(25.4, 0.82, 1.0, 0.01)
    assert sun["age_q16"] < 4.57 < sun["age_q84"]
    assert metrics["benchmark_rms_dex"] < 0.162 and metrics["cluster_log_density"] > 0.63
    assert metrics["cluster_age_rms_dex"] < 0.08 and metrics["cluster_age_median_dex"] < 0.05
    assert metrics["cluster_worst_pull"] < 3 and 0.5 < metrics["cluster_coverage_68"] < 0.95
    assert shipped.contamination.logit_coefficients[:, 1:4].mean(0).min() > 0, (
        "brighter: less of a dwarf"
    )


def test_periods_in_hours_make_a_catalogue_unlike_the_training_set(shipped):
    """Fast M dwarfs, whose hours taken as days are possible periods of each of them."""
    random = np.random.default_rng(0)
    colour, days = random.uniform(2.3, 3.0, 40), 10 ** random.uniform(-0.6, 0.0, 40)
    with pytest.warns(UserWarning, match=r"unlike the training set: .* have period_rank below 0.1"):
        hours = shipped.predict({"bp_rp0": colour, "prot_d": 24 * days})
    assert not (np.asarray(hours["flags"]) & BIT["misfit"]).any()
    colour = random.uniform(0.6, 2.5, 400)
    rows = shipped.predict({"bp_rp0": colour, "prot_d": 10 ** random.uniform(0.5, 1.3, 400)})
    rows = shipped.predict({"bp_rp0": colour, "prot_d": np.asarray(rows["period_draws"])[:, 0]})
    rank = np.asarray(rows["period_rank"])
    assert ((rank >= 0) & (rank <= 1)).all() and np.mean(rank < 0.1) < 0.2
    assert not any("period_rank" in remark for remark in rows.meta["remarks"])


def test_training_stars_have_uniform_ranks_and_those_of_an_old_checkpoint_none(runs):
    model = pretrained.load(runs("gyro") / "best.ckpt")
    data = build(model.record["config"]["data"])
    data.setup("fit")
    batch = data.training_batch()
    log_p = model.table.log_likelihood(batch, model.field_scatter)
    log_p = model.with_contamination(log_p, batch).detach()
    rank = model.period_rank(log_p).sort().values
    torch.testing.assert_close(rank, torch.linspace(0, 1, len(rank)), rtol=0, atol=0.01)
    _, state = ranks_unknown({}, {})
    model.density_levels.copy_(state["density_levels"])
    assert model.period_rank(log_p).isnan().all()


def test_benchmark_clusters_are_among_the_training_clusters(in_tmp):
    done = command(
        "train.py", "model=gyro", "experiment=gyro_quick", "model.benchmark_clusters=[Nowhere]"
    )
    assert done.returncode == 2 and "Nowhere, which are not among the clusters" in done.stderr


def test_a_checkpoint_of_the_first_schema_is_read_by_todays_names(shipped):
    settings = shipped.record["config"]["model"]
    assert shipped.record["schema_version"] == 4 and not {"judge", "field"} & settings.keys()
    assert len(settings["benchmark_clusters"]) == sum(shipped.is_benchmark) == 10
    assert settings["field_scatter"] == shipped.field_scatter == 0.04


def test_the_first_answer_takes_little_memory():
    program = (
        "from orrery import load\nimport numpy as np\n"
        "stars = {'prot_d': np.linspace(2, 30, 30), 'bp_rp0': np.linspace(0.6, 2.5, 30)}\n"
        "load('gyro').predict(stars)\n"
        "status = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "print(int(status['VmHWM'].split()[0]))"  # without what a parent process has had
    )
    done = fresh_python("-c", program)
    assert int(done.stdout.split()[-1]) < 650_000, "KiB; torch and Lightning alone take 390,000"


def test_widths_of_errors_are_convolved_when_they_are_asked_for(monkeypatch):
    model = pretrained.load("gyro")
    stars = {"prot_d": np.array([10.0, 5.0]), "bp_rp0": np.array([0.8, 1.5])}
    model.predict(stars)  # in inference mode
    few = model.table._cache["is_filled"].sum()
    age = model.age(10.0, 0.8, 1.0, 0.05)["age_q50"]  # outside it, and of other widths
    assert few < model.table._cache["is_filled"].sum()
    assert pretrained.load("gyro").age(10.0, 0.8, 1.0, 0.05)["age_q50"] == age
