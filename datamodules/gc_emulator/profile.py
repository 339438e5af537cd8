"""Binned profiles of a cluster, for inference."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from astropy import units as u

from orrery.datamodules.base import CatalogueData
from orrery.datamodules.values import refuse
from orrery.physics.clusters.cluster_profiles import UNITS, Profile, observed, projected, radius
from orrery.physics.clusters.lowered_isothermal import solve
from orrery.tables import sha256

# Groups of GCfit's files that hold profiles, and which of their variables is of which kind
GROUPS = {
    "number_density": {"Σ": "density"},
    "velocity_dispersion": {"σ": "los"},
    "proper_motion": {"PM_R": "radial", "PM_T": "tangential", "PM_tot": "total"},
}
SHORT = {"radial": "_R", "tangential": "_T", "total": "_tot"}
LOOKALIKES = str.maketrans("∆∑", "ΔΣ")  # mathematical signs that are no Greek letters
RELATIVE_DISTANCE_ERROR = 0.02  # where a file holds a distance without its error
TRUTH = ("W0", "g", "log10_mass", "log10_rh", "distance")

Columns = Mapping[str, tuple[np.ndarray, str | None]]  # values and unit


class GCProfile(CatalogueData):
    """Number density and velocity dispersions in bins of radius, from a file as GCfit's are.

    Such an HDF5 file has groups ``number_density``, ``velocity_dispersion`` and ``proper_motion``,
    each a data set or a folder of data sets: radii ``r``, values and their errors ``Δ<value>``, or
    ``Δ<value>,up`` and ``Δ<value>,down``, with their units in the attribute ``unit``; a constant
    ``background`` is an attribute of a number density. ``without`` names data sets to leave out.

    ``distance`` and ``distance_error``, kpc, are a normal prior. null: the file's distance, and 2%
    of it. Without ``path``: a mock of a cluster of parameters ``truth`` (W0, g, log10 of M in Msun,
    log10 of r_h in pc, distance in kpc), with which the posterior is compared.
    """

    product = "profiles"

    def __init__(
        self,
        distance: float | None = None,
        distance_error: float | None = None,
        without: Sequence[str] = (),
        truth: Mapping[str, float] | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**{**catalogue, "split": "all"})  # nothing is held out
        self.without = list(without)
        self.asked = (distance, distance_error)
        self.parameters = {k: float(v) for k, v in (truth or {}).items()}
        if self.path is None and set(self.parameters) != set(TRUTH):
            raise ValueError(
                f"data.truth of a mock names {', '.join(TRUTH)}; got {self.parameters}"
            )
        for name, value in (("distance", distance), ("distance_error", distance_error)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"data.{name} is {value}; expected kpc, a positive number")
        self._read_profiles: list[Profile] = []
        self._distance: float | None = None

    def profiles(self) -> list[Profile]:
        """All of them, in the units of `physics.clusters.cluster_profiles`."""
        if not self._read_profiles:
            self._read_profiles = self._mock() if self.path is None else self._from_file(self.path)
        return self._read_profiles

    def distance(self) -> tuple[float, float]:
        """Mean and standard deviation of the prior of the distance, kpc."""
        self.profiles()
        distance = self._distance if self.asked[0] is None else float(self.asked[0])
        if distance is None:
            raise ValueError(
                f"{self.label} has no distance, the attribute 'd' of its group 'initials', in kpc; "
                f"angles and proper motions need one: data.distance=<kpc> data.distance_error=<kpc>"
            )
        if self.asked[1] is not None:
            return distance, float(self.asked[1])
        error = RELATIVE_DISTANCE_ERROR * distance
        if self.path is not None:
            self.say(
                f"the error of the distance of {distance:g} kpc is not known: {error:.2g} kpc is "
                f"taken; data.distance_error=<kpc> sets it"
            )
        return distance, error

    def truth(self) -> dict[str, float]:
        return self.parameters if self.path is None else {}

    def provenance(self) -> dict[str, Any]:
        if self.path is None:
            return {"simulation": type(self).__name__, "seed": self.seed}
        points = sum(len(profile.r) for profile in self.profiles())
        return {"path": str(self.path), "sha256": sha256(self.path), "rows": points}

    # --- a file -------------------------------------------------------------------------------

    def _from_file(self, path: str) -> list[Profile]:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data.path={path}: there is no such file")
        found: list[Profile] = []
        try:
            with h5py.File(path, "r") as file:
                initials = file["initials"].attrs if "initials" in file else {}
                self._distance = _distance_of(initials.get("d", file.attrs.get("d")), path)
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
                f"one as GCfit's, such as NGC0104.hdf: copy it again"
            ) from error
        for name in self.without:
            if name not in (known := [dataset[0] for dataset in datasets]):
                raise ValueError(f"data.without: no data set '{name}' in {path}; it has {known}")
        if unused:
            self.say(f"not used of {path}: {', '.join(unused)}")
        for name, attributes, columns, kinds in datasets:
            if name not in self.without:
                found += self._profiles_of(f"{path}, {name}", name, attributes, columns, kinds)
        if not found:
            raise ValueError(
                f"{path} has no profiles to fit; expected one of the groups {', '.join(GROUPS)} "
                f"with radii 'r' and one of {', '.join(v for k in GROUPS.values() for v in k)}"
            )
        return found

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
            present.remove("PM_tot")  # it says nothing new
        if not present:
            raise ValueError(
                f"{label} has the variables {', '.join(columns)}; expected {', or '.join(kinds)}: "
                f"leave it out by data.without=[{name}]"
            )
        ignored = [v for v in columns if v.lstrip("Δ").split(",")[0] not in ("r", *kinds)]
        if ignored:
            self.say(f"not used of {label}: {', '.join(ignored)}")
        if "m" in attributes:
            self.say(f"{label} is of stars of one mass; a model of a single mass does not know it")
        mend = f"mend it, or leave it out by data.without=[{name}]"
        r = _checked(columns, "r", "arcmin", label, mend)
        refuse(r < 0, f"{label}/r", r, "is negative", "a radius", mend)
        for variable in present:
            kind = kinds[variable]
            unit = UNITS[kind]
            value = _checked(columns, variable, unit, label, mend, len(r))
            down, up = _errors(columns, variable, unit, label, mend, len(r), kind)
            if kind == "density":
                value = value - _background(attributes, columns[variable][1], label, mend)
            else:
                refuse(value < 0, f"{label}/{variable}", value, "is negative", "a dispersion", mend)
            arrays = (torch.from_numpy(x.copy()) for x in (r, value, down, up))
            yield Profile(re.sub(r"\W+", "_", name) + SHORT.get(kind, ""), kind, *arrays)

    # --- a mock -------------------------------------------------------------------------------

    def _mock(self) -> list[Profile]:
        """Counts to 4%, velocities to 2 to 4%; the distance as measured is off by its error."""
        W0, g, log_mass, log_rh, distance = (
            torch.tensor([self.parameters[name]], dtype=torch.float64) for name in TRUTH
        )
        generator = np.random.default_rng(self.seed)
        model, mass, rh = solve(W0, g), 10**log_mass, 10**log_rh
        arcmin = float(rh / radius(torch.ones(1), distance))  # of the half-mass radius
        edge = float(model.rt / model.rh)
        if self.asked[1] is None:
            error = RELATIVE_DISTANCE_ERROR * self.parameters["distance"]
        else:
            error = float(self.asked[1])
        self._distance = self.parameters["distance"] + error * float(generator.standard_normal())
        found = []
        for name, kind, n, outermost, relative in (
            ("number_density", "density", 50, 0.9, 0.04),
            ("velocity_dispersion_mock", "los", 25, 0.6, 0.03),
            ("proper_motion_mock_R", "radial", 20, 0.3, 0.02),
            ("proper_motion_mock_T", "tangential", 20, 0.3, 0.02),
        ):
            r = arcmin * np.geomspace(0.02, outermost * edge, n)
            at = torch.from_numpy(r)[None]
            seen = projected(model, mass, rh, radius(at, distance[:, None]))
            exact = observed(kind, seen, distance[:, None])[0].numpy()
            if kind == "density":  # 0.3 stars per Msun that are bright enough
                exact = exact * 0.3 * float(radius(torch.ones(1), distance)) ** 2
            sigma = relative * exact
            value = exact + sigma * generator.standard_normal(n)
            arrays = (torch.from_numpy(x) for x in (r, value, sigma, sigma))
            found.append(Profile(name, kind, *arrays))
        return found


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
    """The group itself if it has variables, and every group below that has some."""
    found: list[h5py.Group] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and _columns(node):
            found.append(node)

    if isinstance(group, h5py.Group):
        visit("", group)
        group.visititems(visit)
    return found


def _columns(group: h5py.Group) -> dict[str, tuple[np.ndarray, str | None]]:
    """The variables of a group by name: values and unit."""
    found = {}
    for name, node in group.items():
        if isinstance(node, h5py.Dataset):
            unit = node.attrs.get("unit")
            unit = unit.decode() if isinstance(unit, bytes) else unit
            found[name.translate(LOOKALIKES)] = (np.asarray(node[()]), unit)
    return found


def _checked(
    columns: Columns, name: str, unit: str, label: str, mend: str, n: int | None = None
) -> np.ndarray:
    """A variable in ``unit``, finite, one-dimensional and of ``n`` points."""
    if name not in columns:
        raise ValueError(f"{label} has no '{name}'; it has {', '.join(columns)}: {mend}")
    raw, given = columns[name]
    if raw.ndim != 1 or raw.dtype.kind not in "fiu" or not raw.size or (n and len(raw) != n):
        raise ValueError(
            f"{label}/{name} is of shape {raw.shape} and type {raw.dtype}; expected numbers, as "
            f"many as there are radii{f', {n}' if n else ''}: {mend}"
        )
    values = raw.astype(float) * _factor(given, unit, f"{label}/{name}", mend)
    refuse(~np.isfinite(values), f"{label}/{name}", values, "is no number", "finite values", mend)
    return values


def _factor(given: str | None, unit: str, label: str, mend: str) -> float:
    """What a value in the unit ``given`` is multiplied with to be in ``unit``."""
    if given is None:
        raise ValueError(f"{label} has no attribute 'unit'; expected such as '{unit}': {mend}")
    try:
        return float(u.Unit(str(given)).to(unit))
    except (ValueError, TypeError) as error:  # not a unit, or of something else
        raise ValueError(
            f"{label} is in '{given}', which cannot be converted to '{unit}': {mend}"
        ) from error


def _errors(
    columns: Columns, name: str, unit: str, label: str, mend: str, n: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Errors downwards and upwards."""
    names = [f"Δ{name}"] if f"Δ{name}" in columns else [f"Δ{name},down", f"Δ{name},up"]
    if names[-1] not in columns:
        raise ValueError(
            f"{label} has no errors of {name}: expected 'Δ{name}', or 'Δ{name},up' and "
            f"'Δ{name},down', and it has {', '.join(columns)}: {mend}"
        )
    found = [_checked(columns, error, unit, label, mend, n) for error in names]
    for error, values in zip(names, found, strict=True):
        column = f"{label}/{error}"
        refuse(values < 0, column, values, "is negative", "errors above 0", mend)
        if kind != "density":  # counts have a free error besides
            refuse(values == 0, column, values, "would weigh infinitely", "errors above 0", mend)
    return found[0], found[-1]


def _background(attributes: Mapping[str, Any], unit: str | None, label: str, mend: str) -> float:
    """Of a number density, 1/arcmin2; the attribute is in the unit of the values."""
    value = float(np.asarray(attributes.get("background", 0.0)).item())
    if not np.isfinite(value):
        raise ValueError(f"{label}: its background is {value}; expected a number: {mend}")
    return value * _factor(unit, UNITS["density"], label, mend)
