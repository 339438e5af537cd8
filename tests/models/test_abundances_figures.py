"""Figures of `abundances` are labelled and not blank, whatever there is to draw."""

import warnings

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from test_figures import unlabelled

from orrery.figures import abundances, style
from orrery.models.abundances import Abundances
from orrery.models.abundances.figure_data import TRUE, corner, excess_nll, figure_data, patterns
from orrery.models.abundances.mixture import Mixture, Stars

RANDOM = np.random.default_rng(0)
ELEMENTS = ("Fe", "C", "Mg", "Eu", "Ba")


def density(k=5, shift=0.0):
    mean = torch.tensor([[-2.0], [-1.2]]) + 0.1 * torch.arange(k) + shift
    factors = 0.3 * torch.ones(2, k, 1)
    return Mixture(torch.tensor([0.5, 0.5]).log(), mean, factors, torch.full((2, k), 0.02))


def stars(n, k=5):
    """Of the density, a third of them missing, and limits of the last element."""
    mixture, random = density(k), torch.Generator().manual_seed(n)
    c = torch.randint(2, (n,), generator=random)
    value = mixture.mean[c] + 0.3 * torch.randn(n, 1, generator=random)
    value = value + 0.2 * torch.randn(n, k, generator=random)
    gone = torch.rand(n, k, generator=random) < 0.3
    gone[:, 0] = False
    limit = torch.zeros(n, k, dtype=torch.long)
    limit[::3, -1] = 1
    limit[1::7, -1] = -1
    return Stars(
        value.masked_fill(gone, torch.nan), torch.full((n, k), 0.02),
        torch.full((n, k, 1), 0.05), limit,
    )  # fmt: skip


def drawn_data(n, elements=ELEMENTS, true=True):
    """Arrays of the figures of n stars and of a model that knows their density."""
    k = len(elements)
    model = Abundances(list(elements), components=2, ensemble=1, factors=1, replicates=20).eval()
    with torch.no_grad():
        model.mean.copy_(density(k).mean)
        model.shared_loadings.fill_(0.3)
        model.shared_log_variance.fill_(np.log(0.02))
    some = stars(n, k)
    batch = dict(zip(("value", "variance", "responses", "limit"), some, strict=True))
    with torch.inference_mode():
        rows = model.predict_step(batch | {"type": torch.full((n,), -1)})
        mixture = Mixture(*(part.clone() for part in model.mixture()))
    rows = {name: values.numpy() for name, values in rows.items()}
    densities = {"ours": mixture, "one Gaussian": density(k, 0.1)}
    densities |= {TRUE: density(k)} if true else {}
    hits = {x: {"68": RANDOM.random(n) < 0.68, "95": RANDOM.random(n) < 0.95} for x in elements}
    names = [f"star_{i}" for i in range(n)]
    return figure_data(elements, rows, rows, some, names, densities, hits)


def structures(pairs, k=9):
    names = [(f"stream {i}", f"dwarf {i}") for i in range(pairs)]
    arrays = {
        "elements": np.array(("C", "Na", "Mg", "Si", "Ca", "Ti", "Ni", "Ba", "Eu")[:k]),
        "pairs": np.array(names), "difference": RANDOM.normal(0, 0.2, (pairs, k)),
        "error": RANDOM.uniform(0.05, 0.2, (pairs, k)), "p_value": RANDOM.random(pairs),
        "ln_bayes_factor": RANDOM.normal(0, 3, pairs),
    }  # fmt: skip
    for name in ("difference", "error", "p_value", "ln_bayes_factor"):
        arrays[name][-1] = np.nan  # a pair without a common element
    return arrays


