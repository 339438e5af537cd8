"""Figures are labelled and not blank at any n; a report is one file that says it all."""

import io
import math
import re
import warnings

import numpy as np
import pytest
from conftest import fresh_python
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from orrery.evaluation.report import metrics_table, write_report
from orrery.evaluation.results import draw_figures, provenance
from orrery.figures import style, zephyr
from orrery.figures.statistics import binomial_band, bootstrap_error, equal_groups, running_mean

SOURCES = ("spec_deep", "grism", "photo_30band")


def normal(z, mean, sigma):
    return np.exp(-0.5 * ((z - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def make_rows(n: int, sources: tuple[str, ...] = SOURCES, seed: int = 0) -> dict[str, np.ndarray]:
    """A survey to i ~ 25 with honest p(z), as z_true is drawn from it; faint objects are wide."""
    random = np.random.default_rng(seed)
    mag = 25.2 - random.exponential(1.3, n).clip(0, 7)
    grid = np.linspace(0, 4, 401)
    width = 0.008 * 10 ** (0.15 * (mag - 19).clip(0))
    near = np.abs(0.35 + 0.17 * (mag - 20) + 0.3 * random.standard_normal(n)).clip(0.03, 3.5)
    far = (near + 1.1 + 0.3 * random.standard_normal(n)).clip(0.03, 3.7)
    second = np.where(random.random(n) < 0.1, random.uniform(0.05, 0.45, n), 0)

    logits = np.stack([-0.9 * k * (k - (mag - 19) / 2.5) for k in range(len(sources))])
    logits += 0.4 * random.standard_normal(logits.shape)
    share = np.exp(logits - logits.max(0))
    share /= share.sum(0)

    def parts(i):
        # Sources differ a little in width, so that their contributions are distinct.
        for k in range(len(sources)):
            wide = (0.7 + 0.3 * k) * width[i]
            one = normal(grid, near[i], wide * (1 + near[i]))
            two = normal(grid, far[i], wide * (1 + far[i]))
            yield share[k, i] * ((1 - second[i]) * one + second[i] * two)

    pz = np.array([list(parts(i)) for i in range(n)])  # (n, source, grid)
    total = pz.sum(1)
    cdf = np.cumsum(total, 1) / total.sum(1, keepdims=True)
    quantile = {
        name: np.array([np.interp(q, row, grid) for row in cdf])
        for name, q in (
            ("q025", 0.025),
            ("q16", 0.16),
            ("median", 0.5),
            ("q84", 0.84),
            ("q975", 0.975),
        )
    }
    pit = random.random(n)
    z_true = np.array([np.interp(u, row, grid) for u, row in zip(pit, cdf, strict=True)])
    step = grid[None] >= z_true[:, None]
    at_truth = np.array([np.interp(z, grid, row) for z, row in zip(z_true, total, strict=True)])
    rows = {
        "z_true": z_true,
        **{f"z_{name}": value for name, value in quantile.items()},
        "z_mode": grid[total.argmax(1)],
        "z_mean": (total * grid).sum(1) / total.sum(1),
        "pit": pit,
        "crps": ((cdf - step) ** 2).sum(1) * (grid[1] - grid[0]),
        "nll": -np.log(at_truth + 1e-12),
        "ood": random.random(n),
        "tarp": random.random(n),
        "mag_ref": mag,
        "z_grid": grid,
        "pz": total[:256],
    }
    for k, source in enumerate(sources):
        rows[f"responsibility_{source}"] = share[k]
    return rows


def contributions(rows, sources: tuple[str, ...] = SOURCES) -> dict[str, np.ndarray]:
    """What each source adds to p(z), by source."""
    n = len(rows["pz"])
    return {s: rows[f"responsibility_{s}"][:n, None] * rows["pz"] for s in sources}


def draw(rows, metrics, sources: tuple[str, ...] = SOURCES) -> dict[str, Figure]:
    figures = zephyr.draw(rows, metrics, {"examples": contributions(rows, sources)})
    return {name: make() for name, make in figures.items()}


def make_metrics(sources: tuple[str, ...] = SOURCES) -> dict[str, float]:
    metrics = {"objects": 5000, "nmad": 0.021342, "bias": -0.00041, "crps": 0.02113, "nll": -1.2345}
    metrics |= {"outlier_fraction": 0.0312, "coverage_68": 0.683, "z_per_second": 48123.4}
    for k, source in enumerate(sources):
        metrics[f"label_sigma_{source}"] = 0.0011 * 4**k
        metrics[f"label_sigma_{source}_true"] = 0.001 * 4**k
        metrics[f"label_catastrophic_{source}"] = 0.012 + 0.021 * k
        metrics[f"label_catastrophic_{source}_true"] = 0.01 + 0.02 * k
    return metrics


def unlabelled(fig: Figure) -> list[str]:
    """What lacks a label: each axis has its own, that of one it is shared with, or the page's."""
    lacking = []
    plots = [axis for axis in fig.axes if axis.get_label() != "<colorbar>"]
    for axis in plots:
        same_x = [a for a in plots if a is axis or axis.get_shared_x_axes().joined(a, axis)]
        same_y = [a for a in plots if a is axis or axis.get_shared_y_axes().joined(a, axis)]
        if not (fig.get_supxlabel() or any(a.get_xlabel() for a in same_x)):
            lacking.append(f"x of {axis}")
        if not (fig.get_supylabel() or any(a.get_ylabel() for a in same_y)):
            lacking.append(f"y of {axis}")
    return lacking


@pytest.mark.parametrize("n", [1, 30, 5000])
def test_zephyr_figures_are_labelled_and_not_blank(n, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(make_rows(n), make_metrics())
        paths = {name: style.save(fig, tmp_path / f"{name}.png") for name, fig in drawn.items()}
    names = ["redshifts", "calibration", "examples", "responsibilities", "binned", "label_noise"]
    if n == 5000:  # enough for cells
        names.insert(2, "local_calibration")
    assert list(drawn) == names
    for name, fig in drawn.items():
        assert not unlabelled(fig), name
        assert fig.get_label().endswith("."), f"{name}: its docstring's first line is no caption"
        assert imread(paths[name]).std() > 0.05, f"{name} is blank"


def test_figures_bear_any_number_of_sources():
    one, many = ("only",), tuple(f"survey_{k}" for k in range(11))
    for sources in (one, many):
        drawn = draw(make_rows(40, sources), make_metrics(sources), sources)
        assert "label_noise" in drawn
        assert len(set(style.colours(sources).values())) == len(sources)


def test_columns_that_no_figure_needs_may_have_any_shape():
    rows = make_rows(300) | {"z_samples": np.zeros((256, 10)), "name": np.array(["a"] * 300)}
    assert "examples" in draw(rows, {})


def test_label_noise_is_drawn_only_where_the_truth_is_known():
    assert "label_noise" not in draw(make_rows(30), {"label_sigma_grism": 0.01})


def test_without_spectroscopic_redshifts_only_predictions_are_drawn():
    rows = make_rows(30)
    for name in ("z_true", "pit", "crps", "nll"):
        del rows[name]
    assert list(draw(rows, {})) == ["examples", "responsibilities"]


def test_objects_without_redshift_or_magnitude_do_not_enter_the_figures():
    rows = make_rows(300)
    rows["z_true"][:40] = rows["pit"][:40] = rows["crps"][:40] = rows["nll"][:40] = np.nan
    rows["mag_ref"][30:60] = np.nan
    main = draw(rows, {})["redshifts"].axes[0]
    assert main.get_title(loc="left").startswith("260 objects")


def test_without_any_magnitude_the_figures_against_magnitude_are_left_out(tmp_path):
    rows = make_rows(300)
    rows["mag_ref"][:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(rows, make_metrics())
        for name, fig in drawn.items():
            style.save(fig, tmp_path / f"{name}.png")
    assert list(drawn) == ["redshifts", "calibration", "examples", "binned", "label_noise"]
    assert {axis.get_xlabel() for axis in drawn["binned"].axes} == {"true redshift"}
    assert "nan" not in "".join(axis.get_title() for axis in drawn["examples"].axes)


def test_wild_redshifts_do_not_stretch_the_axes_and_are_counted():
    rows = make_rows(1000)
    usual = zephyr.redshifts(rows).axes[0].get_xlim()[1]
    rows["z_true"][:4] = 30.0
    main = zephyr.redshifts(rows).axes[0]
    assert main.get_xlim()[1] < 1.2 * usual
    assert main.get_title(loc="left").endswith("4 off the plot")
    assert not main.texts, "text would cover objects"
    rows["z_true"][:6] = 30.0  # more than 0.5%: no longer a handful
    assert zephyr.redshifts(rows).axes[0].get_xlim()[1] > 30


def test_the_colour_bar_is_labelled_within_one_decade(tmp_path):
    fig = zephyr.redshifts(make_rows(600))
    (bar,) = [axis for axis in fig.axes if axis.get_label() == "<colorbar>"]
    style.save(fig, tmp_path / "redshifts.png")
    low, high = bar.get_ylim()
    shown = [
        tick.label1.get_text()
        for tick in bar.yaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert len(shown) > 2 and all(shown)


def test_the_rows_of_the_binned_figure_have_their_own_scale():
    rows = make_rows(2000)
    rows["z_median"] = rows["z_true"] + 0.3 * (rows["mag_ref"] > 24.9) * (1 + rows["z_true"])
    first, second = zephyr.binned(rows).axes[0::4]
    assert first.get_ylim()[1] < second.get_ylim()[1]


def test_the_poorest_and_the_double_peaked_are_among_the_examples():
    rows = make_rows(200)
    rows["nll"][17] = 50.0
    rows["pz"][31] = normal(rows["z_grid"], 0.5, 0.05) + normal(rows["z_grid"], 2.0, 0.05)
    chosen = zephyr._choose_examples(rows)
    assert len(chosen) == 12
    assert chosen[17] == ["poorest of these"] and chosen[31] == ["double-peaked"]
    assert np.all(np.diff(rows["mag_ref"][list(chosen)]) >= 0)
    assert np.ptp(rows["mag_ref"][list(chosen)]) > 2


def test_a_missing_column_is_named():
    rows = make_rows(5)
    densities = contributions(rows)
    del rows["responsibility_grism"]
    with pytest.raises(ValueError, match="responsibility_grism"):
        zephyr.draw(rows, {}, {"examples": densities})
    rows = make_rows(5)
    rows["pit"] = rows["pit"][:3]
    with pytest.raises(ValueError, match="pit"):
        draw(rows, {})


def test_a_density_off_its_grid_is_refused():
    rows = make_rows(5)
    rows["pz"][3] = 0
    with pytest.raises(ValueError, match=r"z_grid.*\[3\]"):
        draw(rows, {})
    rows = make_rows(5)
    densities = contributions(rows)
    densities["grism"] = densities["grism"][:, :100]
    with pytest.raises(ValueError, match="grism has shape"):
        zephyr.draw(rows, {}, {"examples": densities})


def test_importing_figures_changes_nothing_and_loads_no_torch():
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "import orrery.figures.zephyr, orrery.evaluation.report\n"
        "heavy = {'torch', 'orrery.models', 'orrery.datamodules', 'matplotlib.pyplot'}\n"
        "heavy.add('scipy.stats')\n"  # takes as long to import as matplotlib
        "banned = heavy & set(sys.modules)\n"
        "assert not banned, banned\n"
        # Last, because reading all of rcParams makes matplotlib choose a backend, by pyplot.
        "assert all(before[k] == v for k, v in matplotlib.rcParams.items() if k != 'backend')"
    )
    done = fresh_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_binomial_band_holds_95_percent_of_draws():
    for n, p in ((1, 0.5), (30, 0.05), (4000, 0.3)):
        low, high = binomial_band(n, p)
        draws = np.random.default_rng(1).binomial(n, p, 40_000)
        assert np.mean((draws >= low) & (draws <= high)) > 0.945
        assert np.mean(draws < low) < 0.03 and np.mean(draws > high) < 0.03


def test_running_mean_follows_a_line_and_keeps_shares_summing_to_one():
    x = np.sort(np.random.default_rng(2).uniform(0, 1, 3000))
    middle, mean = running_mean(x, np.array([x, 1 - x]))
    np.testing.assert_allclose(mean[0], middle, atol=1e-9)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-9)


def test_groups_are_equal_and_leave_nan_out():
    x = np.r_[np.random.default_rng(3).uniform(size=500), np.nan]
    groups = equal_groups(x)
    assert [len(group) for group in groups] == [50] * 10
    assert 500 not in np.concatenate(groups)


def test_bootstrap_error_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(4).normal(0, 2, 400)
    assert bootstrap_error(lambda v: float(np.mean(v)), values, 400) == pytest.approx(0.1, rel=0.2)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    tmp_path = tmp_path_factory.mktemp("report")
    png = style.save(zephyr.responsibilities(make_rows(30), list(SOURCES)), tmp_path / "one.png")
    path = write_report(
        tmp_path / "report.html",
        "zephyr <test>",
        make_metrics(),
        {"peer & co": {"nmad": 0.0305, "nll": -1.5}, "true model": {"nmad": 0.0199}},
        [(png, 'A "quoted" caption <b>')],
        "model:\n  name: <zephyr>\n",
        {"data": "sha256 1f3b", "paper": "https://arxiv.org/abs/2310.20125"},
        ["Simulated data & nothing else."],
        {"nmad"},
    )
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["one.png", "report.html"]
    return path.read_text(encoding="utf-8")


def test_report_needs_nothing_beside_it(report):
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', report))
    assert "url(" not in report and "<script" not in report and "<link" not in report


def test_report_shows_each_metric_and_escapes_everything(report):
    for name in make_metrics():
        assert f'title="{name}"' in report
        assert f">{name}</th>" in report.replace("<wbr>", "")
    for text in (
        "zephyr &lt;test&gt;",
        "peer &amp; co",
        "name: &lt;zephyr&gt;",
        "&#34;quoted&#34;",
    ):
        assert text in report
    assert "<test>" not in report and "caption <b>" not in report


def test_better_is_emphasised_only_where_the_direction_is_known_and_never_the_true_model(report):
    assert re.findall(r"<strong>(.*?)</strong>", report) == ["0.02134"]


def test_provenance_is_rows_of_text_without_python_dicts():
    record = {
        "config": {"model": {}},
        "data": {"path": "a.fits", "rows": 3},
        "found_out": {"bands": ["u", "g"], "clusters": {"M67": 3.58771085, "Hyades": 2.5}},
        "versions": {"torch": "2.13.0"},
        "git_commit": "2c3eeaa",
        "metrics": {"nmad": 0.02},
    }
    assert provenance(record) == {
        "data.path": "a.fits",
        "data.rows": "3",
        "found_out.bands": "u, g",
        "found_out.clusters": "M67 3.58771, Hyades 2.5",
        "versions.torch": "2.13.0",
        "git_commit": "2c3eeaa",
    }


def test_report_fails_before_writing_if_a_figure_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        args = ({}, {}, [(tmp_path / "gone.png", "")], "", {}, [])
        write_report(tmp_path / "report.html", "title", *args)
    assert not list(tmp_path.iterdir())


def test_terminal_table_shows_ours_beside_the_peer():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metrics_table(make_metrics(), {"peer [x]": {"nmad": 0.0305}}))
    text = console.export_text()
    assert re.search(r"nmad\s+│\s+0.02134 │\s+0.0305", text)
    assert "peer [x]" in text and "5,000" in text and "48,123" in text


def test_a_figure_that_fails_is_a_warning_and_the_report_comes_without_it(tmp_path, monkeypatch):
    def fails(_):
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(zephyr, "calibration", fails)
    rows = make_rows(40)
    data = {"examples": contributions(rows)}
    with pytest.warns(UserWarning, match=r"calibration\.png could not be made: .*Axis limits"):
        drawn = draw_figures(tmp_path, "zephyr", rows, {}, data)
    names = [path.stem for path, _ in drawn]
    assert names == ["redshifts", "examples", "responsibilities", "binned"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.png" for n in names)
    del rows["z_median"]  # without it not even the list of figures is there
    with pytest.warns(UserWarning, match="the figures could not be made"):
        assert draw_figures(tmp_path, "zephyr", rows, {}, data) == []
