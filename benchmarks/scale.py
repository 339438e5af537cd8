"""What training and prediction cost by the number of rows, per component, and what follows.

    python -m benchmarks.scale                        # all, 15 min of CPU: benchmarks/scale.csv
    python -m benchmarks.scale zephyr gems.predict    # these anew
    python -m benchmarks.scale --table                # the tables of docs/scale.md, from the CSV

Every component, training and prediction each in a process of its own, on one thread, from few rows
to a thousand times as many (fewer, where a call would take more than `LONGEST` s): the embedded
simulation's, repeated. Training is a step of the model of the default settings: loss, gradient,
optimiser. Prediction is `predict_step` of the shipped model. Times are process CPU time, the better
of two, since other programs shared the machine. The number of rows rises within a process, whose
peak memory is therefore that of the rows so far.

- ``flop``: of matrix products, by torch's FlopCounterMode; others are not counted.
- ``kernels``, ``bytes``: operations of torch that are no views, and the size of what they read and
  write: what a GPU without fused kernels would launch, and move.
- ``state_bytes``: of parameters, gradients and the optimiser. ``reduced_bytes``: of the gradients,
  which processes add up in each step.
- ``efficiency``: CPU time of a step of `SHARED` rows by one process, over that of both of two that
  have half of them each, and add up gradients (gloo). Waiting for each other is not in it.
- component "files": `SCALARS` numbers per row to Parquet and back; SHA-256 of a file, bytes; what a
  process does for a batch of zephyr, rows of all processes.

dust is trained by iterations over all its stars: see benchmarks/dust_scaling.md.
"""

import csv
import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
TABLE, FIGURE = HERE / "scale.csv", HERE.parent / "figures/gallery/scale.png"
COMPONENTS = ("zephyr", "gyro", "scatter_vae", "gc_emulator", "dust", "mass_net", "sed_emulator",
              "gems", "abundances", "feniks")  # fmt: skip
ROWS = (16, 160, 1600, 16_000)
LONGEST = 12.0  # s, of a call
REPEATED = 2.0  # s, of a call that is repeated
# Their quick simulation is read as a catalogue: it lacks elements, or filters that need a package.
SIMULATED_APART = ("feniks", "abundances")
SHARED = 1600  # rows of a step of two processes
FILE_ROWS, SCALARS, HASHED_MB = 500_000, 10, 256
COLUMNS = ("component", "what", "rows", "seconds", "peak_gb", "flop", "bytes", "kernels",
           "state_bytes", "reduced_bytes", "efficiency", "matmul_1024_ms")  # fmt: skip
Row = dict[str, Any]

# Of an NVIDIA H100 SXM, by its data sheet: B/s of memory, flop/s in float32. Assumed: the fraction
# of both that PyTorch reaches, seconds to launch a kernel from Python. B/s between GPUs, per GPU.
MEMORY, FLOPS, REACHED, LAUNCH = 3.35e12, 67e12, 0.5, 6e-6
NVLINK, INFINIBAND = 450e9, 50e9
MEETING = 50e-6  # s, assumed: the latency of adding up gradients
MANY = 1e8


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["one"]:
        measure(words[1], words[2])
        return
    rows = list(csv.DictReader(TABLE.open(newline=""))) if TABLE.exists() else []
    if words != ["--table"]:
        for word in words or (*COMPONENTS, "files"):
            name, _, what = word.partition(".")
            rows = [r for r in rows if r["component"] != name or (what and r["what"] != what)]
            rows += measured(name, what)
            write(rows)
    draw(rows)
    print_tables(rows)


def write(rows: list[Row]) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measured(component: str, only: str = "") -> list[Row]:
    """The rows of a component, whose measurements run in processes of their own."""
    rows: list[Row] = []
    whats = {"files": ("files",), "dust": ("predict",)}
    for what in (only,) if only else whats.get(component, ("train", "predict")):
        command = [sys.executable, "-m", "benchmarks.scale", "one", component, what]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
        lines = [x[4:] for x in done.stdout.splitlines() if x.startswith("row ")]
        print(component, what, *(lines or ["failed"]), sep="\n  ", flush=True)
        rows += csv.DictReader(lines, COLUMNS)
    return rows


