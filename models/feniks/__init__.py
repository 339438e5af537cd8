"""feniks: massive quiescent galaxies at z > 3, from photometry and a spectrum of the K band."""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from orrery.models.base import Batch, Constant, Data, Evaluation, Output, PredictedRows
from orrery.models.feniks.broad_lines import LIKELY, probability
from orrery.models.feniks.evaluation import evaluate
from orrery.models.feniks.figure_data import N_SPECTRA
from orrery.models.feniks.joint import JointFit, fit_jointly, spectrum_of
from orrery.models.feniks.larger_errors import added_error
from orrery.models.feniks.migrations import widening_with_spectrum
from orrery.models.feniks.outputs import (
    BIT,
    CLASSES,
    FEW_BANDS,
    OF_MOCKS,
    OF_SPECTRA,
    POOR_SPECTRUM,
    QUANTITIES,
    with_own_columns,
)
from orrery.models.feniks.redshift import WINDOW, flag
from orrery.models.inference.ensemble import MAX_RHAT
from orrery.models.inference.threads import one_thread
from orrery.models.sed_emulator import SedEmulator, mean_size
from orrery.models.sed_emulator.fit_rows import N_DRAWS, SECOND_MODE, fluxes_of_draws
from orrery.models.sed_emulator.fitting import MODE_DISTANCE
from orrery.models.sed_emulator.migrations import ensemble_settings
from orrery.models.sed_emulator.networks import HistoryNetwork
from orrery.models.sed_emulator.outputs import DERIVED_TEXT
from orrery.models.sed_emulator.posterior import Photometry, photometry
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.galaxies.quiescent import BOXES, colours, inside, quiescent
from orrery.physics.sps.cosmology import age_of_universe, redshift_of_age
from orrery.physics.sps.star_formation import star_formation
from orrery.physics.sps.synthesis import RATIOS
from orrery.pretrained import load
from orrery.progress import counted

SPECTRA = "sed_emulator_spectra"  # the checkpoint by which spectra are made
WIDEST = 5.0  # factor
COVERED = 0.68
INFERENCE = ("ensemble", "templates")
FEWEST = 50  # mock galaxies of which a factor is taken
MAG_PER_DEPTH = 2.5 / math.log(10)
UGI = "antwi_danso2023_ugi"
OF_FIT = frozenset(
    (
        *("flux", "flux_error", "observed", "is_limit", "zred", "zred_error"),
        *("spectrum_wavelength", "spectrum_flux", "spectrum_error", "spectrum_good"),
        "spectrum_covariance",
    )
)  # of a batch


@runtime_checkable
class HasMocks(Protocol):
    """Data of which mock galaxies can be drawn."""

    def calibration_batch(self) -> Batch | None:
        """Some of them, as they are predicted, with true values; None if data are a catalogue."""

    def spectra_calibration_batch(self) -> Batch | None:
        """The same with spectra; None also if none are asked for."""


