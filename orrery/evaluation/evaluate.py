"""Evaluation, shared by train.py and evaluate.py: predict, score, plot, report."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from omegaconf import OmegaConf
from rich import print as print_table

from orrery import progress
from orrery.checkpoint import name_of
from orrery.datamodules.base import CatalogueData
from orrery.datamodules.dataset import Dataset, GenerationRequest
from orrery.evaluation import flagged
from orrery.evaluation.baselines import peers
from orrery.evaluation.posterior_file import check_draws, write_draws
from orrery.evaluation.predictions import (
    SCALARS,
    Predictions,
    labelled,
    no_vectors,
    table_writer,
)
from orrery.evaluation.report import metrics_table
from orrery.evaluation.results import write_results
from orrery.evaluation.sky_map import write_sky_map
from orrery.evaluation.timing import timings
from orrery.models.base import (
    ComparesGroups,
    Comparison,
    Component,
    Evaluation,
    Generates,
    InfersJointly,
    MakesSkyMap,
    Output,
    Posterior,
    PredictedRows,
)
from orrery.tables import HatsCatalogue, Writer, is_hats, open_hats, sink_for
from orrery.tables.writer import has_ending, refuse_taken_folder


def evaluate(
    model: Component,
    data: CatalogueData,
    trainer: Any,
    run_dir: Path,
    title: str,
    output: str | None = None,
    columns: list[str] | str | None = None,
) -> dict[str, float]:
    """Predict every row, write rows to ``output``, score and report where truth is known.

    Returns the metrics, in every process the same.
    """
    refuse_lacking(model, data)
    run_dir.mkdir(parents=True, exist_ok=True)
    meta = _metadata(model, title)
    n = data.n_predicted()
    if not n:
        raise ValueError(
            f"{data.label}: no rows are held out (data.test_fraction={data.test_fraction:g}); "
            f"evaluate another catalogue: data.path=<file>"
        )
    partitions = _partitions_of(data, output)
    if partitions is not None:  # the predictions have positions, as every HATS catalogue
        data.keep = list(dict.fromkeys([*partitions.position_columns, *data.keep]))
    predictions = Predictions(n, output, columns, data.keep, data.keep_units(), meta, partitions)
    trainer.callbacks.append(predictions)
    with progress.phase("predicting", n):
        trainer.predict(model, datamodule=data, return_predictions=False)
    trainer.callbacks.remove(predictions)
    stacked = predictions.stacked()
    outcome: list[dict[str, float] | Exception] = [{}]
    if trainer.is_global_zero:
        if output:
            print(f"predictions of {predictions.written:,} objects: {output}")
        if stacked is not None:
            _write_stacked(stacked, run_dir / "stacked.ecsv", meta)
            print(f"by {data.group_by}: {run_dir / 'stacked.ecsv'}")
        try:
            outcome = [_evaluate_rows(model, data, run_dir, title, predictions)]
            if not (outcome[0] or output or stacked is not None):
                raise ValueError(
                    f"{data.label} has no truth to score against; ask for predictions: "
                    f"output=<file>"
                )
        except (ValueError, OSError) as error:  # which the other processes raise too
            outcome = [error]
    if trainer.world_size > 1:
        dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _partitions_of(data: CatalogueData, output: str | None) -> HatsCatalogue | None:
    """The catalogue whose partitions ``output`` takes over: of a folder, not of a file."""
    if output is None or data.path is None or not is_hats(data.path) or has_ending(output):
        return None
    source = open_hats(data.path)
    with data.open("test") as catalogue:
        if len(catalogue) != len(source):
            raise ValueError(
                f"output={output}: {data.label} is read as {len(catalogue):,} objects, and has "
                f"{len(source):,} rows: its partitions cannot hold the predictions; name a file, "
                f"such as output={output.rstrip('/')}.parquet"
            )
    refuse_taken_folder(output)
    return source


def _evaluate_rows(
    model: Component, data: CatalogueData, run_dir: Path, title: str, predictions: Predictions
) -> dict[str, float]:
    """Score and report where truth is known; print the warnings. Returns the metrics."""
    with progress.phase("scoring"):
        evaluation = model.evaluate(predictions.rows, data)
    evaluation.warnings = [*predictions.remarks, *evaluation.warnings]
    if predictions.summary:
        print(predictions.summary)
    metrics: dict[str, float] = {}
    if evaluation.metrics:
        evaluation.metrics |= flagged.as_metrics(predictions.shares)
        metrics = _score(model, data, run_dir, title, predictions.rows, evaluation)
    _print_notes(evaluation.warnings)
    return metrics


def _print_notes(warnings: Sequence[str]) -> None:
    """After the table, which may be longer than the terminal."""
    for warning in warnings:
        print(f"note: {warning}")


def _score(
    model: Component,
    data: CatalogueData,
    run_dir: Path,
    title: str,
    rows: PredictedRows,
    evaluation: Evaluation,
) -> dict[str, float]:
    """All metrics, with those of the model itself and its speed; writes the report."""
    metrics = evaluation.metrics
    if data.insample:
        print(f"{data.label} is what the model was trained on: its metrics are not held out")
        metrics = {f"{key}_insample": value for key, value in metrics.items()}
    metrics |= evaluation.fitted_parameters
    batch = next(data.prediction_batches())
    cases = evaluation.timings or {
        "objects_per_second": (lambda: model.predict_step(batch, 0), len(batch["row"]))
    }
    with progress.phase("measuring its speed"):
        metrics |= timings(model, cases)
    constants = {name: constant.values.squeeze() for name, constant in model.constants.items()}
    _report(
        model,
        data,
        run_dir,
        title,
        rows={**rows, **constants},
        evaluation=evaluation,
        metrics=metrics,
    )
    return metrics


def infer(
    model: Component, data: Dataset, run_dir: Path, title: str, seed: int, output: str | None = None
) -> dict[str, float]:
    """One posterior of all rows of a `JointData`: draws to ``output``, diagnostics and figures."""
    refuse_lacking(model, data)
    if not isinstance(model, InfersJointly):
        raise ValueError(
            f"{name_of(model)} predicts row by row; data={type(data).__name__} is for a component "
            f"that infers one posterior of all rows, such as gc_emulator"
        )
    if output:
        check_draws(output)
    posterior = model.infer(data, run_dir, seed)
    if output:
        groups = {"posterior": posterior.draws, **posterior.groups}
        write_draws(output, groups, posterior.units, _metadata(model, title))
        print(f"posterior draws: {output}")
    return _report_joint(model, data, run_dir, title, dict(posterior.draws), posterior)


def compare(
    model: Component, data: Dataset, run_dir: Path, title: str, seed: int, output: str | None = None
) -> dict[str, float]:
    """Groups of rows of a `GroupedData` with each other: a table to ``output``, figures, report."""
    if not isinstance(model, ComparesGroups):
        raise ValueError(
            f"{name_of(model)} does not compare groups of rows; data={type(data).__name__} is for "
            f"a component that does, such as abundances"
        )
    if output:
        sink_for(output)  # what cannot be written is refused before anything is computed
    comparison = model.compare(data, seed)
    rows = {name: np.asarray(values) for name, values in comparison.rows.items()}
    if output:
        with table_writer(output, comparison.outputs, _metadata(model, title)) as writer:
            writer.write(labelled(rows, comparison.outputs))
        print(f"comparison: {output}")
    return _report_joint(model, data, run_dir, title, rows, comparison)


def _report_joint(
    model: Component,
    data: Dataset,
    run_dir: Path,
    title: str,
    rows: dict[str, Any],
    result: Posterior | Comparison,
) -> dict[str, float]:
    """Report what all rows say together, and print the warnings; returns the metrics."""
    metrics = dict(result.metrics)
    figures = {name: {**arrays} for name, arrays in result.figures.items()}
    evaluation = Evaluation(metrics, warnings=[*result.warnings], figures=figures)
    _report(model, data, run_dir, title, rows, evaluation, metrics)
    _print_notes(result.warnings)
    return metrics


def generate(
    model: Component,
    request: GenerationRequest,
    title: str,
    output: str | None,
    columns: Sequence[str] | str | None = None,
) -> None:
    """Write the objects that the model draws: all their columns, or those named."""
    if columns == SCALARS:
        raise ValueError(f"columns={columns} is for predictions; name the columns to be generated")
    if not isinstance(model, Generates):
        raise ValueError(
            f"{name_of(model)} draws no objects; data={type(request).__name__} is for a component "
            f"that generates, such as scatter_vae"
        )
    if not output:
        raise ValueError("generated objects need a file: output=<file>")
    declared = model.generated_columns(request)
    outputs = {name: column for name, column in declared.items() if isinstance(column, Output)}
    names = list(outputs)
    if unknown := [name for name in columns or () if name not in names]:
        wrong = ", ".join(map(repr, unknown))
        raise ValueError(f"columns: there is no output {wrong}; there are {names}")
    with table_writer(output, declared, _metadata(model, title)) as writer:
        for rows in model.generated(request):
            chosen = {name: rows[name] for name in columns or names}
            vectors = [name for name, values in chosen.items() if values.ndim > 1]
            if vectors and not sink_for(output).holds_vectors:
                raise ValueError(f"output={output}: {no_vectors(vectors)}")
            writer.write(labelled(chosen, outputs))
    print(f"{request.label}: {output}")


def refuse_lacking(model: Component, data: Dataset) -> None:
    """Raise for a setting that asks for something this component does not have."""
    if data.group_by and model.stack() is None:
        raise ValueError(
            f"data.group_by={data.group_by}: {name_of(model)} has nothing to add up by group; it "
            f"is for components whose rows are densities, such as zephyr and gyro. Carry the "
            f"column into the predictions: data.keep=[{data.group_by}]"
        )


def _metadata(model: Component, title: str) -> dict[str, str]:
    versions = {key: model.record[key] for key in ("versions", "git_commit")}
    return {"model": title, "zoo": json.dumps(versions)}


def write_sky_map_of(
    model: Component, output: str | None, columns: list[str] | None, title: str
) -> bool:
    """Write ``output`` if it is a FITS file and the model is a map of the sky; whether it was."""
    is_fits = output is not None and output.lower().endswith((".fits", ".fit"))
    if not is_fits or output is None or not isinstance(model, MakesSkyMap):
        return False
    arrays = model.sky_map(columns)
    if arrays and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        write_sky_map(output, arrays, {"model": title})
        print(f"map: {output}")
    return bool(arrays)


def _write_stacked(stacked: Any, path: Path, meta: Mapping[str, str]) -> None:
    with Writer(path, units=stacked.units, meta=meta) as writer:
        writer.write(stacked.table())


def _report(
    model: Component,
    data: Dataset,
    run_dir: Path,
    title: str,
    rows: dict[str, Any],
    evaluation: Evaluation,
    metrics: dict[str, float],
) -> None:
    """metrics.json, figures and report.html in ``run_dir``; the table to the terminal."""
    component = name_of(model)
    baselines = evaluation.baselines | peers(component, data.provenance().get("sha256"), metrics)
    summary = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    write_results(
        run_dir,
        component=component,
        title=title,
        notes=[summary, *evaluation.warnings],
        rows=rows,
        figures=evaluation.figures,
        metrics=metrics,
        baselines=baselines,
        record=model.record,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(model.record["config"])),
        smaller_is_better=evaluation.smaller_is_better,
    )
    print_table(metrics_table(metrics, baselines, evaluation.smaller_is_better))
    print(f"metrics, figures and report.html: {run_dir}")
