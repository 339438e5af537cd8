"""Stars with abundances: a table as papers and surveys publish them, or simulated galaxies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.abundances.cells import elements_of, refuse_confused_ratios, value_role
from orrery.datamodules.abundances.columns import ABOVE_ZERO, CAUSES, DECLARED
from orrery.datamodules.abundances.simulation import ELEMENTS, simulated_stars, true_density
from orrery.datamodules.abundances.tables import as_stars, canonical_columns, open_abundances
from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn
from orrery.datamodules.values import numbers, refuse
from orrery.physics.abundances.solar import known_scale, offset, solar
from orrery.physics.abundances.species import ELEMENTS as KNOWN_ELEMENTS
from orrery.physics.abundances.species import near_elements
from orrery.tables import Catalogue, read_table

TYPES = ("dwarf", "stream", "cluster", "halo")
FROM_IRON = "diron"  # the cause of correlated errors in [X/H] = [X/Fe] + [Fe/H]
LEAST_ERROR = 0.01  # dex: smaller ones of a measurement are raised to it


class AbundanceData(CatalogueData):
    """Abundances of k elements per star, with errors, limits and blanks.

    A batch holds ``value`` (batch, k), [X/H] in dex or a limit, NaN where there is none;
    ``variance`` (batch, k) of independent errors; ``responses`` (batch, k, causes), dex, to an
    error of one standard deviation of what causes correlated errors: of [Fe/H], in tables of
    [X/Fe], and of Teff, log g, v_t and [M/H], in tables that have responses to them; ``limit``
    (batch, k): 1 upper, -1 lower, 0 measured; ``type`` (batch,), the place in `TYPES`, -1 if
    unknown; ``true`` (batch, k), true [X/H], where it is known.

    Errors of a table contain what its responses explain; where responses say more than the error
    they are made smaller, for stellar parameters are correlated, and tables rarely say how.

    A limit of s sigma is a reading with an error of 1 / (s ln 10) dex.

    Args:
        elements: symbols; null: in training those with ``least_measured`` values.
        least_measured: measured values that an element must have in training to be learned.
        solar: scale of the file's [X/H] and [X/Fe], see `physics.abundances.solar`; null: not
            stated, abundances are taken as they are.
        solar_of_model: the scale that the model is in, found in training.
        limit_significance: sigma of the line, of limits of which the file does not say it.
        quality_flags: whether abundances are left out whose flag (MG_FE_FLAG of APOGEE, flag_Mg_fe
            of GALAH) is not 0.
        n_train: simulated stars to train on.
        n_test: simulated stars to test on.
        missing: share of simulated abundances that are not measured.
        limited: share of simulated abundances that are upper limits.
        catalogue: settings of `CatalogueData`.
    """

    declared: ClassVar = DECLARED
    decided_by_training: ClassVar = frozenset(("elements", "solar_of_model"))
    of_one_file: ClassVar = frozenset(("solar", "limit_significance", "quality_flags"))
    may_be_zero: ClassVar = CatalogueData.may_be_zero | {"least_measured"}

    def __init__(
        self,
        elements: Sequence[str] | None = None,
        least_measured: int = 20,
        solar: str | None = None,
        solar_of_model: str | None = None,
        limit_significance: float | None = None,
        quality_flags: bool = True,
        n_train: int = 4000,
        n_test: int = 2000,
        missing: float = 0.4,
        limited: float = 0.15,
        **catalogue: Any,
    ) -> None:
        self.elements = list(elements) if elements else []
        super().__init__(**catalogue)
        for element in self.elements:
            if element not in KNOWN_ELEMENTS:
                raise ValueError(
                    f"data.elements: '{element}' is no element{near_elements(element)}"
                )
        self.least_measured = least_measured
        for scale in (solar, solar_of_model):
            if scale is not None:
                known_scale(scale)
        self.solar, self.solar_of_model = solar, solar_of_model
        if limit_significance is not None and not 0 < limit_significance < 1000:
            raise ValueError(
                f"data.limit_significance is {limit_significance}; expected sigma, such as 3"
            )
        self.limit_significance = limit_significance
        self.quality_flags = quality_flags
        self.n_train, self.n_test = n_train, n_test
        for name, share in (("missing", missing), ("limited", limited)):
            if not 0 <= share < 1:
                raise ValueError(f"data.{name} is {share}; expected a share, 0 to 1")
        self.missing, self.limited = missing, limited

    # --- reading ------------------------------------------------------------------------------

    def open_path(self, path: str) -> Catalogue:
        catalogue, notes = open_abundances(
            path,
            self.group,
            self._given(),
            self.limit_significance,
            self.sentinels,
            self.quality_flags,
        )
        self._say(notes)
        if not self.keep:  # who the stars are, where no other column is asked for
            roles = canonical_columns(catalogue.names, self._given())
            self.keep = [roles[r] for r in ("name", "structure") if r in roles]
        return catalogue

    def open_table(self, table: Any) -> Catalogue:
        catalogue, notes = as_stars(
            read_table(table),
            self._given(),
            self.limit_significance,
            self.sentinels,
            self.quality_flags,
        )
        self._say(notes)
        return catalogue

    def _say(self, notes: Sequence[str]) -> None:
        for note in notes:
            self.print_once(f"{self.label}: {note}")

    def _given(self) -> dict[str, str]:
        return {role: str(column) for role, column in self.columns.items()}

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = canonical_columns(catalogue.names, self._given())
        elements = elements_of(names)
        if not elements:
            raise ValueError(
                f"{self.label} has no column of abundances; expected names such as [Mg/Fe], MgFe, "
                f"MG_FE or mg_h; name one: data.columns.mg_fe=<column>"
            )
        if self.elements and not set(elements) & set(self.elements):
            raise ValueError(
                f"{self.label} has abundances of {', '.join(elements)}, and none of the model's: "
                f"{', '.join(self.elements)}"
            )
        if training and not self.elements:
            self.elements = self._often_measured(catalogue, names)
        roles: dict[str, CatalogueColumn] = {}
        for element in self.elements or elements:
            x, role = element.lower(), value_role(names, element)
            if not role:
                continue
            if f"{role}_error" not in names:
                raise ValueError(
                    f"{self.label}: column '{names[role]}' has no column of errors; name it: "
                    f"data.columns.{role}_error=<column>"
                )
            extra = (f"{x}_limit", f"{x}_significance", *(f"{x}_{cause}" for cause in CAUSES))
            for name in (role, f"{role}_error", *extra, f"true_{x}_h"):
                if name in names or (name.startswith("true") and name in catalogue.names):
                    roles[name] = self._column(catalogue, name, names.get(name, name))
        if _has_ratios(roles):
            for role, what in (("fe_h", "[Fe/H]"), ("fe_h_error", "error of [Fe/H]")):
                if role not in names:
                    raise ValueError(
                        f"{self.label} has [X/Fe], and no {what} from which [X/H] follows; name "
                        f"it: data.columns.{role}=<column>"
                    )
            for role in ("fe_h", "fe_h_error", "fe_limit"):  # also where iron is not learned
                if role in names:
                    roles[role] = self._column(catalogue, role, names[role])
        if "type" in names:
            roles["type"] = self._column(catalogue, "type", names["type"])
        self._ask_for_scale(roles)
        return roles

    def _column(self, catalogue: Catalogue, role: str, name: str) -> CatalogueColumn:
        family = role
        if role != "type":
            prefix = "true_" if role.startswith("true_") else ""
            family = prefix + "{element}_" + role.removeprefix("true_").partition("_")[2]
        return CatalogueColumn(self.declared[family], name, catalogue.units.get(name))

    def _known_roles(self) -> dict[str, str]:
        """Every element's, for near matches of what the user names."""
        known = {
            role.replace("{element}", x.lower()): column.name.replace("{element}", x.lower())
            for role, column in self.declared.items()
            for x in self.elements or KNOWN_ELEMENTS
        }
        return known | {"name": "name", "structure": "structure"}

    def _ask_for_scale(self, roles: Mapping[str, CatalogueColumn]) -> None:
        if self.is_simulation or self.solar:
            return
        if any(role.endswith("_logeps") for role in roles):
            if self.solar_of_model:
                return
            raise ValueError(
                f"{self.label} holds log eps, of which [X/H] follows by a solar scale; state it: "
                f"data.solar=asplund2009"
            )
        self.warn_once(
            f"{self.label}: the solar scale of its abundances is not stated, and none is assumed: "
            f"they are taken as they are. Scales differ by up to .2 dex; state it: "
            f"data.solar=asplund2009, grevesse1998..."
        )

    # --- tensors ------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        n, k = len(next(iter(columns.values()))), len(self.elements)
        value, variance = np.full((n, k), np.nan), np.ones((n, k))
        causes = self._causes(columns)
        responses, limit = np.zeros((n, k, len(causes))), np.zeros((n, k))
        refuse_confused_ratios(columns, {r: self._name_of(r) for r in columns})
        if _has_ratios(columns) and "Fe" not in self.elements:
            self._element(columns, "Fe", "fe_h", causes)  # refuses bad errors of [Fe/H]
        for j, element in enumerate(self.elements):
            if role := value_role(columns, element):
                star = self._element(columns, element, role, causes)
                value[:, j], variance[:, j], responses[:, j], limit[:, j] = star
        batch = {
            "value": torch.from_numpy(value).float(),
            "variance": torch.from_numpy(variance).float(),
            "responses": torch.from_numpy(responses).float(),
            "limit": torch.from_numpy(limit).long(),
            "type": torch.from_numpy(self._types(columns, n)),
        }
        true = [columns.get(f"true_{x.lower()}_h", np.full(n, np.nan)) for x in self.elements]
        if any(np.isfinite(x).any() for x in true):
            batch["true"] = torch.from_numpy(np.stack(true, 1)).float()
        return batch

    def _often_measured(self, catalogue: Catalogue, names: Mapping[str, str]) -> list[str]:
        """Elements that are measured in enough stars, iron first."""
        counts = dict.fromkeys(elements_of(names), 0)
        roles = {x: (value_role(names, x), f"{x.lower()}_limit") for x in counts}
        columns = {r: names[r] for pair in roles.values() for r in pair if r in names}
        for chunk in catalogue.chunks(list(columns.values())):
            for x, (value, limit) in roles.items():
                known = np.isfinite(numbers(chunk[columns[value]], columns[value]))
                if limit in columns:
                    known &= np.nan_to_num(numbers(chunk[columns[limit]], columns[limit])) == 0
                counts[x] += int(known.sum())
        often = [x for x, count in counts.items() if count >= self.least_measured]
        often.sort(key=lambda x: (x != "Fe", KNOWN_ELEMENTS.index(x)))
        if not often:
            raise ValueError(
                f"{self.label}: no element is measured in data.least_measured="
                f"{self.least_measured} stars: {', '.join(f'{x} {n}' for x, n in counts.items())}"
            )
        if rare := [f"{x} ({n})" for x, n in counts.items() if x not in often]:
            self.print_once(
                f"{self.label}: not learned, of fewer than data.least_measured="
                f"{self.least_measured} measurements: {', '.join(rare)}"
            )
        return often

    def _element(
        self, columns: Mapping[str, np.ndarray], element: str, role: str, causes: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """[X/H], variance, responses and limit of one element, (n,) or (n, causes)."""
        x = element.lower()
        value, error = columns[role].copy(), columns[f"{role}_error"]
        n = len(value)
        none = np.full(n, np.nan)
        limit = np.nan_to_num(columns.get(f"{x}_limit", none))
        self._refuse(~np.isin(limit, (-1, 0, 1)), f"{x}_limit", limit, "is no flag of a limit",
                     "1 (upper), -1 (lower), 0 or a blank (measured)")  # fmt: skip
        measured, limited = np.isfinite(value) & (limit == 0), np.isfinite(value) & (limit != 0)
        with np.errstate(invalid="ignore"):
            bad = measured & ~((error > 0) & (error < 9))
        by_flag = f", by '{self._name_of(f'{x}_limit')}'"
        if f"{x}_limit" not in columns:
            by_flag = f" (no column '{x}_limit' calls it a limit)"
        what = f"is not a valid error of the measurement in '{self._name_of(role)}'{by_flag}"
        self._refuse(bad, f"{role}_error", error, what, ABOVE_ZERO)
        significance = columns.get(f"{x}_significance", none)
        if self.limit_significance is not None:
            significance = np.where(np.isnan(significance), self.limit_significance, significance)
        with np.errstate(invalid="ignore"):
            bad = limited & ~(significance > 0)
        what = f"is no significance of the limit in '{self._name_of(role)}'{by_flag}"
        expected = "sigma of the line: such a column, or data.limit_significance=3"
        self._refuse(bad, f"{x}_significance", significance, what, expected)
        tau = 1 / (math.log(10) * np.where(limited, significance, 1.0))
        zero = np.zeros(n)
        response = np.stack(
            [np.nan_to_num(columns.get(f"{x}_{cause}", zero)) for cause in causes] or [zero], 1
        )[:, : len(causes)]
        own = np.square(np.where(measured, error, 1.0))
        explained = np.square(response).sum(1)
        most = np.maximum(own - LEAST_ERROR**2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.sqrt(np.where(explained > most, most / explained, 1.0))
        response *= np.where(measured, scale, 1.0)[:, None]
        variance = np.where(measured, np.maximum(own - explained, LEAST_ERROR**2), tau**2)
        value += self._offset(element, role)
        if role.endswith("_fe"):
            unknown = np.nan_to_num(columns.get("fe_limit", zero)) != 0
            value = np.where(unknown, np.nan, value + columns["fe_h"])
            response[:, 0] = columns["fe_h_error"]
        elif element == "Fe" and _has_ratios(columns):
            # its error is in every [X/H] that follows from [X/Fe]
            response[:, 0] = np.where(measured, np.sqrt(variance), 0.0)
            variance = np.where(measured, LEAST_ERROR**2, variance)
        value[~np.isfinite(value) | ~np.isfinite(response).all(1)] = np.nan
        return value, variance, np.nan_to_num(response), limit

    @staticmethod
    def _causes(columns: Mapping[str, np.ndarray]) -> list[str]:
        """Of correlated errors: those of which the table has columns."""
        ratios = _has_ratios(columns)
        known = {c for c in CAUSES if any(role.endswith(f"_{c}") for role in columns)}
        return [c for c in CAUSES if c in known or (c == FROM_IRON and ratios)]

    def _offset(self, element: str, role: str) -> float:
        """Difference of solar scales, dex, added to reach the model's; 0 if one is not stated."""
        reference = self.solar_of_model or self.solar
        if role.endswith("_logeps") and reference:
            return -solar(element, reference)
        if self.solar is None or reference is None:
            return 0.0
        return offset(element, self.solar, reference)  # of [X/H], whatever it was made of

    def _types(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        if "type" not in columns:
            return np.full(n, -1)
        names, which = np.unique(np.array([str(t) for t in columns["type"]]), return_inverse=True)
        places = [TYPES.index(t) if t in TYPES else -1 for t in names]
        unknown = [t for t in names if t not in TYPES and t not in ("", "None", "nan", "--")]
        if unknown:
            self.warn_once(
                f"{self.label}: type '{unknown[0]}' is none of {', '.join(TYPES)}; it is unknown"
            )
        return np.asarray(places)[which]

    def _name_of(self, role: str) -> str:
        return str(self.columns.get(role, role))

    def _refuse(
        self, bad: np.ndarray, role: str, values: np.ndarray, what: str, expected: str
    ) -> None:
        hint = "correct those rows, or blank the abundance"
        refuse(bad, self._name_of(role), values, what, expected, hint)

    # --- the simulation -----------------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        elements = self.elements or list(ELEMENTS)
        n = self.n_train if split == "fit" else self.n_test
        random = np.random.default_rng([self.seed, split == "test"])
        return simulated_stars(elements, n, self.missing, self.limited, self.seed, random)

    def true_density(self) -> tuple[torch.Tensor, ...] | None:
        """Weights, means, factors and variances of the simulation's density; None of a file."""
        return true_density(self.elements, self.seed) if self.is_simulation else None

    def model_arguments(self) -> dict[str, Any]:
        return {"elements": list(self.elements)}

    def inferred_settings(self) -> dict[str, Any]:
        of_simulation = "asplund2009" if self.is_simulation else None
        return {
            "elements": list(self.elements),
            "solar_of_model": self.solar_of_model or self.solar or of_simulation,
        }


def _has_ratios(columns: Mapping[str, object]) -> bool:
    """Whether there is any [X/Fe] among columns by role."""
    return any(role.endswith("_fe") for role in columns)