class Feniks(SedEmulator):
    """Which galaxies are massive, quiescent and at z > 3, and how sure that is.

    After arXiv:2307.09590. Photometry is fitted as by `SedEmulator`, with priors that allow for
    galaxies whose star formation has ended. A second network gives the colours at rest by which
    such galaxies are selected. Where there is a spectrum, the redshift is searched on a dense grid,
    with the photometry, and the galaxy is fitted to both.

    In: the batch of `datamodules.feniks`, or of `datamodules.feniks.spectra`. Out: see
    `outputs.with_own_columns`.

    Args:
        rest_wavelengths: pivot wavelengths of `REST_BANDS`, Angstrom.
        z_min: redshift above which candidates are.
        log_mass_min: log10 of the stellar mass, Msun, above which candidates are.
        uvj: name of the box in U - V and V - J, of `physics.galaxies.quiescent.BOXES`.
        templates: fits to the photometry at each redshift, which are compared with a spectrum.
        secure: probability of the likeliest redshift, within 0.01, from which on it is secure.
        inference: of galaxies with a spectrum: "ensemble", walkers that sample photometry and
            spectrum near each redshift that is possible, or "templates", which weights these fits.
        width, depth, error_rank, lr, epochs, draws, seed: see `SedEmulator`.
    """

    quantity_texts: ClassVar = {**DERIVED_TEXT, **QUANTITIES}
    migrations: ClassVar = (ensemble_settings, widening_with_spectrum)
    widening: Tensor  # of intervals: factors of parameters and quantities
    widening_with_spectrum: Tensor
    prediction_settings: ClassVar = frozenset(
        (
            *("z_min", "log_mass_min", "uvj", "templates", "secure"),
            *("inference", "draws"),
        )
    )

    def __init__(
        self,
        bands: Mapping[str, str],
        wavelengths: Sequence[float],
        rest_wavelengths: Sequence[float],
        parameters: Mapping[str, Any],
        nebular: bool = True,
        population: str = "sed_emulator_spectra",
        z_min: float = 3.0,
        log_mass_min: float = 10.3,
        uvj: str = "antwi_danso2023_uvj",
        width: int = 128,
        depth: int = 3,
        error_rank: int = 3,
        lr: float = 5e-3,
        epochs: int = 40,
        templates: int = 100,
        secure: float = 0.9,
        inference: str = "ensemble",
        draws: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            bands,
            wavelengths,
            parameters,
            nebular,
            population,
            width=width,
            depth=depth,
            error_rank=error_rank,
            lr=lr,
            epochs=epochs,
            draws=draws,
            seed=seed,
        )
        known = [name for name, box in BOXES.items() if box.y == "u_v"]
        if uvj not in known:
            raise ValueError(f"model.uvj={uvj}; expected one of {', '.join(known)}")
        if not 0.5 < secure < 1:
            raise ValueError(f"model.secure={secure}; expected a probability, 0.5 to 1")
        self.z_min, self.log_mass_min, self.uvj = z_min, log_mass_min, uvj
        if inference not in INFERENCE:
            raise ValueError(f"model.inference={inference}; expected one of {', '.join(INFERENCE)}")
        self.templates, self.secure, self.joint_inference = templates, secure, inference
        self.rest_network = HistoryNetwork(self.names, rest_wavelengths, width, depth, at_rest=True)
        quantities = len(self.names) + len(self.quantity_texts)
        self.register_buffer("widening", torch.ones(quantities))
        self.register_buffer("widening_with_spectrum", torch.ones(quantities))
        self._first_fits: dict[str, JointFit] = {}  # of the predictions, for figures
        self._loaded: list[SpectrumNetwork] = []  # when it is needed; no part of the checkpoint

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        super().prepare(data)
        batch = data.training_batch()
        self.rest_network.prepare(
            batch["parameters"], batch["rest_magnitudes"], self.priors.low, self.priors.high
        )

    def loss(self, batch: Batch) -> Tensor:
        """That of the emulator, and of the magnitudes at rest."""
        at_rest = self.rest_network(batch["parameters"]) - batch["rest_magnitudes"]
        return super().loss(batch) + mean_size(at_rest)

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """With factors of the intervals, by mock galaxies whose histories have no bins."""
        super().calibrate(data)
        self.widening.fill_(1.0)
        if not isinstance(data, HasMocks) or (batch := data.calibration_batch()) is None:
            return
        self.widening.copy_(self._widening_of(batch))
        self.widening_with_spectrum.copy_(self.widening)
        self.calibrate_with_spectra(data)

    @torch.no_grad()
    def calibrate_with_spectra(self, data: HasMocks) -> None:
        """Factors of the intervals of galaxies with a spectrum: each takes seconds to fit."""
        if (batch := data.spectra_calibration_batch()) is not None:
            self.widening_with_spectrum.fill_(1.0)
            self.widening_with_spectrum.copy_(self._widening_of(batch))

    def _widening_of(self, batch: Batch) -> Tensor:
        """The factor of each parameter and quantity that mock galaxies ask for."""
        rows = self.predict_step({name: values.to(self.device) for name, values in batch.items()})
        return torch.tensor([_widening(rows, n) for n in (*self.names, *self.quantity_texts)])

    # --- quantities of galaxies -----------------------------------------------------------------

    def quantities(self, parameters: Tensor) -> dict[str, Tensor]:
        """Those of `SedEmulator`, and times of formation and colours at rest, (n,) each."""
        found = super().quantities(parameters)
        ratios = torch.stack([found[name] for name in RATIOS], 1)
        history = star_formation(ratios, found["zred"])
        t50, t90 = history.lookback(0.5), history.lookback(0.9)
        age = age_of_universe(found["zred"])
        return found | {
            "a_v": MAG_PER_DEPTH * found["dust2"],
            "t50": t50,
            "t90": t90,
            "z_form": redshift_of_age(age - t50),
            **colours(self.rest_network(parameters)),
        }

    def probabilities(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shares of draws that are quiescent, candidates, or in a box, (galaxies,) each."""
        quenched = quiescent(found["log_ssfr"], found["zred"])
        massive = found["log_stellar_mass"] > self.log_mass_min
        masks = {
            "p_quiescent": quenched,
            "p_candidate": quenched & massive & (found["zred"] > self.z_min),
            "p_uvj": inside(BOXES[self.uvj], found["v_j"], found["u_v"]),
            "p_ugi": inside(BOXES[UGI], found["gs_is"], found["us_gs"]),
        }
        return {name: mask.float().mean(1) for name, mask in masks.items()}

    def posterior_rows(self, parameters: Tensor, with_spectrum: bool = False) -> dict[str, Tensor]:
        """With intervals that `calibrate` has widened, of all but the draws."""
        rows = super().posterior_rows(parameters)
        widening = self.widening_with_spectrum if with_spectrum else self.widening
        for factor, name in zip(widening, (*self.names, *self.quantity_texts), strict=True):
            for end in ("_q16", "_q84"):
                rows[f"{name}{end}"] = rows[name] + factor * (rows[f"{name}{end}"] - rows[name])
        return rows

    # --- fitting galaxies -----------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output | Constant]:
        return with_own_columns(super().outputs, self.z_min, self.log_mass_min, self.uvj)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        if batch_idx == 0:
            self._first_fits.clear()
        asked = batch
        with one_thread():
            rows = super().predict_step(batch, batch_idx)
            rows["added_error"] = torch.zeros_like(rows["chi2"])
            poor = (rows["flags"] & BIT["poor_fit"]) > 0
            if bool(poor.any()):
                batch = self._refit(rows, batch, poor)
            few = rows["n_bands"] < FEW_BANDS
            rows["flags"] |= BIT["few_bands"] * few.to(rows["flags"])
            rows |= self._without_spectrum(len(few))
            if "true_parameters" in batch:
                rows |= {name: torch.full_like(rows["z_peak"], torch.nan) for name in OF_MOCKS}
            if "spectrum_flux" in batch:
                self._add_spectra(rows, batch, asked)
        for name in self.quantity_texts:
            if (true := batch.get(f"true_{name}")) is not None:
                rows[f"{name}_true"] = true
        if "true_broad" in batch:
            rows["broad_true"] = batch["true_broad"]
        return rows

    def _refit(self, rows: dict[str, Tensor], batch: Batch, poor: Tensor) -> Batch:
        """Fit the galaxies in the mask ``poor`` (n,) with `added_error`; the batch with it.

        chi^2, its rank and the flag remain those of the stated errors.
        """
        added = torch.where(poor, added_error(rows), 0.0)
        more = added[:, None] * rows["flux_model"].nan_to_num(0.0)
        larger = torch.where(
            batch["is_limit"], batch["flux_error"], batch["flux_error"].hypot(more)
        )
        batch = {**batch, "flux_error": larger}
        again = super().predict_step({name: values[poor] for name, values in batch.items()})
        for name in rows.keys() - {"chi2", "chi2_rank", "added_error"}:
            rows[name][poor] = again[name]
        rows["added_error"] = added
        rows["flags"] |= BIT["poor_fit"] * poor.to(rows["flags"])
        return batch

    def _without_spectrum(self, n: int) -> dict[str, Tensor]:
        """Columns of what a spectrum tells, blank."""
        blank = torch.full((n,), torch.nan, device=self.surviving.device)
        rows = {name: blank.clone() for name in OF_SPECTRA if name not in OF_MOCKS}
        return rows | {"z_class": torch.full_like(blank, -1, dtype=torch.long)}

    def _add_spectra(self, rows: dict[str, Tensor], batch: Batch, asked: Batch) -> None:
        """Write the joint fits of the galaxies that have a spectrum into their ``rows``.

        ``asked``: the batch before errors were added.
        """
        on_cpu = self.on_cpu()
        is_blank = (rows["flags"] & (BIT["no_photometry"] | BIT["outside_box"])) > 0
        fitted = (~is_blank & batch["spectrum_good"].any(1)).nonzero()[:, 0].tolist()
        if not fitted:
            return
        for row in counted(fitted, "fitting spectra", "galaxies"):
            if (fit := on_cpu.joint_fit(batch, row)) is None:
                continue
            if len(self._first_fits) < N_SPECTRA:
                self._first_fits[self._key(asked, row)] = fit
            for name, value in self._joint_row(batch, row, fit).items():
                if name in rows:
                    rows[name][row] = value

    def _key(self, batch: Batch, row: int) -> str:
        """A digest of all that a joint fit depends on."""
        settings = (self.templates, self.joint_inference, self.draws, self.seed)
        digest = hashlib.sha256(repr(settings).encode())
        for name in sorted(OF_FIT & batch.keys()):
            digest.update(batch[name][row].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def predicted_fit(self, batch: Batch, row: int) -> JointFit | None:
        """`joint_fit` of a galaxy that was among the first to be predicted, or anew."""
        return self._first_fits.get(self._key(batch, row)) or self.on_cpu().joint_fit(batch, row)

    def on_cpu(self) -> "Feniks":
        """This model, or a copy on the CPU, where galaxies with spectra are fitted one by one."""
        return self if self.device.type == "cpu" else copy.deepcopy(self).cpu()

    def joint_fit(self, batch: Batch, row: int) -> JointFit | None:
        """A galaxy of a batch, fitted to photometry and spectrum; None if it has no spectrum.

        Of a model on the CPU.
        """
        spectrum = spectrum_of(batch, row)
        if spectrum is None:
            return None
        emulator = self.of_catalogue(batch)
        return fit_jointly(
            emulator,
            self.spectra(),
            emulator.library,
            emulator.of(_photometry_of(batch, row)),
            spectrum,
            self.templates,
            max(N_DRAWS, self.draws),
            self.seed,
            self.joint_inference,
        )

    def spectra(self) -> SpectrumNetwork:
        """The network of spectra, on the CPU."""
        if not self._loaded:
            network = load(SPECTRA).network
            assert isinstance(network, SpectrumNetwork)
            self._loaded.append(network)
        return self._loaded[0]

    def _joint_row(self, batch: Batch, row: int, fit: JointFit) -> dict[str, Any]:
        """Columns of a galaxy with a spectrum: numbers, and arrays of its bands."""
        parameters = fit.draws.parameters.clone()
        parameters[:, self.names.index("zred")] = fit.draws.z.float()
        found = self.posterior_rows(parameters[None].to(self.surviving), with_spectrum=True)
        flux, error = fluxes_of_draws(self, parameters[None].to(self.surviving))
        peak, *others = fit.posterior.modes(2)
        columns = self._photometry_at(batch, row, peak.z, fit)
        columns |= {name: values[0] for name, values in found.items()}
        broad = fit.posterior.broad
        p_agn = probability(broad.log_bayes_factor)
        is_broad = p_agn >= LIKELY
        is_poor = fit.error_scale > POOR_SPECTRUM
        columns["flags"] |= BIT["poor_spectrum"] * is_poor
        return columns | {
            "flux_model": flux[0],
            "flux_model_error": error[0],
            "z_peak": peak.z,
            "p_peak": peak.weight,
            "z_second": others[0].z if others else math.nan,
            "p_second": others[0].weight if others else 0.0,
            "z_class": self._class(peak.weight, is_poor, _photometry_of(batch, row)),
            "p_agn": p_agn,
            "ln_bayes_broad": broad.log_bayes_factor,
            "broad_velocity": broad.shift if is_broad else math.nan,
            "broad_fwhm": broad.fwhm if is_broad else math.nan,
            "sigma_v": float(fit.draws.sigma_v.median()),
            "n_pixels": float(batch["spectrum_good"][row].sum()),
            "error_scale": fit.error_scale,
            "z_pit": self._pit(batch, row, fit),
        }

    def _class(self, p: float, is_poor: bool, data: Photometry) -> int:
        """Place in `CLASSES`; -1 where the redshift was known, which a spectrum does not confirm.

        ``p``: probability of the likeliest redshift; ``is_poor``: no model fits the spectrum.
        """
        if not bool(data.zred.isnan()) and float(data.zred_error) < WINDOW:
            return -1
        name = flag(p, self.secure)
        return CLASSES.index("tentative" if is_poor and name == "secure" else name)

    def _photometry_at(self, batch: Batch, row: int, z: float, fit: JointFit) -> dict[str, Any]:
        """How well photometry is fitted at the redshift that the spectrum has, and its flags."""
        device = self.surviving.device
        data = Photometry(*(values.to(device) for values in _photometry_of(batch, row)))
        data = data._replace(
            zred=torch.full_like(data.zred, z), zred_error=torch.zeros_like(data.zred_error)
        )
        first = torch.zeros(1, dtype=torch.long, device=device)
        found = self._fit_padded(self.of_catalogue(batch), data, first)
        log_ratio = torch.log1p(fit.posterior.z)
        far = (log_ratio - math.log1p(z)).abs() > MODE_DISTANCE
        flags = found["flags"][0]
        flags |= BIT["second_mode"] * bool(fit.posterior.log_p[far].exp().sum() > SECOND_MODE)
        flags |= BIT["not_converged"] * (fit.rhat > MAX_RHAT)
        flags |= BIT["few_bands"] * bool(found["n_bands"][0] < FEW_BANDS)
        names = ("chi2", "chi2_rank", "n_constrained")
        return {"flags": flags} | {name: found[name][0] for name in names}

    def _pit(self, batch: Batch, row: int, fit: JointFit) -> float:
        """Probability of a lower redshift than the true one; NaN where that is not known."""
        if "true_parameters" not in batch:
            return math.nan
        true = batch["true_parameters"][row, self.names.index("zred")].double().cpu()
        return float(fit.posterior.cumulative(true[None])[0])

    # --- evaluation -----------------------------------------------------------------------------

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)


def _photometry_of(batch: Batch, row: int) -> Photometry:
    """Of one galaxy of a batch, on the CPU."""
    return photometry({name: values[row : row + 1].cpu() for name, values in batch.items()})


def _widening(rows: Mapping[str, Tensor], name: str) -> float:
    """The factor, 1 or more, by which 68% of the true values are within an interval."""
    true, middle, low, high = (rows[f"{name}{end}"] for end in ("_true", "", "_q16", "_q84"))
    error = true - middle
    width = torch.where(error > 0, high - middle, middle - low)
    ratio = (error.abs() / width)[(width > 0) & true.isfinite()]
    return float(ratio.quantile(COVERED).clamp(1, WIDEST)) if len(ratio) >= FEWEST else 1.0
