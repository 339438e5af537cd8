"""Results of an evaluation in its folder: metrics.json, figures and report.html."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from orrery import progress
from orrery.evaluation.report import write_report
from orrery.figures.style import save
from orrery.files import written_atomically
from orrery.models.base import or_nothing


def write_results(
    run_dir: Path,
    component: str,
    title: str,
    notes: Sequence[str],
    rows: Mapping[str, np.ndarray],
    figures: Mapping[str, Mapping[str, np.ndarray]],
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    record: Mapping[str, Any],
    config_yaml: str,
    smaller_is_better: Collection[str],
) -> None:
    """Write the metrics, each figure of ``figures.<component>``, and the page that holds both.

    ``notes``: what stands at the top of the page.

    ``baselines``: the same metrics of others on the same objects; in metrics.json they get the
    other's name as a suffix, such as ``crps_true_model``.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    others = {
        f"{key}_{name.replace(' ', '_')}": value
        for name, values in baselines.items()
        for key, value in values.items()
    }
    with written_atomically(run_dir / "metrics.json") as part:
        part.write_text(json.dumps({**metrics, **others}, indent=2) + "\n")
    write_report(
        run_dir / "report.html",
        title,
        metrics,
        baselines,
        draw_figures(run_dir, component, rows, metrics, figures),
        config_yaml=config_yaml,
        provenance=provenance(record),
        notes=notes,
        smaller_is_better=smaller_is_better,
    )


def draw_figures(
    run_dir: Path,
    component: str,
    rows: Mapping[str, np.ndarray],
    metrics: Mapping[str, float],
    figures: Mapping[str, Mapping[str, np.ndarray]],
) -> list[tuple[Path, str]]:
    """File and caption of each figure of ``figures.<component>``.

    A figure that fails gives a warning; the evaluation goes on without it.
    """
    drawn: list[tuple[Path, str]] = []
    if not find_spec(f"orrery.figures.{component}"):
        return drawn
    draw = import_module(f"orrery.figures.{component}").draw
    makers = or_nothing("the figures", lambda: draw(rows, metrics, figures))
    with progress.phase("drawing figures", len(makers)) as phase:
        for done, (name, make) in enumerate(makers.items(), 1):
            path = run_dir / f"{name}.png"
            drawing = partial(_draw_figure, make, path)
            drawn += or_nothing(f"the figure {path.name}", drawing).items()
            phase.update(done, done, "figures")
    return drawn


def _draw_figure(make: Callable[[], Figure], path: Path) -> dict[Path, str]:
    """Draw, write; the file and its caption."""
    figure = make()
    return {save(figure, path): str(figure.get_label())}


def provenance(record: Mapping[str, Any]) -> dict[str, str]:
    """A checkpoint's record as rows of text, ``data.path`` being the path of its data.

    Without its config and metrics, which have their own places on the page.
    """
    rows: dict[str, str] = {}
    for name, entry in record.items():
        if name in ("config", "metrics"):
            continue
        if isinstance(entry, Mapping):
            rows |= {f"{name}.{key}": _text(value) for key, value in entry.items()}
        else:
            rows[name] = _text(entry)
    return rows


def _text(value: Any) -> str:
    """``a 1, b 2`` of a mapping, ``a, b`` of a list; floats to six digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
