"""The page a person opens after an evaluation: one HTML file that needs nothing beside it."""

import base64
import math
import os
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

TRUE_MODEL = "true model"  # what nobody can beat: shown, but no competitor for "better"
OURS = "ours"

Numbers = Mapping[str, float]

_CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6570; --line: #dde1e6;
  --paper: #ffffff; --tint: #f4f6f8; --better: #00659e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #353c44;
  --paper: #15181c; --tint: #1e2328; --better: #6cc4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 50%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1rem .35rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; font-weight: 400; }
thead th, thead th:first-child { font-weight: 600; border-bottom: 2px solid var(--soft); }
tbody th { font-family: ui-monospace, monospace; font-size: .9rem; white-space: normal; }
tbody tr:nth-child(even) { background: var(--tint); }
td strong { color: var(--better); }
p.key { color: var(--soft); font-size: .9rem; }
figure { margin: 0 0 2rem; }
img { display: block; max-width: 100%; max-height: 52rem; height: auto; margin: 0 auto;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--soft); margin-top: .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 1rem; background: var(--tint); border-radius: 6px;
  font-size: .85rem; }
summary { cursor: pointer; }
@media (max-width: 36rem) { th, td { padding: .3rem .5rem .3rem .25rem; }
  dl { display: block; } dd { margin-bottom: .6rem; } }
"""


def write_report(
    path: str | Path,
    title: str,
    metrics: Numbers,
    beside: Mapping[str, Numbers],
    figures: Sequence[tuple[str | Path, str]],
    config_yaml: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    smaller_is_better: Collection[str] = (),
) -> Path:
    """Write one self-contained HTML page and return its path.

    beside: the same metrics of others, by name: a peer's, or the "true model" of a simulation.
    figures: PNG files with their captions, in the order to show them.
    smaller_is_better: metrics whose smallest value is emphasised; no others are.

    Raises FileNotFoundError if a figure does not exist; then nothing is written.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    parts += ["<h2>Metrics</h2>", _html_table(metrics, beside, smaller_is_better)]
    if figures:
        parts += ["<h2>Figures</h2>", *(_html_figure(png, caption) for png, caption in figures)]
    terms = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in provenance.items())
    parts += ["<h2>Provenance</h2>", f"<dl>{''.join(terms)}</dl>", "<h2>Configuration</h2>"]
    parts += [f"<details><summary>Show</summary><pre>{escape(config_yaml)}</pre></details>"]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def metrics_table(
    metrics: Numbers, beside: Mapping[str, Numbers], smaller_is_better: Collection[str] = ()
) -> Table:
    """The same table for the terminal: a row per metric, ours first, then each of `beside`."""
    table = Table("metric")
    for name in (OURS, *beside):
        table.add_column(Text(name), justify="right")
    for name, values, best in _lines(metrics, beside, smaller_is_better):
        cells = [Text(_number(v), "bold" if b else "") for v, b in zip(values, best, strict=True)]
        table.add_row(Text(name), *cells)
    return table


def _html_table(metrics: Numbers, beside: Mapping[str, Numbers], smaller: Collection[str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("metric", OURS, *beside))
    body, emphasised = "", False
    for name, values, best in _lines(metrics, beside, smaller):
        cells = ""
        for value, better in zip(values, best, strict=True):
            cells += (
                f"<td><strong>{_number(value)}</strong></td>"
                if better
                else f"<td>{_number(value)}</td>"
            )
            emphasised |= better
        text = escape(name)
        # On a phone a long name may break after an underscore.
        head_cell = f'<th scope="row" title="{text}">{text.replace("_", "_<wbr>")}</th>'
        body += f"<tr>{head_cell}{cells}</tr>\n"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    table = f'<div class="wide">{table}</div>'
    key = "<p class='key'>Bold: the better one, for metrics of which less is better.</p>"
    return table + key if emphasised else table


def _html_figure(png: str | Path, caption: str) -> str:
    data = base64.b64encode(Path(png).read_bytes()).decode("ascii")
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _lines(
    metrics: Numbers, beside: Mapping[str, Numbers], smaller: Collection[str]
) -> list[tuple[str, list[float | None], list[bool]]]:
    """(metric, value per column, which of them is best); None where a column lacks the metric."""
    columns = {OURS: metrics, **beside}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = []
    for name in names:
        values = [column.get(name) for column in columns.values()]
        rivals = [
            value
            for column, value in zip(columns, values, strict=True)
            if column != TRUE_MODEL and value is not None and math.isfinite(value)
        ]
        decided = name in smaller and len(rivals) > 1 and min(rivals) < max(rivals)
        best = [
            decided and column != TRUE_MODEL and value == min(rivals)
            for column, value in zip(columns, values, strict=True)
        ]
        lines.append((name, values, best))
    return lines


def _number(value: float | None) -> str:
    """Four significant digits; whole numbers in full: 0.02134, 12,346, 1.2e-05."""
    if value is None:
        return "–"
    if math.isfinite(value) and (value == int(value) or abs(value) >= 10_000) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"
