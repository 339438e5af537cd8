"""Pairs of stars with their relative motion, to learn masses from; or single stars to weigh."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import FEW, CatalogueColumn, Column, located
from orrery.datamodules.reddening import extinction_columns
from orrery.datamodules.values import refuse
from orrery.physics.wide_binaries import astrometry, motion, population
from orrery.physics.wide_binaries.population import Population
from orrery.tables import Catalogue

POSSIBLE_COLOURS, POSSIBLE_ABS_G = (-1.5, 7.0), (-8.0, 20.0)  # mag
MIN_PARALLAX_SNR = 5.0  # of a pair that is trained on
MIN_PAIRS = 100
# of a catalogue, its median: separation in AU, and |w|, of bound pairs about .5 sqrt(M / Msun)
TYPICAL_SEPARATION, TYPICAL_MOTION = (20.0, 3e5), (0.05, 5.0)
# E(BP - RP) and A_G per E(B - V) of a G star: Casagrande & VandenBerg (2018, MNRAS 479, L102)
REDDENING, EXTINCTION = 1.339, 2.74
STARS = ("1", "2")


def _column(name: str, unit: str | None, meaning: str, low: float, high: float) -> Column:
    """Refused in training where it is impossible, and NaN in prediction."""
    return Column(name, unit, meaning, low, high, missing=np.nan, strict=True, training="chosen")


def _optional(name: str, unit: str | None, meaning: str, low: float, high: float) -> Column:
    return replace(_column(name, unit, meaning, low, high), strict=False)


def _photometry(suffix: str, of: str) -> dict[str, Column]:
    """Columns of a star's place in the Hertzsprung-Russell diagram."""
    return {
        f"bp_rp{suffix}": _column(f"bp_rp{suffix}", "mag", f"colour BP - RP{of}", -5, 30),
        f"abs_g{suffix}": _column(
            f"abs_g{suffix}", "mag", f"absolute magnitude G{of}", *POSSIBLE_ABS_G
        ),
        f"phot_g_mean_mag{suffix}": _column(
            f"phot_g_mean_mag{suffix}", "mag", f"apparent magnitude G{of}", -2, 30
        ),
        f"parallax{suffix}": replace(
            _column(f"parallax{suffix}", "mas", f"parallax{of}", 0, 2000),
            ends="(]", typical=(0.05, 200), typical_hint="are they arcsec?",
        ),
        f"parallax_error{suffix}": replace(
            _column(f"parallax_error{suffix}", "mas", f"error of the parallax{of}", 0, 100),
            ends="(]", unit_of=f"parallax{suffix}",
        ),
        f"ebv{suffix}": _column(f"ebv{suffix}", "mag", f"E(B - V){of}, if named", -0.3, 20),
        f"mass{suffix}": replace(
            _optional(f"mass{suffix}", "Msun", f"true mass{of}, to compare with", 0, 1000),
            ends="(]",
        ),
    }  # fmt: skip


def _motion(suffix: str) -> dict[str, Column]:
    """Columns of a star's position and motion."""
    of = f" of star {suffix}"
    return {
        f"ra{suffix}": _column(f"ra{suffix}", "deg", f"right ascension{of}", -360, 360),
        f"dec{suffix}": _column(f"dec{suffix}", "deg", f"declination{of}", -90, 90),
        f"pmra{suffix}": _column(
            f"pmra{suffix}", "mas/yr", f"proper motion{of} in right ascension, with cos(dec)",
            -2e4, 2e4,
        ),
        f"pmdec{suffix}": _column(
            f"pmdec{suffix}", "mas/yr", f"proper motion{of} in declination", -2e4, 2e4
        ),
        f"pmra_error{suffix}": replace(
            _column(f"pmra_error{suffix}", "mas/yr", f"error of pmra{of}", 0, 100), ends="(]"
        ),
        f"pmdec_error{suffix}": replace(
            _column(f"pmdec_error{suffix}", "mas/yr", f"error of pmdec{of}", 0, 100), ends="(]"
        ),
        f"pmra_pmdec_corr{suffix}": replace(
            _optional(f"pmra_pmdec_corr{suffix}", None, f"correlation of both{of}", -1, 1),
            missing=0.0,
        ),
        f"dr2_radial_velocity{suffix}": _optional(
            f"dr2_radial_velocity{suffix}", "km/s", f"radial velocity{of}", -900, 900
        ),
    }  # fmt: skip


