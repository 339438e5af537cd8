"""Claims about `abundances`: p-values, predicted elements, limits, classes, checkpoints."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import train
from scipy.stats import kstest

from orrery.checkpoint import build, read_checkpoint, restore
from orrery.datamodules.abundances.simulation import ELEMENTS
from orrery.models.abundances import Abundances
from orrery.models.abundances.evaluation import interval_hits, predicted_again
from orrery.models.abundances.mixture import Mixture, Stars, log_density

N = 1500
MG, EU, BA = (ELEMENTS.index(x) for x in ("Mg", "Eu", "Ba"))


@pytest.fixture(scope="module")
def model():
    """With a density of two Gaussians that is known, not fitted."""
    torch.manual_seed(0)
    made = Abundances(list(ELEMENTS), components=2, ensemble=1, factors=2, replicates=200).eval()
    k = len(ELEMENTS)
    with torch.no_grad():
        made.mean.copy_(torch.tensor([[-2.0], [-1.0]]) + 0.2 * torch.randn(2, k))
        made.shared_loadings.copy_(torch.stack([0.3 * torch.ones(k), 0.1 * torch.randn(k)], 1))
        made.shared_log_variance.fill_(2 * np.log(0.1))
    return made


def readings(model, n=N, missing=0.0, seed=0):
    """(true [X/H] (n, k), batch) of stars drawn from the density, with errors of two causes."""
    mixture, generator = model.mixture(), torch.Generator().manual_seed(seed)
    k = len(model.elements)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        weight = mixture.log_weight.exp()
        c = torch.multinomial(weight, n, replacement=True, generator=generator)
        smooth = mixture.factors[c] @ normal(n, mixture.factors.shape[2], 1)
        true = mixture.mean[c] + smooth[..., 0] + mixture.variance[c].sqrt() * normal(n, k)
    variance = (0.05 + 0.15 * torch.rand(n, k, generator=generator)).square()
    responses = 0.05 * normal(n, k, 2)
    value = true + variance.sqrt() * normal(n, k) + (responses @ normal(n, 2, 1))[..., 0]
    gone = torch.rand(n, k, generator=generator) < missing
    batch = {
        "value": value.masked_fill(gone, torch.nan), "variance": variance, "responses": responses,
        "limit": torch.zeros(n, k, dtype=torch.long), "type": torch.full((n,), -1),
    }  # fmt: skip
    return true, batch


def changed(batch, **columns):
    return batch | columns


def predict(model, batch):
    with torch.inference_mode():
        return model.predict_step(batch)


def column(rows, suffix, elements=ELEMENTS):
    return torch.stack([rows[f"{x.lower()}_{suffix}"] for x in elements], 1)


# --- p-values ---------------------------------------------------------------------------------


def test_p_values_of_stars_drawn_from_the_model_are_uniform(model):
    _, batch = readings(model, missing=0.3)
    rows = predict(model, batch)
    assert kstest(rows["p_density"].numpy(), "uniform").pvalue > 0.01
    for element in ("Fe", "Mg", "Eu"):
        p = rows[f"{element.lower()}_p_value"]
        assert kstest(p[p.isfinite()].numpy(), "uniform").pvalue > 0.01, element


def test_a_stars_p_value_does_not_promise_too_much(model):
    """Twice the smaller of two p-values: no more than 5% below .05, and not far fewer."""
    _, batch = readings(model, 4000, missing=0.3)
    share = float((predict(model, batch)["p_value"] < 0.05).double().mean())
    assert 0.02 < share < 0.055


def test_replicates_of_different_stars_are_not_the_same(model):
    """Were they, the p-values of all stars would be too low or too high together."""
    few = copy.deepcopy(model)
    few.replicates = 20
    _, batch = readings(model)
    shares = []
    for seed in range(8):
        few.draw_seed = seed
        shares.append(float((predict(few, batch)["p_density"] < 0.25).double().mean()))
    expected = 5 / 21  # of ranks 1 to 21, five
    assert np.mean(shares) == pytest.approx(expected, abs=0.02)
    assert np.std(shares) < 0.02, "0.09 if they were"


def test_an_outlier_in_one_element_is_found_and_named(model):
    _, batch = readings(model, 300)
    value = batch["value"].clone()
    value[:, EU] += 1.5
    odd = predict(model, changed(batch, value=value))
    usual = predict(model, batch)
    assert float((odd["p_value"] < 0.01).double().mean()) > 0.95
    assert float((usual["p_value"] < 0.01).double().mean()) < 0.03
    assert float((odd["most_unusual"] == EU).double().mean()) > 0.9
    assert float(odd["eu_p_value"].median()) < 1e-4


def test_a_limit_far_below_what_is_expected_is_unusual_and_one_above_is_not(model):
    _, batch = readings(model, 300)
    expected = predict(model, batch)["ba_h_expected"]
    limit = batch["limit"].clone()
    limit[:, BA] = 1
    for shift, share in ((-1.5, 1.0), (1.5, 0.0)):
        value = batch["value"].clone()
        value[:, BA] = expected + shift
        rows = predict(model, changed(batch, value=value, limit=limit))
        assert float((rows["ba_p_value"] < 0.01).double().mean()) == pytest.approx(share, abs=0.01)
        assert (rows["n_limits"] == 1).all() and (rows["n_measured"] == len(ELEMENTS) - 1).all()


# --- what is expected -------------------------------------------------------------------------


def test_intervals_of_missing_elements_hold_the_truth(model):
    true, batch = readings(model, 3000, missing=0.4)
    rows, gone = predict(model, batch), batch["value"].isnan()
    for level, share, tolerance in (("68", 0.68, 0.015), ("95", 0.95, 0.01)):
        low, high = column(rows, f"h_low{level}"), column(rows, f"h_high{level}")
        inside = ((true > low) & (true < high))[gone]
        assert float(inside.double().mean()) == pytest.approx(share, abs=tolerance)
    pull = (true - column(rows, "h_expected")) / column(rows, "h_std")
    assert float(pull[gone].std()) == pytest.approx(1, abs=0.03)


def test_intervals_of_limits_hold_the_truth(model):
    true, batch = readings(model, 3000)
    value, limit = batch["value"].clone(), batch["limit"].clone()
    threshold = value[:, BA].median()  # below it, a reading is replaced by the limit
    below = value[:, BA] < threshold
    value[below, BA], limit[below, BA] = threshold, 1
    batch["responses"][:, BA] = 0
    rows = predict(model, changed(batch, value=value, limit=limit))
    inside = (true[:, BA] > rows["ba_h_low68"]) & (true[:, BA] < rows["ba_h_high68"])
    assert float(inside[below].double().mean()) == pytest.approx(0.68, abs=0.05)


def test_a_limit_lowers_or_raises_the_expected_abundance(model):
    _, batch = readings(model, 100)
    value, limit = batch["value"].clone(), batch["limit"].clone()
    value[:, EU] = torch.nan
    without = predict(model, changed(batch, value=value))["eu_h_expected"]
    value[:, EU] = without
    variance = batch["variance"].clone()
    variance[:, EU] = 0.1**2
    for side in (1, -1):
        limit[:, EU] = side
        rows = predict(model, changed(batch, value=value, limit=limit, variance=variance))
        assert (side * (rows["eu_h_expected"] - without) < -0.02).all()
    assert (rows["eu_h_std"] > 0).all()


def test_the_expected_abundance_does_not_depend_on_its_own_measurement(model):
    _, batch = readings(model, 50)
    moved = batch["value"].clone()
    moved[:, MG] += 0.5
    before, after = predict(model, batch), predict(model, changed(batch, value=moved))
    torch.testing.assert_close(before["mg_h_expected"], after["mg_h_expected"], atol=2e-3, rtol=0)
    assert float((before["eu_h_expected"] - after["eu_h_expected"]).abs().mean()) > 0.01


def test_a_star_without_measurements_is_like_all_stars_and_flagged(model):
    _, batch = readings(model, 3)
    value = torch.full_like(batch["value"], torch.nan)
    value[1, 0] = -1.5
    value[2] = batch["value"][2]
    rows = predict(model, changed(batch, value=value))
    assert rows["flags"].tolist() == [1, 2, 0]
    assert rows["p_value"].isnan().tolist() == [True, False, False]
    assert rows["most_unusual"][0] == -1 and float(rows["log_density"][0]) == pytest.approx(0)
    mixture = model.mixture()
    mean = mixture.log_weight.exp() @ mixture.mean
    torch.testing.assert_close(column(rows, "h_expected")[0], mean, atol=0.02, rtol=0)


# --- rows -------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_their_neighbours(model):
    _, batch = readings(model, 60, missing=0.3)
    limit = batch["limit"].clone()
    limit[::3, EU] = 1
    batch = changed(batch, limit=limit)
    together = predict(model, batch)
    for i in (0, 7, 59):
        alone = predict(model, {name: values[i : i + 1] for name, values in batch.items()})
        for name, values in alone.items():
            torch.testing.assert_close(
                values[0], together[name][i], atol=1e-3, rtol=1e-3, equal_nan=True
            )


def test_the_same_stars_have_the_same_rows_and_another_seed_other_p_values(model):
    _, batch = readings(model, 40)
    one, two = predict(model, batch), predict(model, batch)
    assert all(torch.equal(one[name].nan_to_num(), two[name].nan_to_num()) for name in one)
    other = copy.deepcopy(model)
    other.draw_seed = 1
    assert not torch.equal(predict(other, batch)["p_density"], one["p_density"])


def test_classes_need_their_elements():
    assert not [c for c in Abundances(["Fe", "Ni"]).columns if c in CLASS_COLUMNS]
    assert [c for c in Abundances(["Fe", "C"]).columns if c in CLASS_COLUMNS] == [
        "p_carbon_enhanced"
    ]
    assert "p_second_generation" in Abundances(["Fe", "O", "Na"]).columns
    assert "p_carbon_enhanced" not in Abundances(["C", "Mg"]).columns, "[C/Fe] without iron"


CLASS_COLUMNS = {
    "p_carbon_enhanced", "p_r_1", "p_r_2", "p_s_process", "p_alpha_poor", "p_second_generation",
}  # fmt: skip


def test_the_probability_of_a_class_is_that_of_the_true_abundances(model):
    true, batch = readings(model, 3000, missing=0.3)
    rows = predict(model, batch)
    alpha = [ELEMENTS.index(x) for x in ("Mg", "Si", "Ca", "Ti")]
    poor = true[:, alpha].mean(1) - true[:, ELEMENTS.index("Fe")] < 0.1
    p = rows["p_alpha_poor"]
    assert float(p.mean()) == pytest.approx(float(poor.double().mean()), abs=0.03)
    likely = p > 0.8
    assert likely.sum() > 100
    assert float(poor[likely].double().mean()) == pytest.approx(float(p[likely].mean()), abs=0.05)


# --- fits -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(runs):
    return runs("abundances") / "best.ckpt"


def test_a_checkpoint_predicts_the_same_after_a_round_trip(fitted, tmp_path):
    checkpoint = read_checkpoint(fitted)
    data = build(checkpoint["orrery"]["config"]["data"])
    batch = next(data.prediction_batches())
    first = restore(checkpoint)
    torch.save(checkpoint, tmp_path / "again.ckpt")
    second = restore(read_checkpoint(tmp_path / "again.ckpt"))
    one, two = predict(first, batch), predict(second, batch)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0, equal_nan=True)


def test_scores_are_of_each_stars_own_row(fitted):
    """`PredictedRows` have another order than the stars."""
    checkpoint = read_checkpoint(fitted)
    settings = checkpoint["orrery"]["config"]["data"] | {"n_test": 600, "predict_batch_size": 250}
    model, data = restore(checkpoint), build(settings)
    batches = list(data.prediction_batches())
    with torch.no_grad():
        rows = predicted_again(model, batches)
        stars = Stars(*(torch.cat(p) for p in zip(*map(model.stars, batches), strict=True)))
    true = torch.cat([batch["true"] for batch in batches])
    assert len(rows["p_value"]) == 600
    hits = interval_hits(model.elements, rows, stars, true)
    assert 0.55 < np.concatenate([hit["68"] for hit in hits.values()]).mean() < 0.85
    measured = stars.measured[:, MG]
    error = np.abs(rows["mg_h_expected"] - stars.value[:, MG].numpy())[measured.numpy()]
    assert np.median(error) < 0.25, "of another star it is 0.4 and more"


def test_a_density_is_learned_from_stars_with_noise_gaps_and_limits(tmp_path, monkeypatch):
    """Of a quick fit: near the truth, and no bias of an element that is often a limit."""
    monkeypatch.setattr("orrery.models.abundances.RIVAL_COMPONENTS", (1, 4))
    words = ["data.n_train=1200", "data.n_test=500", "model.epochs=12", "model.components=3"]
    train("abundances", tmp_path, *words)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["nll_per_element"] < metrics["nll_per_element_true_density"] + 0.06
    assert metrics["nll_per_element"] < metrics["nll_per_element_one_Gaussian"] + 0.03
    assert metrics["limit_bias_dex"] < 0.15
    assert metrics["limit_bias_dex"] < 0.5 * metrics["limit_bias_dex_limits_dropped"]
    assert 0.62 < metrics["coverage_68"] < 0.8, "a short fit is wide"
    assert 0.92 < metrics["coverage_95"] < 0.99
    assert metrics["share_p_below_0.05"] < 0.08


def test_the_weights_of_types_are_used_where_they_are_learned():
    model = Abundances(["Fe", "Mg"], components=2, ensemble=1, factors=1, by_type=True)
    with torch.no_grad():
        model.mean.copy_(torch.tensor([[-2.0, -1.7], [-1.0, -1.0]]))
        model.shared_log_variance.fill_(2 * np.log(0.2))
        model.type_logits[1, 0] = torch.tensor([3.0, -3.0])  # streams are metal-poor
    stars = Stars(
        torch.tensor([[-2.0, -1.7]]).expand(3, -1), torch.full((3, 2), 0.01),
        torch.zeros(3, 2, 0), torch.zeros(3, 2, dtype=torch.long),
    )  # fmt: skip
    with torch.no_grad():
        dwarf, stream, unknown = log_density(model.mixture(torch.tensor([0, 1, -1])), stars)
    assert stream > dwarf + 0.5 and float(unknown) == pytest.approx(float(dwarf))


def test_the_density_is_a_mixture_whose_weights_add_up(model):
    mixture = model.mixture()
    assert isinstance(mixture, Mixture)
    assert float(mixture.log_weight.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert (mixture.variance > 0).all()
