"""The model card: what a checkpoint is, for which objects it is valid, how to reproduce it."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from orrery.checkpoint import name_of
from orrery.models.base import Component


def model_card(name: str, model: Component) -> str:
    """Markdown from the model's docstring, its `domain_of_validity` and its record."""
    record = model.record
    summary, _, rest = (model.__doc__ or "").strip().partition("\n\n")
    method = rest.split("\n\n")[0]
    data, metrics = record["data"], record["metrics"]
    origin = record["config"]["data"].get("origin")
    trained_on = [f"- {key}: {value}" for key, value in data.items()]
    held_out = [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
    valid = [f"- {line}" for line in model.domain_of_validity()]
    valid_for = ["## Valid for", "", *valid, ""] if valid else []
    return "\n".join(
        [
            f"# {name}",
            "",
            " ".join(summary.split()),
            "",
            " ".join(method.split()),
            "",
            "## Trained on",
            "",
            *([f"{origin}", ""] if origin else []),
            *trained_on,
            "",
            *valid_for,
            f"## Metrics on {metrics.get('n', 0):,} held-out objects",
            "",
            "| metric | value |",
            "|---|---|",
            *held_out,
            "",
            "## How to reproduce it",
            "",
            f"    python {record['command']}",
            "",
            f"Commit {record['git_commit']}, {record['created']}; "
            + ", ".join(f"{k} {v}" for k, v in record["versions"].items())
            + ". Weights and code: MIT licence.",
            "",
        ]
    )


def hub_card(name: str, model: Component) -> str:
    """`model_card` in the form of model hubs: with YAML front matter, and how to use the folder."""
    front = yaml.safe_dump(_front_matter(name, model), sort_keys=False, allow_unicode=True)
    before, heading, after = model_card(name, model).partition("## How to reproduce it")
    use = """\
## How to use it

This folder is a checkpoint of Orrery, a model zoo for astronomy. In Python, and for a catalogue:

    orrery.load("this/folder").predict(table)
    python -m orrery evaluate checkpoint=this/folder data.path=cat.fits output=predicted.fits

"""
    return f"---\n{front}---\n\n{before}{use}{heading}{after}"


def _front_matter(name: str, model: Component) -> dict[str, Any]:
    """Metadata that hubs read; the metrics are those on held-out objects, of the record."""
    record, component = model.record, name_of(model)
    papers = re.findall(r"arXiv:(\d{4}\.\d{4,5})", model.__doc__ or "")
    data = record["data"]
    kind = "catalogue" if data.get("path") else "simulation"
    dataset = Path(data["path"]).name if data.get("path") else str(data.get("simulation", kind))
    metrics = [
        {"type": key, "name": key, "value": float(value)}
        for key, value in record["metrics"].items()
        if math.isfinite(value)
    ]
    results = {
        "task": {"type": "other", "name": component},
        "dataset": {"type": kind, "name": dataset},
        "metrics": metrics,
    }
    front: dict[str, Any] = {
        "library_name": "orrery",
        "license": "mit",
        "tags": ["astronomy", component, *(f"arxiv:{paper}" for paper in dict.fromkeys(papers))],
    }
    return front | ({"model-index": [{"name": name, "results": [results]}]} if metrics else {})
