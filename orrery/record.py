"""What a checkpoint says of its model, checked before anything is built from it.

A checkpoint is a file from elsewhere: its values may be of any type and size.
"""

import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# type of each entry of the record; "schema_version" was "format" in version 0.1
ENTRIES: dict[str, type] = {
    "config": dict,
    "data": dict,
    "found_out": dict,
    "versions": dict,
    "git_commit": str,
    "created": str,
    "command": str,
    "metrics": dict,
}
OF_DATA: dict[str, type] = {"path": str, "sha256": str, "rows": int, "simulation": str, "seed": int}
TRAINER = "lightning.Trainer"
LONGEST = 10_000  # entries of a list
LARGEST = 10**8  # whole-number setting of a model, where it is no seed
LARGEST_SEED = 2**64
# Building a model makes tensors of at most so many numbers: 43 per number in the checkpoint is the
# most of the pretrained ones (dust), and a constant for the smallest.
NUMBERS_PER_WEIGHT, NUMBERS = 100, 10**8
CALL = 1000  # numbers that a call of torch counts for at least: many small tensors take long too


def check_checkpoint(checkpoint: Mapping[str, Any], record: Any) -> None:
    """Raise ``ValueError`` if weights or record have an entry of a wrong type."""
    state = checkpoint.get("state_dict")
    _expect(isinstance(state, dict), "its 'state_dict' is no dict")
    for name, values in state.items():  # type: ignore[union-attr]
        plain = isinstance(values, Tensor) and values.layout == torch.strided
        plain = plain and values.device.type == "cpu" and not values.is_quantized
        _expect(isinstance(name, str) and plain, f"{name!r} of its 'state_dict' is no plain tensor")
    _expect(isinstance(record, dict), "it is no dict")
    for name, kind in ENTRIES.items():
        _expect(name in record, f"it has no '{name}'")
        _expect_type(name, record[name], kind)
    version = record.get("schema_version", record.get("format", 1))
    _expect(type(version) is int and version > 0, f"its schema_version is {version!r}")
    config = record["config"]
    for section in ("model", "data"):
        _expect(isinstance(config.get(section), dict), f"its config has no section '{section}'")
        target = config[section].get("_target_")
        _expect(isinstance(target, str), f"_target_ of '{section}' is {target!r}")
    trainer = config.get("trainer", {})  # which Hydra makes, of a class that it names
    _expect(isinstance(trainer, dict), "its config has no section 'trainer'")
    inner = [name for name, value in trainer.items() if "_target_" in str(value)]
    _expect(
        not inner and trainer.get("_target_", TRAINER) == TRAINER,
        f"its config asks for a trainer that is not {TRAINER}",
    )
    for name, value in record["versions"].items():
        _expect_type(f"versions.{name}", value, str)
    _expect("orrery" in record["versions"], "it has no 'versions.orrery'")
    for name, value in record["metrics"].items():
        _expect_type(f"metrics.{name}", value, Real)
    for name, kind in OF_DATA.items():
        if record["data"].get(name) is not None:
            _expect_type(f"data.{name}", record["data"][name], kind)
    _check_plain("record", record)


