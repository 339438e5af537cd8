"""`zephyr` inside RAIL, the pipelines of Rubin's DESC: an informer and an estimator of RAIL 2.

Needs ``pip install "orrery[rail]"``. In a pipeline's YAML the stages are named with
``module_name: orrery.models.zephyr.rail``. Photometry, missing values and errors are those of
`datamodules.zephyr`: 99 is not detected (of RAIL's ``mag_limits``, unless the error column holds
the limit), NaN and -99 are not observed, and what is impossible is a ``ValueError``.
"""

import shlex
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import qp
from ceci.config import StageParameter
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from rail.core.common_params import SharedParams
from rail.core.data import ModelHandle, TableHandle
from rail.core.enums import DistributionType
from rail.estimation.estimator import CatEstimator
from rail.estimation.informer import CatInformer

from orrery.models.zephyr.outputs import SCORES
from orrery.tables import Writer

POINT_ESTIMATES = {"zmode": "z_mode", "zmean": "z_mean", "zmedian": "z_median"}  # RAIL's, ours
MUCH_OUTSIDE = 0.01  # of p(z)
HDF5 = (".hdf5", ".h5", ".hdf")  # files in which RAIL's hdf5_groupname names a group

PHOTOMETRY = {
    "bands": SharedParams.copy_param("bands"),
    "err_bands": SharedParams.copy_param("err_bands"),
    "mag_limits": SharedParams.copy_param("mag_limits"),
    "redshift_col": SharedParams.copy_param("redshift_col"),
    "band_names": StageParameter(
        list, list("ugrizy"), msg="names of the bands in the checkpoint, in the order of `bands`"
    ),
}


class CheckpointHandle(ModelHandle):
    """A model file that is a checkpoint of this zoo, read without unpickling any code.

    Its data are the checkpoint, a dict: plain values and tensors.
    """

    suffix = "ckpt"

    @classmethod
    def _open(cls, path: str, **_: Any) -> dict[str, Any]:
        return cls._read(path)

    @classmethod
    def _read(cls, path: str, **_: Any) -> dict[str, Any]:
        from orrery.checkpoint import read_checkpoint

        return read_checkpoint(path)

    @classmethod
    def _write(cls, data: dict[str, Any], path: str, **_: Any) -> None:
        from orrery.checkpoint import write_checkpoint

        write_checkpoint(data, path)


def data_settings(config: Any) -> dict[str, Any]:
    """``columns`` and ``limits`` of `datamodules.zephyr` from the parameters of a stage.

    Raises ``ValueError`` where ``bands``, ``err_bands`` and ``band_names`` differ in length.
    """
    names, mags, errors = config.band_names, config.bands, config.err_bands
    if not len(names) == len(mags) == len(errors):
        raise ValueError(
            f"bands has {len(mags)} columns, err_bands {len(errors)}, and band_names {len(names)} "
            f"names ({', '.join(names)}); expected one of each per band, in the same order"
        )
    columns = {"redshift": config.redshift_col}
    columns |= {f"mag_{name}": column for name, column in zip(names, mags, strict=True)}
    columns |= {f"mag_err_{name}": column for name, column in zip(names, errors, strict=True)}
    limits = {
        name: float(config.mag_limits[column])
        for name, column in zip(names, mags, strict=True)
        if column in config.mag_limits
    }
    return {"columns": columns, "limits": limits}


class RunByCeci:
    """A stage that ceci starts by its own name: ``python -m orrery`` has other entry points."""

    name: str

    @classmethod
    def generate_command(cls, *args: Any, **kwargs: Any) -> str:
        command: str = super().generate_command(*args, **kwargs)  # type: ignore[misc]
        return command.replace(f"-m orrery {cls.name}", f"-m ceci {cls.__module__}.{cls.name}")


