"""The network of a component in files for other programs: ONNX, or a program of torch.export.

In the same folder is ``schema.json``: name, unit, shape, meaning and range of each input and
output.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from orrery.checkpoint import name_of
from orrery.exported_files import NETWORKS
from orrery.models.base import Component, Exported, ExportsNetwork, Input, Output

OPSET = 20  # of ONNX


def write_network(model: Component, format: str, folder: Path) -> None:
    """Write the network of ``model`` and its schema into ``folder``, "onnx" or "torch_export".

    Raises ``ValueError`` for a component that has no such network.
    """
    exported = network_of(model, format)
    if format == "onnx":
        _refuse_without_onnx()
    write_program(traced(exported), exported, format, folder)
    record = model.record
    schema = {
        "component": name_of(model),
        "network": NETWORKS[format],
        "orrery": record["versions"]["orrery"],
        "data": {k: v for k, v in record["data"].items() if k != "path"},
        **schema_of(exported),
    }
    text = json.dumps(schema, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "schema.json").write_text(text + "\n", encoding="utf-8")


def network_of(model: Component, format: str) -> Exported:
    """The network of a component; ``ValueError`` if it has none that ``format`` holds."""
    component = name_of(model)
    if not isinstance(model, ExportsNetwork):
        raise ValueError(
            f"{component} has no network to export as {format}: it predicts by fits or searches "
            f"for each object, or by another library, which no fixed graph of operations holds; "
            f"docs/export.md says more, and format=safetensors writes every component"
        )
    exported = model.exported()
    if format == "onnx" and exported.without_onnx:
        raise ValueError(
            f"{component} is not exported as onnx: {exported.without_onnx}; "
            f"format=torch_export writes its network"
        )
    return exported


def write_program(
    program: torch.export.ExportedProgram, exported: Exported, format: str, folder: Path
) -> None:
    """Write `traced` operations into ``folder``."""
    path = folder / NETWORKS[format]
    if format == "onnx":
        _write_onnx(program, exported, path)
    else:
        torch.export.save(program, str(path))


def _refuse_without_onnx() -> None:
    try:
        for name in ("onnx", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise ValueError(
            f"format=onnx needs packages of the extra `export` ({error}): "
            f"python -m pip install 'orrery[export]', in a clone -e '.[export]'"
        ) from error


def _write_onnx(program: torch.export.ExportedProgram, exported: Exported, path: Path) -> None:
    """Not by the exporter's own optimiser: in its rewriting constants below 1e-8 are zero."""
    from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    with _quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(exported.inputs),
            output_names=list(exported.outputs),
            opset_version=OPSET,
            optimize=False,
        )
        assert written is not None
        for step in (InlinePass(), fold_constants, RemoveUnusedNodesPass()):
            step(written.model)
        written.save(str(path), external_data=False)


def traced(exported: Exported) -> torch.export.ExportedProgram:
    """The operations of a network, for any number of rows."""
    module = _Positional(exported.module).eval().requires_grad_(False)
    rows = torch.export.Dim("rows", min=1)
    examples = tuple(each.example for each in exported.inputs.values())
    shapes = (tuple({0: rows} for _ in examples),)  # one argument, ``*inputs``
    with torch.no_grad(), _quiet():
        module(*examples)  # what is computed once and kept, is so outside the trace
        return torch.export.export(module, examples, dynamic_shapes=shapes)


class _Positional(torch.nn.Module):
    """A module whose arguments are positional, however they are declared."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.network(*inputs)


def schema_of(exported: Exported) -> dict[str, Any]:
    """What ``schema.json`` says of inputs and outputs."""
    module = exported.module
    with torch.no_grad():
        values = module(*(each.example for each in exported.inputs.values()))
    inputs = [
        {**_described(name, each, each.example), "low": _plain(each.low), "high": _plain(each.high)}
        for name, each in exported.inputs.items()
    ]
    outputs = [
        _described(name, output, value)
        for (name, output), value in zip(exported.outputs.items(), values, strict=True)
    ]
    axes = {
        name: along.tolist() if isinstance(along, torch.Tensor) else list(along)
        for name, along in exported.axes.items()
    }
    return {
        "inputs": inputs, "outputs": outputs, "axes": axes, "remarks": list(exported.remarks)
    }  # fmt: skip


def _described(name: str, each: Input | Output, value: torch.Tensor) -> dict[str, Any]:
    text = each.text if isinstance(each, Output) else each.description
    return {
        "name": name,
        "unit": each.unit,
        "meaning": text,
        "type": str(value.dtype).removeprefix("torch."),
        "shape": ["rows", *value.shape[1:]],
        "axes": ["rows", *each.axes],
    }


def _plain(limit: Any) -> Any:
    return list(limit) if limit is not None and not isinstance(limit, float | int) else limit


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves."""
    level = logging.getLogger("torch").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch").setLevel(level)
