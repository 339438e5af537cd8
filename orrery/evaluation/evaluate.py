"""What a fitted model says of data, scored, plotted and reported: what both doors end with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import print

from orrery.checkpoint import component_name
from orrery.evaluation.baselines import peers
from orrery.evaluation.posterior_file import check_draws, write_draws
from orrery.evaluation.predictions import Predictions
from orrery.evaluation.report import metrics_table
from orrery.evaluation.results import write_results
from orrery.evaluation.sky_map import write_sky_map
from orrery.evaluation.timing import speeds
from orrery.tables import Writer


def evaluate(
    model: Any,
    data: Any,
    trainer: Any,
    run_dir: Path,
    title: str,
    output: str | None = None,
    columns: list[str] | None = None,
) -> dict[str, float]:
    """Predict every row; write them to ``output``; score, plot and report where truth is known."""
    of_model = output and output.lower().endswith((".fits", ".fit")) and data.path is None
    if output and of_model and (whole := model.whole(columns)):
        if trainer.is_global_zero:
            write_sky_map(output, whole, {"model": title})
            print(f"map: {output}")
        output = columns = None
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = {key: model.record[key] for key in ("versions", "git_commit")}
    meta = {"model": title, "zoo": json.dumps(facts)}
    predictions = Predictions(
        data.n_predicted(), output, columns, data.keep, data.keep_units(), meta
    )
    trainer.callbacks.append(predictions)
    trainer.predict(model, datamodule=data, return_predictions=False)
    trainer.callbacks.remove(predictions)
    rows, stacked = predictions.rows(), predictions.stacked()
    metrics = model.metrics(rows)
    if not trainer.is_global_zero:
        return metrics
    for remark in model.remarks(rows):
        print(f"note: {remark}")
    if output:
        print(f"predictions of {predictions.written:,} objects: {output}")
    if stacked:
        path = run_dir / "stacked.ecsv"
        with Writer(path, units=model.stack_units, meta=meta) as writer:
            writer.write(model.stack_table(stacked))
        print(f"by {data.group_by}: {path}")
    if metrics:
        return score(model, data, run_dir, title, rows, metrics)
    if not (output or stacked):
        raise ValueError(
            f"{data.label} has no truth to score against; ask for predictions: output=<file>"
        )
    return metrics


def score(
    model: Any,
    data: Any,
    run_dir: Path,
    title: str,
    rows: dict[str, Any],
    metrics: dict[str, float],
) -> dict[str, float]:
    """``metrics`` of rows joined by all else that is known of a model whose truth is known."""
    if data.insample:
        print(f"{data.label} is what the model was trained on: its metrics are not held out")
        metrics = {f"{key}_insample": value for key, value in metrics.items()}
    facts, shown = model.judged(data)
    metrics |= model.learned() | data.truth() | facts
    metrics |= speeds(model, next(data.prediction_batches()))
    true_rows = model.true_model(data)
    beside = {"true model": model.metrics(true_rows)} if true_rows else {}
    rows |= shown | {name: constant.values.squeeze() for name, constant in model.constants.items()}
    if (mock := data.mock()) is not None:
        found = model.infer(mock, run_dir, mock.seed)
        metrics = {**found.metrics, **metrics}
        rows |= {f"mock_{name}": draws for name, draws in found.draws.items()}
    report(model, data, run_dir, title, rows, metrics, beside)
    return metrics


def infer(
    model: Any, data: Any, run_dir: Path, title: str, seed: int, output: str | None = None
) -> dict[str, float]:
    """What all rows say together: posterior draws to ``output``, their diagnostics and figures."""
    if output:
        check_draws(output)
    product = model.infer(data, run_dir, seed)
    if output:
        facts = {key: str(model.record[key]) for key in ("versions", "git_commit")}
        groups = {"posterior": product.draws, **product.groups}
        write_draws(output, groups, product.units, {"model": title, **facts})
        print(f"posterior draws: {output}")
    for remark in product.remarks:
        print(f"note: {remark}")
    metrics, rows = dict(product.metrics), {**product.draws, **product.shown}
    report(model, data, run_dir, title, rows, metrics, {}, product.remarks)
    return metrics


def report(
    model: Any,
    data: Any,
    run_dir: Path,
    title: str,
    rows: dict[str, Any],
    metrics: dict[str, float],
    beside: dict[str, dict[str, float]],
    remarks: Sequence[str] = (),
) -> None:
    """metrics.json, figures and report.html in ``run_dir``; the table to the terminal."""
    component = component_name(type(model).__module__)
    beside |= peers(component, data.provenance().get("sha256"), metrics)
    write_results(
        run_dir,
        component=component,
        title=title,
        notes=[" ".join((model.__doc__ or "").split("\n\n")[0].split()), *remarks],
        rows=rows,
        metrics=metrics,
        beside=beside,
        record=model.record,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(model.record["config"])),
        smaller_is_better=model.smaller_is_better,
    )
    print(metrics_table(metrics, beside, model.smaller_is_better))
    print(f"metrics, figures and report.html: {run_dir}")