class ZephyrInformer(RunByCeci, CatInformer):
    """Trains a zephyr on a table with redshifts; its model file is a checkpoint of this zoo.

    ``settings`` are words of ``train.py``, such as ``model.epochs=120`` or
    ``data.columns.label_error=z_err``. All rows are trained on, and nothing is held out for a test:
    the members of the ensemble hold out folds, on which they are calibrated.
    """

    name = "ZephyrInformer"
    entrypoint_function = "inform"
    config_options = CatInformer.config_options | PHOTOMETRY
    config_options |= {
        "seed": StageParameter(int, 0, msg="of the initial weights and the batches"),
        "settings": StageParameter(list, [], msg="words of train.py: ['model.epochs=120']"),
    }
    outputs = [("model", CheckpointHandle)]  # noqa: RUF012 (of ceci)

    def run(self) -> None:
        from orrery.checkpoint import read_checkpoint
        from orrery.train import train

        with TemporaryDirectory() as folder:
            words = list(self.config.settings)
            train(self._training_config(words, Path(folder)), words)
            checkpoint = read_checkpoint(Path(folder, "best.ckpt"))
        # of this process, which may do much else
        checkpoint["orrery"]["command"] = shlex.join(["train.py", "model=zephyr", *words])
        self.model = checkpoint
        self.add_data("model", checkpoint)

    def _training_config(self, words: list[str], folder: Path) -> DictConfig:
        from orrery.command_line import CONFIGS

        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", ["model=zephyr", f"run_dir={folder}", *words])
        with open_dict(config):
            own = {**data_settings(self.config), **self._training_file(folder)}
            config.data = OmegaConf.merge(config.data, own, {"test_fraction": 0})
            config.seed = self.config.seed
            config.logger = None
        return config

    def _training_file(self, folder: Path) -> dict[str, Any]:
        """The file of the input, or the table in memory as one."""
        handle, group = self.get_handle("input", allow_missing=True), self.config.hdf5_groupname
        if handle.is_written:
            path = Path(handle.path).resolve()
            return {"path": str(path), "group": group or None if path.suffix in HDF5 else None}
        table = self._convert_table_format(self.get_data("input"))
        table = table[group] if group else table
        path = folder / "table.parquet"
        with Writer(path) as writer:
            writer.write(vectorless(table))
        return {"path": str(path), "origin": f"a table in memory of the RAIL stage {self.name}"}

    def validate(self) -> None:
        """Raise ``KeyError`` if the input lacks a column."""
        wanted = [*self.config.bands, *self.config.err_bands, self.config.redshift_col]
        self._check_column_names(self.get_handle("input", allow_missing=True), wanted)


class ZephyrEstimator(RunByCeci, CatEstimator):
    """p(z) of a table by any zephyr: of `ZephyrInformer`, of ``train.py``, or a shipped name.

    ``model`` is a handle, the path of a checkpoint, or a name such as ``zephyr_cosmos``. The
    ensembles are qp's ``interp`` on ``nzbins`` redshifts from ``zmin`` to ``zmax``. ``ancil`` holds
    ``zmode``, ``zmean``, ``zmedian`` and every scalar column of `models.zephyr.outputs`, such as
    ``flags``.
    """

    name = "ZephyrEstimator"
    entrypoint_function = "estimate"
    config_options = CatEstimator.config_options | PHOTOMETRY
    inputs = [("model", CheckpointHandle), ("input", TableHandle)]  # noqa: RUF012 (of ceci)

    def open_model(self, **kwargs: Any) -> Any:
        from orrery.checkpoint import restore
        from orrery.pretrained import find

        model = kwargs.get("model")
        if isinstance(model, str | Path) and model != "None":
            kwargs["model"] = str(find(model))
        checkpoint = super().open_model(**kwargs)
        if checkpoint is None:
            raise ValueError(
                "ZephyrEstimator has no model; expected a handle of ZephyrInformer, the path of a "
                "checkpoint, or the name of a shipped one: model='zephyr'"
            )
        step = (self.config.zmax - self.config.zmin) / (self.config.nzbins - 1)
        z_grid = [self.config.zmin, self.config.zmax, step]
        self.zephyr = restore(checkpoint, {"z_grid": z_grid})
        return checkpoint

    def _process_chunk(self, start: int, end: int, data: Any, first: bool) -> None:
        table = vectorless(self._convert_table_format(data))
        try:
            predicted = self.zephyr.predict(table, **data_settings(self.config))
        except ValueError as error:
            raise ValueError(f"rows {start:,} to {end:,} of the input: {error}") from error
        z = predicted.meta["z_grid"].astype(float)
        density = np.asarray(predicted["pz"], float)
        outside = 1 - density.sum(1) * (z[1] - z[0])
        if cut := int((outside > MUCH_OUTSIDE).sum()):
            warnings.warn(
                f"{cut:,} of {len(outside):,} objects have more than {MUCH_OUTSIDE:.0%} of p(z) "
                f"outside zmin={self.config.zmin:g} to zmax={self.config.zmax:g}, which is cut "
                f"off; the model reaches {self.zephyr.z_max:g}: set zmax",
                stacklevel=2,
            )
        ensemble = qp.Ensemble(qp.interp, data={"xvals": z, "yvals": density})
        ancil = {
            name: np.asarray(predicted[name])
            for name in predicted.colnames
            if predicted[name].ndim == 1 and name not in SCORES
        }
        ensemble.set_ancil(ancil | {rail: ancil[ours] for rail, ours in POINT_ESTIMATES.items()})
        self._do_chunk_output(ensemble, start, end, first, data=data)

    def validate(self) -> None:
        """Raise ``KeyError`` if the input lacks a column."""
        wanted = [*self.config.bands, *self.config.err_bands]
        self._check_column_names(self.get_handle("input", allow_missing=True), wanted)

    @classmethod
    def default_distribution_type(cls) -> DistributionType:
        return DistributionType.posterior


def vectorless(table: Any) -> dict[str, np.ndarray]:
    """The columns of a table that hold one value per row."""
    columns = {name: np.asarray(values) for name, values in table.items()}
    return {name: values for name, values in columns.items() if values.ndim == 1}
