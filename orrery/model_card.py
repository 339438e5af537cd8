"""The model card: what a checkpoint is, for which objects it is valid, how to reproduce it."""

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