def history(n):
    iron = np.linspace(-3, -0.5, 40)
    tracks = np.stack([iron, iron + 0.3 - 0.1 * iron, iron + 0.1, iron - 0.4], -1)
    tracks = tracks + RANDOM.normal(0, 0.1, (20, 1, 4)) * [0, 1, 1, 1]
    value = tracks[0, RANDOM.integers(0, 40, n)] + RANDOM.normal(0, 0.1, (n, 4))
    value[n // 2 :, 2] = np.nan
    limit = np.zeros((n, 4), int)
    limit[::4, 3] = 1
    return {
        "elements": np.array(["Fe", "Mg", "Ba", "Eu"]), "tracks": tracks, "value": value,
        "error": np.full((n, 4), 0.1), "limit": limit,
    }  # fmt: skip


def delays(n):
    knee = RANDOM.normal(-1.7, 0.2, 100 * n)
    knee[:3] = np.inf  # draws without a knee
    return {"ia_slope": RANDOM.normal(1.1, 0.2, 100 * n), "alpha_knee": knee}


def everything(n):
    return drawn_data(n) | {
        "structures": structures(n), "history": history(n), "delays": delays(n),
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 30, 600])
def test_abundances_figures_are_labelled_and_not_blank(n, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = {name: make() for name, make in abundances.draw({}, {}, everything(n)).items()}
        paths = {name: style.save(fig, tmp_path / f"{name}.png") for name, fig in drawn.items()}
    names = ["pattern", "corner", "calibration", "nll", "structures", "history", "delays"]
    assert list(drawn) == names
    for name, fig in drawn.items():
        assert not unlabelled(fig), name
        assert fig.get_label().endswith("."), f"{name}: its docstring's first line is no caption"
        assert imread(paths[name]).std() > 0.05, f"{name} is blank"


def test_only_what_there_is_data_for_is_drawn():
    assert list(abundances.draw({}, {}, {"delays": delays(2)})) == ["delays"]
    assert abundances.draw({}, {}, {}) == {}


@pytest.mark.parametrize("elements", [("Fe",), ("Mg", "Ca"), ("Fe", "Mg"), ELEMENTS])
def test_models_of_few_elements_or_without_iron_have_figures(elements, tmp_path):
    arrays = drawn_data(40, elements, true=False)
    assert ("corner" in arrays) == (len(elements) > 1)
    for name, make in abundances.draw({}, {}, arrays).items():
        assert imread(style.save(make(), tmp_path / f"{name}.png")).std() > 0.05


def test_the_most_unusual_star_is_beside_a_usual_one():
    some = stars(50)
    n, names = some.n, [str(i) for i in range(50)]
    rows = {"p_value": np.linspace(0.02, 1, n)}
    rows["p_value"][[10, 20]] = 1e-4, np.nan
    some.value[10], some.limit[10] = -1.0, 0
    some.value[3, 1:] = torch.nan  # one element alone
    rows["p_value"][3] = 1e-9
    for x in ELEMENTS:
        for suffix in ("h_expected", "h_low95", "h_low68", "h_high68", "h_high95", "p_value"):
            rows[f"{x.lower()}_{suffix}"] = np.zeros(n)
    arrays = patterns(ELEMENTS, rows, some, names)
    assert arrays["name"][0] == "10", "the one that has more than one element"
    assert abs(arrays["p_value"][1] - 0.5) < 0.2
    assert list(arrays["elements"]) == ["C", "Mg", "Fe", "Ba", "Eu"], "by atomic number"
    np.testing.assert_allclose(arrays["iron"], arrays["value"][:, 2])
    titles = [axis.get_title(loc="left") for axis in abundances.pattern(arrays).axes]
    assert titles[0].startswith("most unusual star: 10, [Fe/H] = ") and "1e-04" in titles[0]


def test_contours_hold_their_shares_of_the_density():
    arrays = corner(ELEMENTS, stars(3000), {"ours": density(), TRUE: density()})
    assert list(arrays["labels"]) == ["[Fe/H]", "[Mg/Fe]", "[Eu/Fe]", "[Ba/Fe]"]
    true, random = density(), torch.Generator().manual_seed(0)
    c = torch.randint(2, (20_000,), generator=random)
    x = true.mean[c] + true.factors[c][..., 0] * torch.randn(20_000, 1, generator=random)
    x = x + true.variance[c].sqrt() * torch.randn(20_000, len(ELEMENTS), generator=random)
    iron, magnesium = x[:, 0].numpy(), (x[:, 2] - x[:, 0]).numpy()
    plane = arrays["density"][1, 0]
    i = np.searchsorted(arrays["grid"][1], magnesium).clip(0, plane.shape[0] - 1)
    j = np.searchsorted(arrays["grid"][0], iron).clip(0, plane.shape[1] - 1)
    for level in (0.68, 0.95):
        share = (plane[i, j] >= abundances._height(plane, level)).mean()
        assert share == pytest.approx(level, abs=0.02)
    for k in range(4):
        step = np.diff(arrays["grid"][k])[0]
        assert arrays["density"][k, k, 0].sum() * step == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(arrays["density"], arrays["true"])


def test_ratios_of_the_corner_have_the_error_of_iron_and_not_what_is_common():
    some = stars(100)
    arrays = corner(ELEMENTS, some, {"ours": density()})
    # variances .02 of both, and the responses .05 of both cancel
    np.testing.assert_allclose(arrays["error"][:, 1], np.sqrt(0.04), rtol=1e-5)
    np.testing.assert_allclose(arrays["error"][:, 0], np.sqrt(0.02 + 0.05**2), rtol=1e-5)
    assert set(np.unique(arrays["limit"][:, 3])) == {-1, 0, 1}


def test_the_excess_is_that_over_the_true_density():
    some = stars(500)
    arrays = excess_nll(ELEMENTS, some, {"ours": density(shift=0.1), TRUE: density()})
    assert list(arrays["densities"]) == ["ours"] and arrays["reference"] == TRUE
    assert (arrays["excess"][0, 0] > 0) and arrays["excess"].shape == (1, 6)
    same = excess_nll(ELEMENTS, some, {"ours": density(), TRUE: density()})
    np.testing.assert_allclose(same["excess"], 0, atol=1e-6)
    without = excess_nll(ELEMENTS, some, {"ours": density(), "one Gaussian": density(shift=0.1)})
    assert without["reference"] == "ours" and list(without["densities"]) == ["one Gaussian"]
