"""The model card: what a checkpoint is, for whom it holds, and how to make it again."""

from typing import Any


def model_card(name: str, model: Any) -> str:
    """Markdown from the model's docstring, its `scope` and its record; nothing is typed by hand."""
    record = model.record
    summary, _, rest = (model.__doc__ or "").strip().partition("\n\n")
    method = rest.split("\n\n")[0]
    data, metrics = record["data"], record["metrics"]
    origin = record["config"]["data"].get("origin")
    trained_on = [f"- {key}: {value}" for key, value in data.items()]
    held_out = [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
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
            "## Holds for",
            "",
            *[f"- {line}" for line in model.scope()],
            "",
            f"## Metrics on {metrics.get('n', 0):,} held-out objects",
            "",
            "| metric | value |",
            "|---|---|",
            *held_out,
            "",
            "## Make it again",
            "",
            f"    python {record['command']}",
            "",
            f"Commit {record['git_commit']}, {record['created']}; "
            + ", ".join(f"{k} {v}" for k, v in record["versions"].items())
            + ". Weights and code: MIT licence.",
            "",
        ]
    )