# --- in a process of its own --------------------------------------------------------------------


def measure(component: str, what: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if what == "files":
        of_files()
        return
    square = torch.ones(1024, 1024)
    matmul = {"matmul_1024_ms": 1e3 * seconds_of(lambda: square @ square, 5)}
    start = {"train": training, "predict": prediction}[what]
    call, numbers = start(component)
    rows: list[Row] = []
    for n in ROWS:
        if rows and expected(rows, n) > LONGEST:
            break
        work = call(n)
        seconds = seconds_of(work, 2)
        rows.append({"component": component, "what": what, "rows": n, "seconds": seconds})
        rows[-1] |= {"peak_gb": peak_gb(), **matmul}
        rows[-1] |= counts(work)
    of_all = numbers()
    for row in rows:
        print_row(row | of_all)


def expected(rows: list[Row], n: int) -> float:
    """Seconds of a call of ``n`` rows, by the last two sizes; after one, by the root of rows."""
    power = exponent(rows) if len(rows) > 1 else 0.5
    return float(rows[-1]["seconds"] * (n / rows[-1]["rows"]) ** max(power, 0.5))


def print_row(row: Row) -> None:
    texts = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
    print("row", ",".join(str(texts.get(name, "")) for name in COLUMNS), flush=True)


def seconds_of(work: Callable[[], object], times: int) -> float:
    """The least process CPU time of some calls, after a first one, which compiles and caches."""
    found = []
    for _ in range(times + 1):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
        if found[0] > REPEATED:
            return found[0]
    return min(found[1:])


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Traffic(TorchDispatchMode):
    """Counts operations that are no views, and bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "_local_scalar" not in str(func) and "empty" not in str(func):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.kernels += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def counts(work: Callable[[], object]) -> dict[str, int]:
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        work()
    return {"flop": flops.get_total_flops(), "bytes": traffic.bytes, "kernels": traffic.kernels}


def repeated(batch: Any, n: int) -> dict[str, Tensor]:
    """``n`` rows of a batch, from the first on again where there are fewer."""
    index = torch.arange(n) % len(next(iter(batch.values())))
    return {name: values[index] for name, values in batch.items()}


def config(component: str, *words: str) -> Any:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(HERE.parent / "configs"), version_base="1.3"):
        composed = compose("train", [f"model={component}", "run_dir=.", *words])
        return OmegaConf.to_container(composed, resolve=True)


def training(component: str) -> tuple[Callable[[int], Callable[[], object]], Callable[[], Row]]:
    """A step by the number of rows; the model has the default settings, and few rows to begin."""
    from types import SimpleNamespace

    from orrery.checkpoint import build

    data = build(config(component, f"experiment={component}_quick")["data"])
    data.setup("fit")
    model = build(config(component)["model"] | data.model_arguments())
    model.prepare(data)
    batch = next(iter(data.train_dataloader()))
    model.train()
    model.trainer = SimpleNamespace(
        datamodule=data,
        max_epochs=1,
        estimated_stepping_batches=99,
        current_epoch=10**6,  # after any warm-up
    )
    made: Any = model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call(n: int, reduce: Callable[[], None] = lambda: None) -> Callable[[], object]:
        rows = repeated(batch, n)

        def step() -> None:
            optimizer.zero_grad()
            model.loss(rows).backward()
            reduce()
            optimizer.step()

        return step

    def numbers() -> Row:
        one, two = seconds_of(call(SHARED), 2), of_two_processes(call, parameters)
        state = [x for values in optimizer.state.values() for x in values.values()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        return {
            "state_bytes": size_of([*parameters, *gradients, *state]),
            "reduced_bytes": size_of(gradients),
            "efficiency": one / two,
        }

    return call, numbers


def size_of(tensors: list[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def of_two_processes(call: Callable[..., Callable[[], object]], parameters: list[Any]) -> float:
    """CPU time of a step of `SHARED` rows by two processes together, s."""
    import torch.distributed as dist

    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def reduce() -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= 2
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def run(rank: int, meeting: str) -> None:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
        queue.put(seconds_of(call(SHARED // 2, reduce), 2))
        dist.destroy_process_group()

    with tempfile.TemporaryDirectory() as folder:
        both = [context.Process(target=run, args=(i, f"{folder}/meeting")) for i in range(2)]
        for process in both:
            process.start()
        total = queue.get() + queue.get()
        for process in both:
            process.join()
    return total


def prediction(component: str) -> tuple[Callable[[int], Callable[[], object]], Callable[[], Row]]:
    """Predictions by the number of rows, by the shipped model."""
    from orrery import load
    from orrery.checkpoint import build
    from orrery.runs import data_for

    quick = config(component, f"experiment={component}_quick")["data"]
    model = load(component)
    if component in SIMULATED_APART:
        data = data_for(model.record, {"path": None})
        data.table, data.split = build(quick).simulate("test"), "all"
    else:
        stored = {**quick, **model.record["found_out"]}
        if "population" in quick:  # that of the shipped model needs another package
            stored["population"] = quick["population"]
        data = build({k: v for k, v in stored.items() if k in quick})
    batch = next(iter(data.prediction_batches()))

    def call(n: int) -> Callable[[], object]:
        rows = repeated(batch, n)

        def predict() -> object:
            with torch.inference_mode():
                return model.predict_step(rows)

        return predict

    return call, dict


def of_files() -> None:
    """Rows to Parquet and back, and the hash of a file: seconds of CPU."""
    from orrery.tables import Writer, open_catalogue

    table = {f"c{i}": np.random.default_rng(i).random(FILE_ROWS) for i in range(SCALARS)}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.parquet"

        def write() -> None:
            with Writer(path, units={}) as out:
                out.write(table)

        def read() -> None:
            with open_catalogue(path) as catalogue:
                for _ in catalogue.chunks(catalogue.names):
                    pass

        for what, work in (("write", write), ("read", read)):
            print_row({"component": "files", "what": what, "rows": FILE_ROWS,
                       "seconds": seconds_of(work, 2), "peak_gb": peak_gb()})  # fmt: skip
    batch = training_batch("zephyr")
    print_row({"component": "files", "what": "batch", "rows": SHARED,
               "seconds": seconds_of(batch, 2)})  # fmt: skip
    block = bytes(HASHED_MB * 10**6)
    print_row({"component": "files", "what": "hash", "rows": HASHED_MB * 10**6,
               "seconds": seconds_of(lambda: hashlib.sha256(block).digest(), 2)})  # fmt: skip


def training_batch(component: str) -> Callable[[], object]:
    """What every process does before each step: take the global batch's rows, and augment them."""
    from orrery.checkpoint import build
    from orrery.datamodules.batches import BatchShares, GlobalBatches

    words = ("data.n_train=20000", f"data.batch_size={SHARED}")
    data = build(config(component, f"experiment={component}_quick", *words)["data"])
    data.setup("fit")
    shares = BatchShares(data, 0, 2)
    request = next(iter(GlobalBatches(len(data.rows["train"]["row"]), SHARED, seed=0)))
    return lambda: shares[request]


# --- what follows -------------------------------------------------------------------------------


def exponent(rows: list[Row]) -> float:
    """a of seconds ~ rows^a, of the last decade: of fewer rows the overhead counts."""
    (n0, s0), (n1, s1) = ((float(r["rows"]), float(r["seconds"])) for r in rows[-2:])
    return float(np.log(s1 / s0) / np.log(n1 / n0))


def counted(of: list[Row], n: float) -> dict[str, float]:
    """Kernels, bytes and flop of a call of ``n`` rows: linear between measured ``of``, and on."""
    sizes = [float(row["rows"]) for row in of]
    i = min(max(int(np.searchsorted(sizes, n)), 1), len(of) - 1)
    low, high = of[i - 1], of[i]
    share = (n - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
    names = ("kernels", "bytes", "flop")
    return {k: float(low[k]) + share * (float(high[k]) - float(low[k])) for k in names}


def h100(of: list[Row], n: float) -> tuple[float, str]:
    """Seconds of a call of ``n`` rows on one H100, an estimate, and what it waits for."""
    counts = counted(of, n)
    parts = {  # which overlap
        "launches": LAUNCH * counts["kernels"],
        "memory": counts["bytes"] / MEMORY / REACHED,
        "flop": counts["flop"] / FLOPS / REACHED,
    }
    worst = max(parts, key=lambda name: parts[name])
    return parts[worst], worst


def print_tables(rows: list[Row]) -> None:
    runs = {
        (name, what): of
        for name in COMPONENTS
        for what in ("train", "predict")
        if (of := [r for r in rows if (r["component"], r["what"]) == (name, what)])
    }
    print_cells("", "rows", "us/row, fewest", "most", "exponent", "peak GB", "efficiency of 2")
    for (name, what), of in runs.items():
        first, last = (1e6 * float(r["seconds"]) / float(r["rows"]) for r in (of[0], of[-1]))
        power = f"{exponent(of):.2f}" if len(of) > 1 else ""
        memory, two = float(of[-1]["peak_gb"]), of[-1]["efficiency"]
        span = f"{of[0]['rows']} to {of[-1]['rows']}"
        print_cells(f"{name}, {what}", span, f"{first:.3g}", f"{last:.3g}", power, f"{memory:.1f}",
                    f"{float(two):.2f}" if two else "")  # fmt: skip
    print_cells("", "rows of a call", "kernels", "kB/row", "kflop/row", "1 H100", "waits for",
                "8 of a node", "800")  # fmt: skip
    for (name, what), of in runs.items():
        if len(of) == 1:
            continue
        default = config(name)["data"]["batch_size" if what == "train" else "predict_batch_size"]
        for n in sorted((default, float(of[-1]["rows"]))):
            counts, (seconds, worst) = counted(of, n), h100(of, n)
            sent = float(of[-1]["reduced_bytes"] or 0)  # each GPU has n rows in a step
            wait = [MEETING + 2 * sent / x if sent else 0.0 for x in (NVLINK, INFINIBAND)]
            calls = MANY / n
            times = (calls * seconds, *(calls * (seconds + w) / k
                                        for w, k in zip(wait, (8, 800), strict=True)))  # fmt: skip
            one, node, many = map(duration, times)
            print_cells(f"{name}, {what}", f"{n:,.0f}", f"{counts['kernels']:,.0f}",
                        f"{counts['bytes'] / n / 1e3:.3g}", f"{counts['flop'] / n / 1e3:.3g}",
                        one, worst, node, many)  # fmt: skip
    for row in rows:
        if row["component"] == "files":
            print(f"files, {row['what']}: {float(row['rows']) / float(row['seconds']):.2g} per s")


def print_cells(*cells: str) -> None:
    """A row of a table; one whose first cell is empty is the head of a new one."""
    if not cells[0]:
        print()
    print(f"| {' | '.join(cells)} |")
    if not cells[0]:
        print("|" + "---|" * len(cells))


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def draw(rows: list[Row]) -> None:
    from orrery.figures import style

    @style.figure
    def cost() -> "Figure":
        """CPU time per row of a training step and of predictions, by the number of rows."""
        fig, axes = style.new(2, 1, sharey=True)
        colour = style.colours(COMPONENTS)
        for axis, what in zip(axes[0], ("train", "predict"), strict=True):
            for name in COMPONENTS:
                of = [r for r in rows if (r["component"], r["what"]) == (name, what)]
                n, s = (np.array([float(r[key]) for r in of]) for key in ("rows", "seconds"))
                axis.loglog(n, 1e6 * s / n, "o-", color=colour[name], label=style.label(name))
            axis.set(xlabel=f"rows of a call: {what}")
        axes[0, 0].set(ylabel="microseconds of CPU per row")
        axes[0, 1].legend(fontsize=11, ncols=2)
        return fig

    style.save(cost(), FIGURE)


if __name__ == "__main__":
    main()
