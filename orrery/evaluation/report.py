"""The report of an evaluation: one self-contained HTML file."""

import math
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from orrery.files import written_atomically

TRUE_MODEL = "true model"  # cannot be beaten: listed, but never emphasised
OURS = "ours"

Numbers = Mapping[str, float]

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    path: str | Path,
    title: str,
    metrics: Numbers,
    baselines: Mapping[str, Numbers],
    figures: Sequence[tuple[str | Path, str]],
    config_yaml: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    smaller_is_better: Collection[str] = (),
) -> Path:
    """Write one self-contained HTML page and return its path.

    baselines: the same metrics of others, by name: a peer's, or the "true model" of a simulation.
    figures: PNG files with their captions, in the order to show them.
    smaller_is_better: metrics whose smallest value is emphasised; no others are.

    Raises FileNotFoundError if a figure does not exist; then nothing is written.
    """
    lines = _lines(metrics, baselines, smaller_is_better)
    page = _TEMPLATES.get_template("report.html.jinja").render(
        title=title,
        notes=notes,
        columns=("metric", OURS, *baselines),
        lines=lines,
        number=_number,
        emphasised=any(best for _, cells in lines for _, best in cells),
        figures=[(b64encode(Path(png).read_bytes()).decode(), text) for png, text in figures],
        provenance=provenance,
        config_yaml=config_yaml,
    )
    with written_atomically(path) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def metrics_table(
    metrics: Numbers, baselines: Mapping[str, Numbers], smaller_is_better: Collection[str] = ()
) -> Table:
    """The same table for the terminal: a row per metric, ours first, then each of `baselines`."""
    table = Table("metric")
    for name in (OURS, *baselines):
        table.add_column(Text(name), justify="right")
    for name, cells in _lines(metrics, baselines, smaller_is_better):
        table.add_row(Text(name), *(Text(_number(v), "bold" if best else "") for v, best in cells))
    return table


def _lines(
    metrics: Numbers, baselines: Mapping[str, Numbers], smaller: Collection[str]
) -> list[tuple[str, list[tuple[float | None, bool]]]]:
    """(metric, [(value or None where it has none, whether it is the best) of each column])."""
    columns = {OURS: metrics, **baselines}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = []
    for name in names:
        values = [column.get(name) for column in columns.values()]
        rivals = [
            value
            for column, value in zip(columns, values, strict=True)
            if column != TRUE_MODEL and value is not None and math.isfinite(value)
        ]
        best = min(rivals) if name in smaller and len(set(rivals)) > 1 else None
        cells = [
            (value, value is not None and value == best and column != TRUE_MODEL)
            for column, value in zip(columns, values, strict=True)
        ]
        lines.append((name, cells))
    return lines


def _number(value: float | None) -> str:
    """Four significant digits; whole numbers in full: 0.02134, 12,346, 1.2e-05."""
    if value is None:
        return "–"
    if math.isfinite(value) and (value == int(value) or abs(value) >= 10_000) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"