def _both(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of both stars, or one of the pair for each of them, (n, 2); NaN without it."""
    unknown = np.full(len(columns["bp_rp1"]), np.nan)
    parts = [columns.get(f"{name}{star}", columns.get(name, unknown)) for star in STARS]
    return np.stack(parts, 1)


class WideBinaryData(CatalogueData):
    """Wide binaries as in El-Badry, Rix & Heintz (2021), star 1 the brighter; or single stars.

    Training takes pairs: columns of Gaia with suffix 1 and 2. What is predicted may be pairs, or
    stars with ``bp_rp`` and ``abs_g``, or ``phot_g_mean_mag`` and ``parallax`` in its place.

    A batch of stars holds, each (batch,), ``bp_rp`` and ``abs_g`` with ``bp_rp_error`` and
    ``abs_g_error``, mag, and ``valid`` (bool). Of pairs these are (batch, 2), and there are
    ``log_separation`` (log10 AU), ``motion`` (batch, 2) and its ``covariance`` (batch, 2, 2), the
    mass-scaled velocity of `physics.wide_binaries.motion`, and ``likelihood`` (batch, n_mass, 4)
    of bound pairs. ``mass`` (batch,) or (batch, 2), Msun, where it is known.

    Pairs whose parallax is below five errors are left out of training, and so are those that move
    faster than ``largest_circular_mass`` allows.

    Args:
        n_train, n_test: pairs of the simulation (`physics.wide_binaries.population`).
        population: what to simulate, the fields of `Population`; null: its defaults.
        inflate_errors: whether errors are multiplied by what Gaia's are too small by (El-Badry, Rix
            & Heintz 2021, eq. 16).
        largest_circular_mass: Msun, by which the catalogue was selected: its pairs move no faster
            than on a circular orbit about this mass, projected, plus two errors. 5 in El-Badry et
            al. (2021). null: it was not.
        catalogue: settings of `CatalogueData`.
    """

    declared: ClassVar = {
        **_photometry("", " of a star"),
        "bp_rp_error": _optional("bp_rp_error", "mag", "error of BP - RP", 0, 10),
        "abs_g_error": _optional("abs_g_error", "mag", "error of the magnitude", 0, 10),
        **_photometry("1", " of star 1"),
        **_photometry("2", " of star 2"),
        **_motion("1"),
        **_motion("2"),
        "pairdistance": replace(
            _column("pairdistance", "deg", "angle between the stars", 0, 10),
            ends="(]", typical=(5e-5, 0.5), typical_hint="are they arcsec?",
        ),
        "sep_AU": replace(
            _column("sep_AU", "AU", "projected separation of the stars", 0, 1e7),
            ends="(]", typical=TYPICAL_SEPARATION,
            typical_hint="are they pc, kAU, or an angle, which is data.columns.pairdistance?",
        ),
    }  # fmt: skip
    decided_by_training: ClassVar = frozenset(("inflate_errors", "largest_circular_mass"))

    def __init__(
        self,
        n_train: int = 100_000,
        n_test: int = 20_000,
        population: Mapping[str, Any] | None = None,
        inflate_errors: bool = True,
        largest_circular_mass: float | None = 5.0,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.n_pairs = {"fit": n_train, "test": n_test}
        settings = dict(population or {})
        known = [name for name in Population._fields if name != "largest_circular_mass"]
        if unknown := settings.keys() - set(known):
            raise ValueError(
                f"data.population has no setting {', '.join(sorted(unknown))}; it has "
                f"{', '.join(known)}"
            )
        if largest_circular_mass is not None and not largest_circular_mass > 0:
            raise ValueError(
                f"data.largest_circular_mass={largest_circular_mass}; expected Msun above 0, or "
                f"null where the catalogue was not selected by velocity"
            )
        self.population = Population(**settings)
        self.inflate_errors = inflate_errors
        self.largest_circular_mass = largest_circular_mass

    def model_arguments(self) -> dict[str, Any]:
        return {"largest_circular_mass": self.largest_circular_mass}

    # --- reading ------------------------------------------------------------------------------

    def columns_of(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        """Of single stars without the columns that a training on pairs has named."""
        names = set(catalogue.names)
        of_pairs = {role for role in self.columns if role[-1] in STARS}
        if not training and of_pairs and names.isdisjoint(self.columns[r] for r in of_pairs):
            single = {
                role: located(self.declared, self.columns, catalogue, role).name
                for role in ("bp_rp", "abs_g")
            }
            if single["abs_g"] in names:
                of_pairs |= {"phot_g_mean_mag", "parallax", "parallax_error"}
            if single["bp_rp"] in names:
                self.columns = {r: name for r, name in self.columns.items() if r not in of_pairs}
        return super().columns_of(catalogue, training)

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = set(catalogue.names)

        def column(role: str) -> CatalogueColumn:
            return located(self.declared, self.columns, catalogue, role)

        def there(*roles: str) -> bool:
            return all(role in self.columns or column(role).name in names for role in roles)

        is_pair = training or there("bp_rp1", "bp_rp2")
        is_pair |= not there("bp_rp") and (there("bp_rp1") or there("bp_rp2"))  # one is missing
        is_pair |= any(role[-1] in STARS for role in self.columns)
        suffixes = STARS if is_pair else ("",)
        roles = [f"bp_rp{s}" for s in suffixes]
        optional = [f"mass{s}" for s in suffixes]
        reddening = [role for role in ("ebv", "ebv1", "ebv2") if role in self.columns]
        if is_pair and reddening in (["ebv1"], ["ebv2"]):
            raise ValueError(
                f"data.columns.{reddening[0]} is named alone; expected ebv1 and ebv2, or ebv, "
                f"which is that of the pair"
            )
        optional += [role for role in reddening if is_pair or role == "ebv"]
        has_abs_g = there(*(f"abs_g{s}" for s in suffixes))
        roles += [f"{'abs_g' if has_abs_g else 'phot_g_mean_mag'}{s}" for s in suffixes]
        if not is_pair:
            optional += ["bp_rp_error", "abs_g_error"]
            if not has_abs_g:
                roles.append("parallax")
                optional.append("parallax_error")
        else:
            own = there("parallax1", "parallax2") or not there("parallax")
            for s in STARS if own else ("",):
                roles += [f"parallax{s}", f"parallax_error{s}"]
            for s in STARS:
                roles += [f"{name}{s}" for name in ("pmra", "pmdec", "pmra_error", "pmdec_error")]
                optional += [f"pmra_pmdec_corr{s}", f"dr2_radial_velocity{s}"]
            positions = [f"{name}{s}" for s in STARS for name in ("ra", "dec")]
            optional += ["pairdistance", "sep_AU"]
            named = any(role in self.columns for role in positions)
            if named or not (there("pairdistance") or there("sep_AU")):
                roles += positions  # which are then asked for
            else:
                optional += positions if there(*positions) else []
        self._ask_about_extinction(catalogue.names, bool(reddening))
        return {role: column(role) for role in (*roles, *(r for r in optional if there(r)))}

    def _ask_about_extinction(self, names: Sequence[str], is_corrected: bool) -> None:
        """Where the catalogue has an extinction that is not used."""
        found = extinction_columns(names)
        if found and not is_corrected and not self.is_simulation:
            self.warn_once(
                f"{self.label}: {', '.join(found[:5])} not used, and colours and magnitudes "
                f"are taken as dereddened. If they are not, name a column of E(B - V), which is "
                f"A_V / 3.1 or A_G / {EXTINCTION:g}: data.columns.ebv=<column>"
            )

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        if "bp_rp1" in columns:
            return self._pairs(columns, training)
        if "abs_g" in columns:
            abs_g, error = columns["abs_g"], 0.0
        else:
            abs_g = columns["phot_g_mean_mag"] + 5 * np.log10(columns["parallax"]) - 10
            relative = columns.get("parallax_error", np.nan) / columns["parallax"]
            error = np.nan_to_num(5 / np.log(10) * relative)
        batch = self._photometry(columns["bp_rp"], abs_g, columns.get("ebv", 0.0))
        zero = np.zeros(len(abs_g))
        for role, other in (("bp_rp_error", 0.0), ("abs_g_error", error)):
            values = np.nan_to_num(columns.get(role, zero))
            batch[role] = torch.from_numpy(np.hypot(values, other) + zero).float()
        if "mass" in columns:
            batch["mass"] = torch.from_numpy(columns["mass"]).float()
        return batch

    def _photometry(
        self, bp_rp: np.ndarray, abs_g: np.ndarray, ebv: np.ndarray | float
    ) -> dict[str, torch.Tensor]:
        """Colour and magnitude, dereddened, of any shape, and whether both are possible."""
        bp_rp, abs_g = bp_rp - REDDENING * ebv, abs_g - EXTINCTION * ebv
        valid = (bp_rp > POSSIBLE_COLOURS[0]) & (bp_rp < POSSIBLE_COLOURS[1])
        valid &= (abs_g > POSSIBLE_ABS_G[0]) & (abs_g < POSSIBLE_ABS_G[1])
        return {
            "bp_rp": torch.from_numpy(np.where(valid, bp_rp, 1.0)).float(),
            "abs_g": torch.from_numpy(np.where(valid, abs_g, 5.0)).float(),
            "valid": torch.from_numpy(valid),
        }

    def _pairs(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        has_positions = {"ra1", "ra2", "dec1", "dec2"} <= columns.keys()
        parallax = _both(columns, "parallax")
        angle = self._angle(columns, parallax[:, 0], has_positions)
        magnitude = _both(columns, "phot_g_mean_mag")
        distance_modulus = 10 - 5 * np.log10(
            astrometry.pair_parallax(parallax, _both(columns, "parallax_error"))[0][:, None]
        )
        if "abs_g1" in columns:
            magnitude = _both(columns, "abs_g") + distance_modulus
        name = str(self.columns.get("bp_rp1", "bp_rp1"))
        same = [columns[f"{role}1"] == columns[f"{role}2"] for role in ("bp_rp", "pmra", "pmdec")]
        same.append(magnitude[:, 0] == magnitude[:, 1])
        what = "is of a star that is paired with itself: no angle or no difference between the two"
        refuse((angle == 0) | np.all(same, 0), name, columns["bp_rp1"], what, "two different stars",
               "drop those rows")  # fmt: skip
        abs_g = magnitude - distance_modulus
        ebv = _both(columns, "ebv") if columns.keys() & {"ebv", "ebv1"} else 0.0
        batch = self._photometry(_both(columns, "bp_rp"), abs_g, ebv)
        if training:
            self._refuse_outside(columns, abs_g, batch["valid"].numpy())
        stars = self._astrometry(columns, magnitude, angle, has_positions)
        pair = astrometry.relative_motion(stars, angle)
        moves = np.isfinite(pair.motion).all(1) & np.isfinite(pair.covariance).all((1, 2))
        self._ask_about_motion(pair, moves, training)
        # to the power -3/2 of a poorer parallax the error is no small one
        moves &= pair.parallax > MIN_PARALLAX_SNR * pair.parallax_error
        w = torch.from_numpy(np.where(moves[:, None], pair.motion, 0.0))
        covariance = torch.from_numpy(np.where(moves[:, None, None], pair.covariance, np.eye(2)))
        error = np.nan_to_num(5 / np.log(10) * pair.parallax_error / pair.parallax)[:, None]
        log_separation = np.log10(np.where(moves, pair.separation, 1e3))
        batch |= {
            "bp_rp_error": torch.zeros(batch["bp_rp"].shape),
            "abs_g_error": torch.from_numpy(np.repeat(error, 2, 1)).float(),
            "log_separation": torch.from_numpy(log_separation).float(),
            "motion": w.float(),
            "covariance": covariance.float(),
            "likelihood": motion.likelihood(w, covariance, directed=has_positions),
            "moves": torch.from_numpy(moves),
        }
        if "mass1" in columns and "mass2" in columns and not training:
            batch["mass"] = torch.from_numpy(_both(columns, "mass")).float()
        return batch

    def _ask_about_motion(
        self, pair: astrometry.RelativeMotion, moves: np.ndarray, training: bool
    ) -> None:
        """Where pairs are not as wide, or as fast, as any: an error in training, else a warning."""
        if self.is_simulation or moves.sum() < FEW:
            return
        speed = np.linalg.norm(pair.motion, axis=1)
        for what, values, (low, high), roles in (
            ("separation, AU,", pair.separation, TYPICAL_SEPARATION, "positions or separations"),
            ("v sqrt(s / G Msun)", speed, TYPICAL_MOTION, "proper motions"),
        ):
            median = float(np.median(values[moves]))
            if low <= median <= high:
                continue
            text = (
                f"the median {what} of the pairs is {median:.3g}; expected {low:g} to {high:g}: "
                f"are the {roles} right, and in which unit? State it: data.units.<role>=<unit>"
            )
            if training:
                raise ValueError(text)
            self.warn_once(f"{self.label}: {text}")
            return

    def _refuse_outside(
        self, columns: Mapping[str, np.ndarray], abs_g: np.ndarray, valid: np.ndarray
    ) -> None:
        """Raise ``ValueError`` about a star outside the Hertzsprung-Russell diagram."""
        for i, star in enumerate(STARS):
            possible = (abs_g[:, i] > POSSIBLE_ABS_G[0]) & (abs_g[:, i] < POSSIBLE_ABS_G[1])
            parts = [r for r in (f"phot_g_mean_mag{star}", "parallax1", "parallax2", "parallax",
                                 f"abs_g{star}") if r in columns]  # fmt: skip
            first, *others = (self.columns.get(role, self.declared[role].name) for role in parts)
            given = " and ".join(f"'{name}'" for name in others)
            refuse(~possible, str(first), abs_g[:, i],
                   f"is not a possible absolute magnitude, with {given}",
                   "mag, {:g} to {:g}".format(*POSSIBLE_ABS_G), "drop those rows",
                   accepts_unknown=False)  # fmt: skip
            colour = str(self.columns.get(f"bp_rp{star}", f"bp_rp{star}"))
            refuse(~valid[:, i], colour, columns[f"bp_rp{star}"], "is not a possible colour",
                   "mag, {:g} to {:g}, dereddened".format(*POSSIBLE_COLOURS), "drop those rows",
                   accepts_unknown=False)  # fmt: skip

    def _astrometry(
        self,
        columns: Mapping[str, np.ndarray],
        magnitude: np.ndarray,
        angle: np.ndarray,
        has_positions: bool,
    ) -> astrometry.Astrometry:
        """Gaia's astrometry, errors inflated; ``magnitude`` (n, 2), mag, ``angle`` (n,), arcsec."""
        inflation = np.ones_like(magnitude)
        if self.inflate_errors:
            inflation = astrometry.error_inflation(magnitude, angle)
        # the one parallax of a pair stands for both, each with sqrt 2 of its error
        names = {self.columns.get(role, role) for role in ("parallax1", "parallax2")}
        share = 1.0 if "parallax1" in columns and len(names) == 2 else np.sqrt(2)
        return astrometry.Astrometry(
            pmra=_both(columns, "pmra"),
            pmdec=_both(columns, "pmdec"),
            pmra_error=_both(columns, "pmra_error") * inflation,
            pmdec_error=_both(columns, "pmdec_error") * inflation,
            correlation=np.nan_to_num(_both(columns, "pmra_pmdec_corr")),
            parallax=_both(columns, "parallax"),
            parallax_error=_both(columns, "parallax_error") * inflation * share,
            radial_velocity=_both(columns, "dr2_radial_velocity"),
            ra=_both(columns, "ra") if has_positions else None,
            dec=_both(columns, "dec") if has_positions else None,
        )

    def _angle(
        self, columns: Mapping[str, np.ndarray], parallax: np.ndarray, has_positions: bool
    ) -> np.ndarray:
        """Angle between the stars, arcsec, from what there is, if all of it agrees."""
        angles: dict[str, np.ndarray] = {}
        if has_positions:
            ra, dec = (np.stack([columns[f"{n}{s}"] for s in STARS], 1) for n in ("ra", "dec"))
            angles["positions"] = astrometry.angular_separation(ra, dec)
        if "pairdistance" in columns:
            angles["pairdistance"] = columns["pairdistance"] * 3600
        if "sep_AU" in columns:
            angles["sep_AU"] = columns["sep_AU"] * parallax / 1e3
        (first, angle), *others = angles.items()
        for role, other in others:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = other / angle
            ratio = (
                float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else 1
            )
            if not 0.5 < ratio < 2:
                column = self.declared[role]
                raise ValueError(
                    f"column '{self.columns.get(role, column.name)}' is taken as {column.unit}, "
                    f"and is {ratio:.3g} times what {first} give: state its unit by "
                    f"data.units.{role}=<unit>"
                )
        return angle

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        super().setup(stage)
        for name, rows in self.rows.items():
            error = rows["abs_g_error"][:, 0] * np.log(10) / 5
            poor = error > 1 / MIN_PARALLAX_SNR
            fast = self._is_fast(rows)
            kept = ~(poor | fast)
            if not bool(kept.all()):
                self.warn_once(
                    f"{self.label}, {name}: {int(poor.sum()):,} pairs of a parallax below "
                    f"{MIN_PARALLAX_SNR:g} errors and {int((fast & ~poor).sum()):,} that move "
                    f"faster than data.largest_circular_mass={self.largest_circular_mass} allows "
                    f"are left out"
                )
            self._keep(name, kept)
        if len(self.rows["train"]["row"]) < MIN_PAIRS:
            raise ValueError(
                f"{len(self.rows['train']['row'])} pairs are left to learn from; expected "
                f"{MIN_PAIRS} or more"
            )

    def _is_fast(self, rows: Rows) -> torch.Tensor:
        speed = rows["motion"].norm(dim=1)
        if self.largest_circular_mass is None:
            return torch.zeros_like(speed).bool()
        error = (0.5 * rows["covariance"].diagonal(dim1=1, dim2=2).sum(1)).sqrt()
        return speed > self.largest_circular_mass**0.5 + 2 * error

    # --- the simulation -----------------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        seed = 2 * self.seed + (split == "test")
        simulated = self.population._replace(largest_circular_mass=self.largest_circular_mass)
        return population.simulate(self.n_pairs[split], simulated, seed)

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_train": self.n_pairs["fit"], "n_test": self.n_pairs["test"]}
        masses = "of simulated stars: dwarfs as in Pecaut & Mamajek (2013), schematic white dwarfs"
        return super().provenance() | sizes | {"masses": f"{masses} and giants; not measured"}

    def true_alpha(self, log_separation: np.ndarray) -> np.ndarray | None:
        """Exponent of eccentricity of the simulation; None for a catalogue."""
        if not self.is_simulation:
            return None
        return population.true_alpha(log_separation, self.population.alpha)
