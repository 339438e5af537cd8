"""Binned profiles of a cluster, for inference."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from astropy import units as u

from orrery.datamodules.dataset import Dataset
from orrery.datamodules.gc_emulator.profile_table import is_table, profiles_of_tables
from orrery.datamodules.values import refuse
from orrery.physics.clusters.cluster_profiles import (
    UNITS,
    Profile,
    model_profile,
    project_physical,
    projected_radius,
)
from orrery.physics.clusters.lowered_isothermal import solve
from orrery.physics.clusters.observations import BinnedProfiles

# Groups of GCfit's files that hold profiles: variable -> kind of profile
GROUPS = {
    "number_density": {"Σ": "density"},
    "velocity_dispersion": {"σ": "los"},
    "proper_motion": {"PM_R": "radial", "PM_T": "tangential", "PM_tot": "total"},
}
NAME_SUFFIXES = {"radial": "_R", "tangential": "_T", "total": "_tot"}
GREEK_LETTERS = str.maketrans("∆∑", "ΔΣ")  # mathematical signs in place of Greek letters
RELATIVE_DISTANCE_ERROR = 0.02  # where a file holds a distance without its error
TRUTH_NAMES = ("W0", "g", "log10_mass", "log10_rh", "distance")

Columns = Mapping[str, tuple[np.ndarray, str | None]]  # values and unit


class GCProfile(Dataset):
    """Number density and velocity dispersions in bins of radius, from tables or GCfit's file.

    Tables, of any format but HDF5, are described in `profile_table`. GCfit's HDF5 file has groups
    ``number_density``, ``velocity_dispersion`` and ``proper_motion``, each a data set or a folder
    of data sets: radii ``r``, values and their errors ``Δ<value>``, or ``Δ<value>,up`` and
    ``Δ<value>,down``, with their units in the attribute ``unit``; a constant
    ``background`` is an attribute of a number density. Without ``path``: a mock.

    Settings:
        distance, distance_error: kpc, a normal prior; null: the file's distance, and 2% of it.
        columns, units: of tables, by role: the name of its column, and its unit if it has none.
        exclude: names of data sets of an HDF5 file that are not used.
        truth: parameters of the mock: W0, g, log10_mass (Msun), log10_rh (pc), distance (kpc).
    """

    def __init__(
        self,
        path: str | None = None,
        distance: float | None = None,
        distance_error: float | None = None,
        columns: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        truth: Mapping[str, float] | None = None,
        seed: int = 0,
        origin: str = "",
    ) -> None:
        super().__init__(path, seed, origin)
        self.exclude = list(exclude)
        self.columns = {role: str(name) for role, name in (columns or {}).items() if name}
        self.units = {role: str(unit) for role, unit in (units or {}).items() if unit}
        if self.path is not None and is_table(self.path) and self.exclude:
            raise ValueError("data.exclude is for HDF5 files; of a table, leave the column out")
        self.distance, self.distance_error = distance, distance_error
        self.true_parameters = {k: float(v) for k, v in (truth or {}).items()}
        if self.path is None and set(self.true_parameters) != set(TRUTH_NAMES):
            raise ValueError(
                f"data.truth of a mock names {', '.join(TRUTH_NAMES)}; got {self.true_parameters}"
            )
        for name, value in (("distance", distance), ("distance_error", distance_error)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"data.{name} is {value}; expected kpc, a positive number")
        self._profiles: list[Profile] = []
        self._file_distance: float | None = None  # kpc, or that of the mock as measured

    def observations(self) -> BinnedProfiles:
        return BinnedProfiles(self.profiles(), self.distance_prior())

    def profiles(self) -> list[Profile]:
        """All profiles, in the units of `physics.clusters.cluster_profiles`."""
        if not self._profiles:
            self._profiles = self._mock() if self.path is None else self._from_file(self.path)
        return self._profiles

    def distance_prior(self) -> tuple[float, float]:
        """Mean and standard deviation, kpc."""
        self.profiles()
        distance = self._file_distance if self.distance is None else float(self.distance)
        if distance is None:
            raise ValueError(
                f"{self.label} has no distance (of an HDF5 file the attribute 'd' of its group "
                f"'initials', in kpc); angles and proper motions need one: data.distance=<kpc> "
                f"data.distance_error=<kpc>"
            )
        if self.distance_error is not None:
            return distance, float(self.distance_error)
        error = RELATIVE_DISTANCE_ERROR * distance
        if self.path is not None:
            self.warn_once(
                f"the error of the distance of {distance:g} kpc is not known: {error:.2g} kpc is "
                f"assumed; data.distance_error=<kpc> sets it"
            )
        return distance, error

    def truth(self) -> dict[str, float]:
        return self.true_parameters if self.path is None else {}

    def provenance(self) -> dict[str, Any]:
        if self.path is None:
            return super().provenance()
        points = sum(len(profile.r) for profile in self.profiles())  # reads, or refuses, the file
        return {**super().provenance(), "rows": points}

    # --- a file -------------------------------------------------------------------------------

    def _from_file(self, path: str) -> list[Profile]:
        if is_table(path):
            remarks: list[str] = []
            profiles = profiles_of_tables(path, self.columns, self.units, remarks)
            for remark in remarks:
                self.warn_once(remark)
            return profiles
        if not Path(path).is_file():
            raise FileNotFoundError(f"data.path={path}: there is no such file")
        profiles = []
        try:
            with h5py.File(path, "r") as file:
                initials = file["initials"].attrs if "initials" in file else {}
                self._file_distance = _distance_of(initials.get("d", file.attrs.get("d")), path)
                unused = [name for name in file if name not in (*GROUPS, "initials")]
                datasets = [
                    (group.name.strip("/"), dict(group.attrs), _columns(group), kinds)
                    for name, kinds in GROUPS.items()
                    if name in file
                    for group in _datasets(file[name])
                ]
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(
                f"{path} is not an HDF5 file that can be read, or is cut off ({error}); expected "
                f"a file in GCfit's layout, such as NGC0104.hdf: copy it again"
            ) from error
        for name in self.exclude:
            if name not in (known := [dataset[0] for dataset in datasets]):
                raise ValueError(f"data.exclude: no data set '{name}' in {path}; it has {known}")
        if unused:
            self.warn_once(f"not used of {path}: {', '.join(unused)}")
        for name, attributes, columns, kinds in datasets:
            if name not in self.exclude:
                profiles += self._profiles_of(f"{path}, {name}", name, attributes, columns, kinds)
        if not profiles:
            raise ValueError(
                f"{path} has no profiles to fit; expected one of the groups {', '.join(GROUPS)} "
                f"with radii 'r' and one of {', '.join(v for k in GROUPS.values() for v in k)}"
            )
        return profiles

    def _profiles_of(
        self,
        label: str,
        name: str,
        attributes: Mapping[str, Any],
        columns: Columns,
        kinds: Mapping[str, str],
    ) -> Iterator[Profile]:
        """The profiles of a data set."""
        present = [variable for variable in kinds if variable in columns]
        if {"PM_R", "PM_T"} <= set(present) and "PM_tot" in present:
            present.remove("PM_tot")  # it is not independent of the two
        if not present:
            raise ValueError(
                f"{label} has the variables {', '.join(columns)}; expected {', or '.join(kinds)}: "
                f"leave it out by data.exclude=[{name}]"
            )
        ignored = [v for v in columns if v.lstrip("Δ").split(",")[0] not in ("r", *kinds)]
        if ignored:
            self.warn_once(f"not used of {label}: {', '.join(ignored)}")
        if "m" in attributes:
            self.warn_once(f"{label} is of stars of one mass; all stars of the model have the same")
        hint = f"correct it, or leave it out by data.exclude=[{name}]"
        r = _checked(columns, "r", "arcmin", label, hint)
        refuse(r < 0, f"{label}/r", r, "is negative", "a radius", hint)
        for variable in present:
            kind = kinds[variable]
            unit = UNITS[kind]
            value = _checked(columns, variable, unit, label, hint, len(r))
            down, up = _errors(columns, variable, unit, label, hint, len(r), kind)
            if kind == "density":
                value = value - _background(attributes, columns[variable][1], label, hint)
            else:
                refuse(value < 0, f"{label}/{variable}", value, "is negative", "a dispersion", hint)
            arrays = (torch.from_numpy(x.copy()) for x in (r, value, down, up))
            yield Profile(re.sub(r"\W+", "_", name) + NAME_SUFFIXES.get(kind, ""), kind, *arrays)

    # --- a mock -------------------------------------------------------------------------------

    def _mock(self) -> list[Profile]:
        """Counts with errors of 4%, dispersions of 2 to 3%; the distance has an error, too."""
        W0, g, log_mass, log_rh, distance = (
            torch.tensor([self.true_parameters[name]], dtype=torch.float64) for name in TRUTH_NAMES
        )
        generator = np.random.default_rng(self.seed)
        model, mass, rh = solve(W0, g), 10**log_mass, 10**log_rh
        rh_arcmin = float(rh / projected_radius(torch.ones(1), distance))
        rt_rh = float(model.rt / model.rh)
        if self.distance_error is None:
            error = RELATIVE_DISTANCE_ERROR * self.true_parameters["distance"]
        else:
            error = float(self.distance_error)
        self._file_distance = self.true_parameters["distance"] + error * float(
            generator.standard_normal()
        )
        profiles = []
        for name, kind, n, outermost, relative_error in (
            ("number_density", "density", 50, 0.9, 0.04),
            ("velocity_dispersion_mock", "los", 25, 0.6, 0.03),
            ("proper_motion_mock_R", "radial", 20, 0.3, 0.02),
            ("proper_motion_mock_T", "tangential", 20, 0.3, 0.02),
        ):
            r = rh_arcmin * np.geomspace(0.02, outermost * rt_rh, n)
            R = projected_radius(torch.from_numpy(r)[None], distance[:, None])
            projected = project_physical(model, mass, rh, R)
            exact = model_profile(kind, projected, distance[:, None])[0].numpy()
            if kind == "density":  # 0.3 stars per Msun that are bright enough
                exact = exact * 0.3 * float(projected_radius(torch.ones(1), distance)) ** 2
            sigma = relative_error * exact
            value = exact + sigma * generator.standard_normal(n)
            arrays = (torch.from_numpy(x) for x in (r, value, sigma, sigma))
            profiles.append(Profile(name, kind, *arrays))
        return profiles


def _distance_of(value: Any, path: str) -> float | None:
    """The distance that a file holds, kpc, or None."""
    if value is None:
        return None
    distance = float(np.asarray(value).item())
    if not 0 < distance < np.inf:
        raise ValueError(
            f"{path}: the distance, 'd' of the group 'initials', is {distance}; expected kpc: "
            f"data.distance=<kpc> data.distance_error=<kpc>"
        )
    return distance


def _datasets(group: Any) -> list[h5py.Group]:
    """The group itself and all groups below it, where they have variables."""
    groups: list[h5py.Group] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and _columns(node):
            groups.append(node)

    if isinstance(group, h5py.Group):
        visit("", group)
        group.visititems(visit)
    return groups


def _columns(group: h5py.Group) -> dict[str, tuple[np.ndarray, str | None]]:
    """The variables of a group by name: values and unit."""
    columns = {}
    for name, node in group.items():
        if isinstance(node, h5py.Dataset):
            unit = node.attrs.get("unit")
            unit = unit.decode() if isinstance(unit, bytes) else unit
            columns[name.translate(GREEK_LETTERS)] = (np.asarray(node[()]), unit)
    return columns


def _checked(
    columns: Columns, name: str, unit: str, label: str, hint: str, n: int | None = None
) -> np.ndarray:
    """A variable in ``unit``, finite, one-dimensional and of ``n`` points."""
    if name not in columns:
        raise ValueError(f"{label} has no '{name}'; it has {', '.join(columns)}: {hint}")
    raw, given = columns[name]
    if raw.ndim != 1 or raw.dtype.kind not in "fiu" or not raw.size or (n and len(raw) != n):
        raise ValueError(
            f"{label}/{name} is of shape {raw.shape} and type {raw.dtype}; expected numbers, as "
            f"many as there are radii{f', {n}' if n else ''}: {hint}"
        )
    values = raw.astype(float) * _factor(given, unit, f"{label}/{name}", hint)
    refuse(
        ~np.isfinite(values),
        f"{label}/{name}",
        values,
        "is not a finite number",
        "finite values",
        hint,
    )
    return values


def _factor(given: str | None, unit: str, label: str, hint: str) -> float:
    """Factor that converts the unit ``given`` to ``unit``."""
    if given is None:
        raise ValueError(f"{label} has no attribute 'unit'; expected such as '{unit}': {hint}")
    try:
        return float(u.Unit(str(given)).to(unit))
    except (ValueError, TypeError) as error:  # not a unit, or of something else
        raise ValueError(
            f"{label} is in '{given}', which cannot be converted to '{unit}': {hint}"
        ) from error


def _errors(
    columns: Columns, name: str, unit: str, label: str, hint: str, n: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Errors downwards and upwards."""
    names = [f"Δ{name}"] if f"Δ{name}" in columns else [f"Δ{name},down", f"Δ{name},up"]
    if names[-1] not in columns:
        raise ValueError(
            f"{label} has no errors of {name}: expected 'Δ{name}', or 'Δ{name},up' and "
            f"'Δ{name},down', and it has {', '.join(columns)}: {hint}"
        )
    errors = [_checked(columns, error, unit, label, hint, n) for error in names]
    for error, values in zip(names, errors, strict=True):
        column = f"{label}/{error}"
        refuse(values < 0, column, values, "is negative", "errors above 0", hint)
        if kind != "density":  # counts have an extra error, too
            refuse(
                values == 0, column, values, "would have infinite weight", "errors above 0", hint
            )
    return errors[0], errors[-1]


def _background(attributes: Mapping[str, Any], unit: str | None, label: str, hint: str) -> float:
    """Background of a number density, 1/arcmin2; the attribute is in the unit of the values."""
    value = float(np.asarray(attributes.get("background", 0.0)).item())
    if not np.isfinite(value):
        raise ValueError(f"{label}: its background is {value}; expected a number: {hint}")
    return value * _factor(unit, UNITS["density"], label, hint)
