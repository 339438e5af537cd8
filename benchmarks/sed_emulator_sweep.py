"""Error and time of `sed_emulator` against the width of its network: the trade-off of the paper.

    python train.py -m model=sed_emulator model.width=32,64,128,256,512 \
        model.architecture=history,direct
    python -m benchmarks.sed_emulator summarise multirun/<date>

Reads the checkpoints of a sweep. `error_mag` is sigma_68 of the residuals in the median band,
`correlation` the mean |correlation| of residuals of two bands, `colour_sigma` the scatter of
colours in units of the predicted one, `us` the CPU time of a galaxy in batches of 2048. One thread.
Slopes are those of straight lines in log-log; the paper has error ~ N^-1 and time ~ N^2. Writes
widths.csv and widths.png into the folder of the sweep.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from orrery import pretrained
from orrery.benchmarks.dust_hmc import write_rows
from orrery.evaluation.timing import best_of_five
from orrery.figures import style

COLUMNS = (
    *("architecture", "width", "population", "n_train", "error_mag", "p997_mag", "correlation"),
    *("colour_sigma", "us", "matmul_ms"),
)
BATCH = 2048
METRICS = {
    "error_mag": "sigma68_mag",
    "p997_mag": "p997_mag",
    "correlation": "mean_abs_residual_correlation",
    "colour_sigma": "colour_whitened_sigma",
}
PAPER = {"error_mag": -1.0, "us": 2.0}  # slopes


def summarise(folder: Path) -> None:
    """Table, slopes and figure of the runs in ``folder``."""
    rows = [_row(path) for path in sorted(folder.glob("*/best.ckpt"))]
    if not rows:
        raise ValueError(f"{folder} holds no */best.ckpt: is it the folder of a sweep?")
    rows.sort(key=lambda row: (row["architecture"], row["width"]))
    write_rows(folder / "widths.csv", rows, COLUMNS)
    for row in rows:
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items()))  # fmt: skip
    for name in sorted({row["architecture"] for row in rows}):
        chosen = [row for row in rows if row["architecture"] == name]
        if len(chosen) > 1:
            slopes = {quantity: _slope(chosen, quantity) for quantity in PAPER}
            print(
                f"{name}: error ~ N^{slopes['error_mag']:.2f}, time ~ N^{slopes['us']:.2f} "
                f"(paper: N^-1, N^2)"
            )
    widths(rows).savefig(folder / "widths.png", dpi=150)


def _row(path: Path) -> dict[str, Any]:
    model = pretrained.load(path)
    record: dict[str, Any] = model.record
    config, metrics = record["config"], record["metrics"]
    parameters = model.priors.draw(BATCH, torch.Generator().manual_seed(0))
    square = torch.ones(1024, 1024)
    return {
        "architecture": config["model"]["architecture"],
        "width": int(config["model"]["width"]),
        "population": str(model.population),
        "n_train": int(config["data"]["n_train"]),
        **{name: float(metrics[key]) for name, key in METRICS.items()},
        "us": 1e6 * best_of_five(lambda: model.emulate(parameters)) / BATCH,
        "matmul_ms": 1e3 * best_of_five(lambda: square @ square),
    }


def _slope(rows: list[dict[str, Any]], quantity: str) -> float:
    x, y = (np.log([row[name] for row in rows]) for name in ("width", quantity))
    return float(np.polyfit(x, y, 1)[0])


@style.figure
def widths(rows: list[dict[str, Any]]) -> Figure:
    """Error and time against width, with the slopes of the paper."""
    fig, axes = style.new(2, size=(13.33, 6))
    for axis, quantity, text in (
        (axes[0, 0], "error_mag", r"$\sigma_{68}$ of magnitudes, median band"),
        (axes[0, 1], "us", "time per galaxy [µs]"),
    ):
        for i, name in enumerate(sorted({row["architecture"] for row in rows})):
            chosen = [row for row in rows if row["architecture"] == name]
            x, y = (np.array([row[key] for row in chosen], float) for key in ("width", quantity))
            axis.plot(x, y, "o-", color=style.PALETTE[i], label=name)
        every = np.array([row["width"] for row in rows], float)
        x = np.array([every.min(), every.max()])
        slope = PAPER[quantity]
        anchor = np.median([row[quantity] for row in rows])
        middle = math.sqrt(x[0] * x[1])
        axis.plot(x, anchor * (x / middle) ** slope, color=style.TRUTH, ls="--",
                  label=f"paper: $N^{{{slope:g}}}$")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="width $N$ of the network", ylabel=text)
        ticks = sorted(set(every.astype(int).tolist()))
        axis.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axis.minorticks_off()
    for axis in axes[0]:
        axis.legend()
    return fig
