"""Figures of `gems` are labelled and not blank, whatever there is to draw."""

import warnings

import numpy as np
import pytest
from conftest import command
from matplotlib.image import imread
from test_figures import unlabelled

from orrery.figures import gems, style

RANDOM = np.random.default_rng(0)
N = 12


def actions(n):
    return np.abs(RANDOM.normal(300, 200, (n, 3))) * [1, 1, 1] * np.sign([[1, -1, 1]])


def arrays(n_stars=500):
    p = RANDOM.dirichlet(np.full(N + 1, 0.3))[:N]
    sky = {"ra": RANDOM.uniform(0, 360, N), "dec": RANDOM.uniform(-90, 90, N)}
    names = np.array([f"NGC {i}" for i in range(N)])
    ejected = RANDOM.random(n_stars) < 0.2
    uniform = RANDOM.random(n_stars)
    mock = {"ra": RANDOM.uniform(0, 360, n_stars), "dec": RANDOM.uniform(-90, 90, n_stars)}
    return {
        "actions": {
            "stars": actions(n_stars), "clusters": actions(N), "star": actions(1)[0], "p": p,
            "star_error": np.array([50.0, 40, 10]), "names": names,
        },
        "confusion": sky | {"names": names, "counts": RANDOM.integers(0, 9, (N, N))},
        "calibration": {
            "p_host": uniform, "is_host": RANDOM.random(n_stars) < uniform,
            "p_ejected": uniform, "is_ejected": ejected,
        },
        "purity": {"p": uniform, "ejected": ejected},
        "mock": mock | {
            "distance": RANDOM.uniform(1, 30, n_stars), "orbit_ra": np.linspace(0, 720, 300) % 360,
            "orbit_dec": 40 * np.sin(np.linspace(0, 9, 300)), "name": np.array("NGC 1"),
            "cluster_ra": sky["ra"][:1], "cluster_dec": sky["dec"][:1],
        },
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 30, 3000])
def test_gems_figures_are_labelled_and_not_blank(n, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = {name: make() for name, make in gems.draw({}, {}, arrays(n)).items()}
        paths = {name: style.save(fig, tmp_path / f"{name}.png") for name, fig in drawn.items()}
    assert list(drawn) == ["actions", "confusion", "calibration", "purity", "mock"]
    for name, fig in drawn.items():
        assert not unlabelled(fig), name
        assert fig.get_label().endswith("."), f"{name}: its docstring's first line is no caption"
        assert imread(paths[name]).std() > 0.05, f"{name} is blank"


def test_only_what_there_is_data_for_is_drawn():
    some = arrays()
    del some["actions"]["star"], some["purity"], some["confusion"]
    drawn = gems.draw({}, {}, some)
    assert list(drawn) == ["actions", "calibration", "mock"]
    assert len(drawn["actions"]().axes) == 1, "without a star no bars"


def test_bars_are_the_probabilities_in_the_colours_of_their_clusters():
    data = arrays()["actions"]
    diagram, bars = gems.actions(data).axes
    widths = [bar.get_width() for bar in bars.patches]
    assert sum(widths) == pytest.approx(1)
    best = np.argsort(-data["p"])
    np.testing.assert_allclose(widths[:5], data["p"][best[:5]])
    places = np.stack(gems.diamond(data["clusters"]), 1)
    colour = bars.patches[0].get_facecolor()
    from matplotlib.colors import to_rgba

    (first,) = [line for line in diagram.lines if to_rgba(line.get_color()) == colour]
    np.testing.assert_allclose(np.ravel(first.get_data()), places[best[0]])


def test_the_diamond_holds_all_actions():
    x, y = gems.diamond(actions(1000) * RANDOM.choice([-1, 1], (1000, 1)) ** [2, 1, 2])
    assert np.all(np.abs(x) + np.abs(y) <= 1 + 1e-9)
    np.testing.assert_allclose(gems.diamond(np.array([[0, 5.0, 0]])), [[1], [0]])


def test_a_line_does_not_cross_the_edge_of_the_map():
    x, y = gems._great_circle(np.array([3.0, -3.0]), np.array([0.1, 0.1]))
    steps = np.abs(np.diff(x))
    assert np.nanmax(steps) < 0.1 and np.isnan(x).sum() == 1
    assert np.all(np.abs(y - 0.1) < 0.01)


def test_shifts_of_potentials_are_drawn_and_written(tmp_path):
    words = ["--stars", "20", "--duration", "0.02", "--clusters", "Pal 5", "NGC 1261"]
    files = ["--out", str(tmp_path / "shifts.csv"), "--figure", str(tmp_path / "shifts.png")]
    done = command("-m", "benchmarks.gems_shifts", *words, *files)
    assert done.returncode == 0, done.stderr
    table = np.genfromtxt(tmp_path / "shifts.csv", delimiter=",", names=True, dtype=None)
    assert len(table) == 12 and set(table["cluster"]) == {"Pal 5", "NGC 1261"}
    assert "| lmc |" in done.stdout and imread(tmp_path / "shifts.png").std() > 0.05
    arrays = {name: table[name] for name in table.dtype.names}
    fig = gems.shifts(arrays)
    assert not unlabelled(fig) and len(fig.axes) == 2
