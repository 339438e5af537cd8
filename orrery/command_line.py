"""The command line: users' errors as messages, near matches of choices, precision.

Light to import: `train.py --help` must not wait for torch.
"""

import contextlib
import functools
import glob
import itertools
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).parent / "configs"
OPTIONS_OF_HYDRA = (
    "--cfg", "--info", "--package", "--config-path", "--config-name", "--config-dir",
    "--shell-completion", "--experimental-rerun",
)  # fmt: skip


def user_errors(entry_point: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap an entry point: a user's mistake is a message and a non-zero exit, not a traceback."""

    @functools.wraps(entry_point)
    def wrapped(config: Any) -> Any:
        try:
            with stopped_by_signals():
                result = entry_point(config)
            shut_down_process_group()
            return result
        except Stopped as stop:
            if not int(os.environ.get("LOCAL_RANK", 0)):  # the other processes stop without a word
                print(f"\n{stop}: {what_is_saved(config)}", file=sys.stderr)
            raise SystemExit(128 + stop.number) from None
        except Exception as error:
            mistake = isinstance(error, ValueError | OSError)
            # of the trainer's settings: no such accelerator, precision...
            mistake |= type(error).__name__ in (
                "MisconfigurationException",
                "InstantiationException",
            )
            if not mistake or os.environ.get("HYDRA_FULL_ERROR"):
                raise
            if _sweeps():
                raise  # Hydra continues with the next run
            _refuse(f"{error}\n(HYDRA_FULL_ERROR=1 shows where)")

    return wrapped


class Stopped(BaseException):
    """SIGINT (Ctrl-C) or SIGTERM (Slurm's scancel) was received.

    Not an `Exception`, so that no ``except Exception`` catches it, and not a ``KeyboardInterrupt``,
    on which Lightning exits without a message.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Context in which SIGINT and SIGTERM raise `Stopped`; a second signal kills the process.

    Handlers that a launcher has installed (submitit, to requeue a job) are left in place.
    """
    process = os.getpid()
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # a worker that loads data
            os._exit(128 + number)
        for one, handler in before.items():
            signal.signal(one, handler)
        raise Stopped(number)

    stop.stops = True  # type: ignore[attr-defined]  # for `tracking.StopTogether`
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def what_is_saved(config: DictConfig) -> str:
    """Message for a user who has stopped a run: what is saved, and the command that resumes it."""
    if "run_dir" not in config:  # export
        return "no folder was written; start the same command again"
    run_dir = Path(config.run_dir)
    if "init_from" not in config:  # evaluate.py
        if (run_dir / "chains.pt").exists():
            return (
                f"the state of the chains is saved; the same command with "
                f"hydra.run.dir={run_dir} resumes them"
            )
        return "no file was written, and an older one is unchanged; start the same command again"
    if config.checkpoint:  # it was resumed
        run_dir = Path(config.checkpoint).parent
    last = run_dir / "last.ckpt"
    if not last.exists():
        return "no epoch was complete, so that nothing is saved; start the same command again"
    component = HydraConfig.get().runtime.choices.get("model")
    script = Path(sys.argv[0])
    is_installed = script.resolve().parent == Path(__file__).resolve().parent
    words = ["-m", "orrery", script.stem] if is_installed else [str(script)]
    words = ["python", *words, f"model={component}", f"checkpoint={last}"]
    return f"{last} holds the last complete epoch; resume by\n{shlex.join(words)}"


class RefusesUnwritable(Callback):
    """Hydra callback that refuses a run folder which cannot be written to."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config)  # on which the folder's name rests
        _refuse_unwritable(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _refuse_unwritable(Path(config.hydra.sweep.dir))


def _refuse_unwritable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _refuse(
            f"nothing can be written to the run folder {folder} ({error.strerror}); name another "
            f"by hydra.run.dir=<folder>"
        )


def _refuse(text: str) -> NoReturn:
    print(f"\nerror: {text}", file=sys.stderr)
    raise SystemExit(2)


def _sweeps() -> bool:
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def shut_down_process_group() -> None:
    """Before exiting: a rank that exits during a collective aborts the others."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def allow_unlisted_keys(*groups: str) -> None:
    """Let the command line set keys of these config sections that their YAML does not list.

    What needs quotes in Hydra's grammar, which a shell takes away, is given them: a column pattern
    such as MAG_{band}, and a condition on rows such as 'redshift > 0'.
    """
    pattern = rf"^(?=({'|'.join(groups)})\.)"
    words = [re.sub(pattern, "++", word) for word in sys.argv[1:]]
    words = [re.sub(r"^([\w.+]+)=([^'\"]*\{band\}[^'\"]*)$", r"\1='\2'", w) for w in words]
    sys.argv[1:] = [_with_quotes(word) for word in words]


def _with_quotes(word: str) -> str:
    """A condition on rows, ``data.train_where=z > 0``, in quotes if it has none."""
    match = re.fullmatch(r"(\+*data\.(?:train_where|cuts\.\w+))=(.*[\s<>=!|].*)", word)
    quoted = r"('[^']*'|\"[^\"]*\")"
    if not match or re.fullmatch(rf"{quoted}(,{quoted})*", match[2]):
        return word
    setting, condition = match.groups()
    return f'{setting}="{condition}"' if "'" in condition else f"{setting}='{condition}'"


def typed(section: str) -> set[str]:
    """The settings of a config section that the command line itself states."""
    words = [word.lstrip("+~") for word in HydraConfig.get().overrides.task]
    return {
        w[len(section) + 1 :].split("=")[0].split(".")[0]
        for w in words
        if w.startswith(f"{section}.")
    }


def choices(group: str) -> list[str]:
    """The options of a config group; names that begin with an underscore are inherited only."""
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def listed_choices() -> str:
    """Each config group with its options, for ``--help``."""
    groups = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
    return "\n".join(f"{g}: {', '.join(choices(g))}" for g in groups if choices(g))


OmegaConf.register_new_resolver("choices", listed_choices, replace=True)


def refuse_unknown_choices() -> None:
    """Raise for ``model=zephir`` and propose ``zephyr``: Hydra lists the choices only.

    Where nothing is near, and for groups that are not ours, the word is left to Hydra. Words that
    are no settings are refused, such as ``zephyr`` and ``--model=zephyr``.
    """
    for before, word in itertools.pairwise(sys.argv):
        key = word.partition("=")[0]
        if key.startswith("--") and "=" in word and key not in OPTIONS_OF_HYDRA:
            _refuse(f"'{word}': a setting has no dashes: {word.lstrip('-')}")
        if "=" not in word and not word.startswith(("-", "~")) and not before.startswith("-"):
            example = word if word in choices("model") else "zephyr"
            _refuse(f"'{word}' is no setting, which are <name>=<value>, such as model={example}")
        group, _, names = word.lstrip("+").partition("=")
        known = choices(group)
        for name in names.split(","):  # several in a sweep
            near = get_close_matches(name, known)
            if near and name not in known:
                _refuse(
                    f"there is no {group}={name}; near: {', '.join(near)}; "
                    f"there are {', '.join(known)}"
                )


def refuse_missing_file(config: DictConfig) -> None:
    """Raise ``FileNotFoundError`` for a missing catalogue, before PyTorch is imported (seconds).

    Patterns of files are checked where they are opened.
    """
    path = OmegaConf.select(config, "data.path", throw_on_missing=False)
    if not isinstance(path, str) or glob.has_magic(path) or os.path.exists(path):
        return
    shipped = CONFIGS.parent / path
    hint = f"; one of this name is shipped: data.path={shipped}" if shipped.is_file() else ""
    raise FileNotFoundError(f"{path}: there is no such file (it came from data.path){hint}")


def run(main: Callable[[], Any]) -> None:
    """Run an entry point; add near matches to Hydra's error for an unknown setting."""
    try:
        main()
    except SystemExit as stop:
        if stop.code == 1:
            _name_near_settings()
        raise


def _name_near_settings() -> None:
    chosen = [word for word in sys.argv[1:] if choices(word.partition("=")[0])]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = OmegaConf.to_container(compose(Path(sys.argv[0]).stem, chosen))
    except HydraException:  # which it has said
        return
    known = list(_names_of_settings(config))
    for word in sys.argv[1:]:
        key, is_setting, _ = word.partition("=")
        near = get_close_matches(key, known)
        is_ours = is_setting and not key.startswith(("hydra.", "+"))  # + is for what Hydra lacks
        if is_ours and near and key not in known and word not in chosen:
            print(f"\nerror: no setting '{key}'; near: {', '.join(near)}", file=sys.stderr)


def _names_of_settings(config: Any, prefix: str = "") -> Iterator[str]:
    """``data.columns.redshift``, and the sections that it is in."""
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _names_of_settings(value, f"{prefix}{name}.")


def refuse_sweep_of_ddp(config: DictConfig) -> None:
    """Raise for a sweep (-m) under ddp, whose other processes would each start the sweep again."""
    hydra, trainer = HydraConfig.get(), config.trainer
    many = trainer.get("strategy") == "ddp" or trainer.get("devices", 1) not in (1, "1")
    if _sweeps() and many and "submitit" not in hydra.launcher._target_:
        _refuse(
            "a sweep (-m) of runs of several processes would start the whole sweep once per "
            "process; add hydra/launcher=submitit_slurm, or sweep with trainer.devices=1"
        )


def set_precision(model: Any, precision: str) -> None:
    """Raise for a precision that the component does not allow; make weights float64 if asked."""
    if precision not in model.fit.precisions:
        raise ValueError(
            f"trainer.precision={precision} is not safe for this component; it allows "
            f"{', '.join(model.fit.precisions)}"
        )
    if precision == "64-true":
        model.double()  # now: a resumed run is loaded before Lightning does so


def silence_lightning() -> None:
    """Silence Lightning's messages, advertisements and warnings that do not concern the user."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    for known in (
        "Checkpoint directory .* exists",
        ".*LeafSpec",
        "The number of training batches",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", known)
    with_source_line = warnings.formatwarning

    def plain(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        """A warning without the line of our code that gave it."""
        if category is UserWarning:
            return f"warning: {message}\n"
        return with_source_line(message, category, filename, lineno, line)

    warnings.formatwarning = plain
