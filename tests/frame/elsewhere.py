"""A device that is not the CPU, for machines that have no other: it finds what would fail on a GPU.

Under `Elsewhere` tensors on the device "meta" have values, which are kept in CPU memory. An
operation on tensors of both devices raises, as it does on a GPU, and so do random numbers there
from a generator of the CPU. Operations for which a GPU's host waits are listed in ``waits``.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import orrery

DEVICE = torch.device("meta")
PACKAGE = str(Path(orrery.__file__).parent)
aten = torch.ops.aten
# of which a result, or its shape, is known to the host only when the device has computed it
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.repeat_interleave,
    aten._linalg_check_errors,
}  # fmt: skip
COPIES = {aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class There(Tensor):
    """A tensor on `DEVICE`; ``values``, on the CPU, are its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise RuntimeError("tensors of Elsewhere exist within it only")


class Elsewhere(TorchDispatchMode):
    """``waits``: the operations that a GPU's host would wait for, each with our line."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.entered = ExitStack()

    def __enter__(self) -> Any:
        self.entered.enter_context(_Constants())
        self.entered.enter_context(patch("torch.autocast", _autocast))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.entered.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, There)]
        here = [x for x in tensors if x.ndim and not isinstance(x, There)]
        if any(x.device == DEVICE for x in tensors if not isinstance(x, There)):
            raise RuntimeError(f"{name}: a tensor of {DEVICE} without values, of {_our_line()}")
        target = kwargs.get("device")
        is_there = bool(there) if target is None else torch.device(target) == DEVICE
        if name in COPIES:
            source = args[1] if name is aten.copy_ else args[0]
            if name is aten.copy_:
                is_there = isinstance(args[0], There)
            if isinstance(source, There) != is_there:
                self._wait(name)
        elif there and here and name in INDEXING and isinstance(args[0], There):
            self._wait(f"{name} by an index of the CPU")
        elif there and here:
            raise RuntimeError(
                f"{name}: tensors of two devices, of shapes {[tuple(x.shape) for x in there]} and, "
                f"on the CPU, {[tuple(x.shape) for x in here]}, at {_our_line()}"
            )
        if is_there and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: a generator of the CPU, at {_our_line()}")
        if there and (name in WAITING or (name in INDEXING and _waits_for_mask(*args))):
            self._wait(name)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        values = tree_map_only(There, lambda x: x.values, (args, kwargs))
        result = func(*values[0], **values[1])
        if func._schema.is_mutable and result is not None:
            return _changed(func, args, kwargs)
        return tree_map_only(Tensor, There, result) if is_there else result

    def _wait(self, what: Any) -> None:
        self.waits.append(f"{what} at {_our_line()}")


class _Constants(TorchFunctionMode):
    """Numbers of Python's, as tensors of `DEVICE` or indices, are made on the CPU and copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(args[0].device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i).to(DEVICE) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        if func is Tensor.tolist:
            args = (args[0].cpu(),)
        return func(*args, **kwargs)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """That of the CPU, which computes the values."""
    here = "cpu" if device_type == DEVICE.type else device_type
    return torch.amp.autocast_mode.autocast(here, *args, **kwargs)


def _waits_for_mask(_: Tensor, indices: Any, values: Tensor | None = None, *__: Any) -> bool:
    """Whether indices are masks, whose number of rows is not known; a number fills them at once."""
    filled = values is not None and values.ndim == 0 and not isinstance(values, There)
    return not filled and any(x is not None and x.dtype == torch.bool for x in indices)


def _changed(func: Any, args: Any, kwargs: Any) -> Any:
    """The arguments that an operation has changed in place: its result."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    changed = [given[name] for name in written if name in given]
    return changed[0] if len(changed) == 1 else tuple(changed)


def _our_line() -> str:
    """The innermost line of the zoo that is being executed."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "the test"
    return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