def check_weights(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for NaN where the newly made model has none, and infinite parameters.

    Among buffers NaN may mean that there is no value, and infinite ends an empty range.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name, made in model.state_dict().items():
        values = state.get(name)
        if values is None or bool(values.sum().isfinite()):  # the fast question
            continue
        infinite = name in parameters and bool(values.isinf().any())
        if infinite or (bool(values.isnan().any()) and not bool(made.isnan().any())):
            raise ValueError(
                f"its weights '{name}' are not finite; the fit diverged, or it is damaged"
            )


def check_settings(made: type, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a setting that the constructor does not have, or that is impossible.

    It is of another type, or a whole number below 1, or below 0 where ``may_be_zero`` of the class
    or of one of its bases names it.
    """
    known = settings_of(made)
    for name in settings:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 3) or sorted(known))
            raise ValueError(
                f"{made.__module__}.{made.__name__} has no setting '{name}'; near: {near}"
            )
    section = "model" if made.__module__.startswith("orrery.models.") else "data"
    declared = annotations(made)
    may_be_zero = {n for base in made.__mro__ for n in vars(base).get("may_be_zero", ())}
    for name, value in settings.items():
        if name not in declared:
            continue
        if not _fits(value, declared[name]):
            raise ValueError(
                f"{section}.{name} is {value!r:.80}; expected {_in_words(declared[name])}"
            )
        least = 0 if name in may_be_zero else 1
        if declared[name] in (int, int | None) and value is not None and value < least:
            raise ValueError(f"{section}.{name} is {value}; expected {least} or more")


def check_sizes(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a whole number that no model of the zoo could be built with."""
    for name, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > (
                LARGEST_SEED if name == "seed" else LARGEST
            ):
                raise ValueError(f"model.{name} is {value!r:.80}; at most {LARGEST:,} is possible")


def check_complete(made: type, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if an argument of the constructor is missing."""
    for name, parameter in inspect.signature(made).parameters.items():
        named = parameter.kind is not parameter.VAR_KEYWORD
        if named and parameter.default is parameter.empty and name not in settings:
            raise ValueError(f"{made.__module__}.{made.__name__} needs the setting '{name}'")


def settings_of(made: type) -> set[str]:
    """Constructor arguments of a component or data module, with those of its base classes."""
    return {
        name
        for base in made.__mro__
        for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
    } - {"self", "args", "kwargs"}


def defaults_of(made: type) -> dict[str, Any]:
    """The default of each of them that has one, of the class nearest to it."""
    return {
        name: parameter.default
        for base in reversed(made.__mro__)
        for name, parameter in inspect.signature(base.__init__).parameters.items()  # type: ignore[misc]
        if parameter.default is not parameter.empty
    }


def annotations(made: type) -> dict[str, Any]:
    """The declared types of the constructor's arguments, with those of its base classes."""
    declared: dict[str, Any] = {}
    for base in reversed(made.__mro__):
        if base.__module__.startswith("orrery.") and "__init__" in vars(base):
            declared |= typing.get_type_hints(base.__init__)  # type: ignore[misc]
    return declared


class LimitedSize(TorchFunctionMode):
    """A context in which a model is built that may not be much larger than its weights.

    Raises ``ValueError`` when torch has made many more numbers than ``state`` has.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        weights = sum(values.numel() for values in state.values())
        self.left = NUMBERS_PER_WEIGHT * weights + NUMBERS

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if all(isinstance(size, int) for size in args):  # torch.randn(members, n_in, n_out)
            self._refuse_above(math.prod(args))
        result = function(*args, **(kwargs or {}))
        made = result.numel() if isinstance(result, Tensor) else 0
        self._refuse_above(made)
        self.left -= max(made, CALL)
        return result

    def _refuse_above(self, numbers: int) -> None:
        if numbers > self.left:
            raise ValueError("its settings ask for a model that is much larger than its weights")


def _expect(met: bool, otherwise: str) -> None:
    if not met:
        raise ValueError(otherwise)


def _expect_type(name: str, value: Any, kind: Any) -> None:
    _expect(isinstance(value, kind), f"its '{name}' is {value!r:.80}; expected {_in_words(kind)}")


def _check_plain(name: str, value: Any) -> None:
    """Raise for what is not a plain value, a list that is too long, an interpolation."""
    if isinstance(value, dict | list | tuple):
        _expect(len(value) <= LONGEST, f"its '{name}' has {len(value):,} entries")
        keyed = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in keyed:
            _expect(isinstance(key, str | int), f"its '{name}' has the key {key!r:.80}")
            _check_plain(f"{name}.{key}", entry)
        return
    _expect(
        value is None or isinstance(value, str | int | float),
        f"its '{name}' is a {type(value).__name__}; expected a plain value",
    )
    _expect("${" not in str(value), f"its '{name}' holds an interpolation")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type. A number may stand for text: Hydra reads 1 as one."""
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, arguments[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        if isinstance(value, str):  # one name for a list of one
            return arguments == (str,)
        return isinstance(value, Sequence) and all(_fits(entry, arguments[0]) for entry in value)
    if kind is str:
        return isinstance(value, str | Real)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real)
    return not isinstance(kind, type) or isinstance(value, kind)


def _in_words(kind: Any) -> str:
    """``a list of text or nothing`` of ``Sequence[str] | None``."""
    words = {str: "text", int: "a whole number", float: "a number", Real: "a number"}
    words |= {bool: "true or false", dict: "a dict", types.NoneType: "nothing", Any: "anything"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is not None:
        outer = "a dict" if issubclass(origin, Mapping) else "a list"
        return f"{outer} of {_in_words(arguments[-1])}"
    return words.get(kind, str(kind))
