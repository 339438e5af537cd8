"""Figures of scatter_vae are labelled, not blank and free of NaN, for one star or thousands."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_figures import unlabelled

from orrery.figures import scatter_vae, style
from orrery.figures.statistics import chi2_density, chi2_quantile

WAVELENGTH = np.linspace(336.0, 1020.0, 343)
EXAMPLES = 256  # stars whose arrays are kept
SCATTERED = [2, 6, 14, 58]


def spectra_of(bp_rp, x):
    """Black bodies, roughly as red as BP - RP says, with a line."""
    temperature = 8200 / (0.8 + bp_rp[:, None])
    planck = x**-5.0 / np.expm1(1.44e7 / (x * temperature))
    return planck / planck.mean(1, keepdims=True) * (1 - 0.2 * np.exp(-(((x - 656) / 9) ** 2)))


class Case(NamedTuple):
    """Arguments of `scatter_vae.draw`."""

    rows: dict[str, np.ndarray]
    data: dict[str, dict[str, np.ndarray]]


def make_case(n: int, seed: int = 0) -> Case:
    """Stars of a calibrated model, which knows everything but the noise."""
    random = np.random.default_rng(seed)
    bp_rp, g = random.uniform(0.1, 3.5, n), random.uniform(11.5, 17.5, n)
    dof = random.uniform(103, 107, n)
    chi2 = random.chisquare(dof)
    rows = {"g_mag": g, "bp_rp": bp_rp, "chi2": chi2 / dof, "dof": dof}
    rows["p_value"] = random.random(n)
    rows |= {f"within_{k}": random.binomial(110, k / 100, n) / 110 for k in (68, 95)}
    rows["flags"] = np.zeros(n, np.int16)

    m = min(n, EXAMPLES)
    flux = 1e-15 * 10 ** (-0.4 * (g[:m, None] - 15))
    rows["spectrum"] = flux * spectra_of(bp_rp[:m], WAVELENGTH)
    error = flux * 10 ** (0.2 * (g[:m, None] - 21)) * np.ones_like(WAVELENGTH)
    observed = rows["spectrum"] + random.standard_normal(rows["spectrum"].shape) * error
    spectra = {"observed": observed, "error": error, "scatter": 1e-3 * rows["spectrum"]}
    rows["reconstruction"] = random.standard_normal((m, 110))
    rows["wavelength"] = WAVELENGTH

    z = random.standard_normal((n, 6)) * [0.1, 1, 0.3, 0.8, 0.2, 0.9]
    scatter = {"learned": 10 ** random.uniform(-6, -4, 110), "error": np.geomspace(1e-3, 1e-4, 110)}
    scatter["true"] = np.zeros(110)
    scatter["true"][SCATTERED] = scatter["learned"][SCATTERED] = 4e-4
    generated = {"spectrum": 1e-20 * spectra_of(random.uniform(0.1, 3.5, 200), WAVELENGTH)}
    generated["coefficients"] = random.standard_normal((200, 110))
    latent = {"latent_mean": z, "bp_rp": bp_rp, "g_mag": g}
    data = {"spectra": spectra, "latent": latent, "scatter": scatter, "generated": generated}
    return Case(float32(rows), {name: float32(arrays) for name, arrays in data.items()})


def float32(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float32) if v.dtype == float else v for k, v in arrays.items()}


def make_sampled(n: int) -> Case:
    """The same where the instrument is not known: samples in place of wavelengths."""
    rows, data = case = make_case(n)
    rows["reconstruction"] = rows.pop("spectrum")
    data["generated"]["coefficients"] = data["generated"].pop("spectrum")
    for arrays, names in (
        (rows, ("wavelength", "g_mag", "bp_rp")),
        (data["latent"], ("g_mag", "bp_rp")),
        (data["scatter"], ("true",)),
    ):
        for name in names:
            del arrays[name]
    for name in ("learned", "error"):
        data["scatter"][name] = np.resize(data["scatter"][name], len(WAVELENGTH))
    return case


def draw(case: Case, metrics: dict[str, float]) -> dict[str, Figure]:
    return {name: make() for name, make in scatter_vae.draw(case.rows, metrics, case.data).items()}


def texts(fig: Figure) -> str:
    plots = [text for axis in fig.axes for text in (axis.get_title(), axis.get_title("right"))]
    keys = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    return "\n".join([*plots, *keys, fig.get_supxlabel(), *(a.get_xlabel() for a in fig.axes)])


def numbers(fig: Figure) -> np.ndarray:
    """Every coordinate that is drawn."""
    lines = [line.get_xydata() for axis in fig.axes for line in axis.lines]
    paths = [p.vertices for axis in fig.axes for c in axis.collections for p in c.get_paths()]
    spots = [c.get_offsets() for axis in fig.axes for c in axis.collections]
    return np.concatenate([np.asarray(v, float).reshape(-1) for v in lines + paths + spots])


@pytest.mark.parametrize("make", [make_case, make_sampled])
@pytest.mark.parametrize("n", [1, 3, 5, 5000])
def test_figures_are_labelled_not_blank_and_without_nan(n, make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(make(n), {"scatter_ratio_median": 1.03} if n > 1 else {})
        paths = {name: style.save(fig, tmp_path / f"{name}.png") for name, fig in drawn.items()}
    assert list(drawn) == ["spectra", "latent", "scatter", "chi2", "generated"]
    for name, fig in drawn.items():
        assert not unlabelled(fig), name
        assert fig.get_label().endswith("."), f"{name}: its docstring's first line is no caption"
        assert imread(paths[name]).std() > 0.05, f"{name} is blank"
        assert np.isfinite(numbers(fig)).all(), name
        assert "nan" not in texts(fig), name


def test_spectra_run_from_blue_to_red_and_one_of_them_is_faint():
    rows, data = make_case(2000)
    chosen = scatter_vae._choose(rows, data["spectra"])
    assert len(set(chosen)) == 6
    bp_rp, g = rows["bp_rp"][chosen], rows["g_mag"][chosen]
    assert np.all(np.diff(bp_rp) > 0) and np.ptp(bp_rp) > 2.5
    assert np.sum(g > 16) == 1 and np.median(g) < 14


def test_without_a_known_instrument_the_axis_is_the_number_of_the_sample():
    drawn = draw(make_sampled(30), {})
    for name in ("spectra", "scatter", "generated"):
        assert "sample" in texts(drawn[name]) and "nm" not in texts(drawn[name])


def test_stars_without_bp_are_not_drawn_as_spectra():
    rows, data = case = make_case(30)
    rows["flags"][:20] = 1
    assert min(scatter_vae._choose(rows, data["spectra"])) >= 20
    drawn = scatter_vae.generated(rows, data["spectra"], data["generated"])
    assert "\n5 observed" in texts(drawn)
    rows["flags"][:] = 1
    assert list(draw(case, {})) == ["latent", "scatter", "chi2"]


def test_the_latent_numbers_that_vary_most_are_drawn():
    fig = scatter_vae.latent(make_case(3000).data["latent"])
    labels = {axis.get_xlabel() for axis in fig.axes} | {axis.get_ylabel() for axis in fig.axes}
    assert {name for name in labels if "latent" in name} == {
        f"latent $z_{{{k}}}$" for k in (2, 4, 6)
    }


def test_true_scatter_is_marked_only_where_it_is_known():
    data = make_case(30).data["scatter"]
    fig = scatter_vae.scatter(data, {"scatter_ratio_median": 1.0267})
    assert "1.03" in texts(fig) and "true scatter" in texts(fig)
    marked = [line.get_xdata() for axis in fig.axes for line in axis.lines
              if line.get_marker() == "D"]  # fmt: skip
    assert [list(x) for x in marked] == [[2, 6, 14], [3]]
    del data["true"]
    assert "true" not in texts(scatter_vae.scatter(data, {}))


def test_wild_stars_do_not_stretch_the_histogram_and_are_counted():
    rows = make_case(5000).rows
    rows["chi2"][:4] = 300.0
    histogram = scatter_vae.chi2(rows).axes[0]
    assert histogram.get_xlim()[1] < 2
    assert int(histogram.get_title("left").split("; ")[-1].split()[0]) >= 4


def test_expected_chi2_is_that_of_draws():
    dof = np.array([60.0, 100.0, 110.0])
    x = np.linspace(0.01, 3, 3000)
    density = chi2_density(x, np.repeat(dof, 50))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(x * density, x) == pytest.approx(1, abs=1e-6)
    draws = np.random.default_rng(0).chisquare(100, 200_000) / 100
    for sigma, share in ((-1, 0.1587), (0, 0.5), (1, 0.8413)):
        assert chi2_quantile(np.array([100.0]), sigma) == pytest.approx(
            np.quantile(draws, share), abs=2e-3
        )
