"""Photometry of galaxies with a spectrum each, from a catalogue and files of spectra, or mocks."""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.base import Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.feniks import FeniksData, spectra_batch
from orrery.datamodules.feniks.defaults import PARAMETERS, SPECTRAL_NETWORK
from orrery.datamodules.feniks.mock_spectra import K_BAND, draw_spectra, pixels
from orrery.datamodules.feniks.mocks import Mocks
from orrery.datamodules.feniks.spectrum_columns import (
    DEFAULTS,
    NEAR_INFRARED,
    read_settings,
)
from orrery.datamodules.feniks.spectrum_files import (
    FEWEST,
    ObservedSpectrum,
    read_spectra,
)
from orrery.datamodules.feniks.spectrum_formats import text_of
from orrery.datamodules.feniks.spectrum_resolution import (
    LINE_SPREAD,
    resolution_of,
    with_pixels,
)
from orrery.datamodules.feniks.spectrum_rows import rows_of_spectra, some_of, stem
from orrery.datamodules.values import LARGEST, BadValue
from orrery.physics.sps.filters import pivot_wavelength
from orrery.physics.sps.population import fine_wavelengths
from orrery.tables import Catalogue, files_of, sha256

VECTORS = ("spectrum_wavelength", "spectrum_flux", "spectrum_error", "spectrum_good")
ANYWHERE = 20_000.0  # Angstrom, of the pixels of a row without a spectrum, none of which is good
SAME_FLUX = 5.0  # factor within which a spectrum and photometry agree, slit losses included


def _vector(role: str, unit: str | None, meaning: str, values: str) -> Column:
    return Column(
        role, unit, meaning, kind="vector", training="unused", prediction="chosen", special=values
    )


SPECTRA = {
    "id": Column(
        "id", None, "id, which names of files of spectra contain", kind="text",
        training="unused", prediction="chosen",
    ),
    "spectrum": Column(
        "spectrum", None, "file of the spectrum; blank: none", kind="text",
        training="unused", prediction="named",
    ),
    "spectrum_wavelength": _vector(
        "spectrum_wavelength", "AA", "in vacuum, of spectra in the catalogue itself", "rising"
    ),
    "spectrum_flux": _vector("spectrum_flux", "uJy", "flux by frequency", "NaN: not good"),
    "spectrum_error": _vector("spectrum_error", "uJy", "its error", "0 or NaN: not good"),
    "spectrum_good": _vector("spectrum_good", None, "whether pixels are good", "1 or 0"),
}  # fmt: skip


class FeniksSpectra(FeniksData):
    """`FeniksData` with a spectrum for some of the galaxies.

    In prediction a batch holds, besides photometry, of the longest spectrum's m pixels:
    ``spectrum_wavelength`` (batch, m), Angstrom in vacuum, rising; ``spectrum_flux`` and
    ``spectrum_error`` (batch, m), f_nu in uJy, 0 and 1 where a pixel is not ``spectrum_good``
    (bool), as all are of a galaxy without a spectrum; ``spectrum_resolution`` (batch,), wavelength
    over FWHM; and ``spectrum_covariance`` (batch, m, m), uJy^2, float64, of the pixels' errors, if
    any file has one. ``true_broad`` (batch,): 1 or 0, whether mock galaxies have broad lines.

    Args:
        spectra: a file, a pattern such as spec/\\*.fits, or a list of them. A file belongs to the
            row whose id, of the column ``columns.id``, is in its name; ``columns.spectrum`` names a
            column of files instead. A file may hold several, see `spectrum_files.read_spectra`.
        spectrum: how files are read, see `spectrum_columns.SpectrumSettings`.
        resolution: of the spectrograph, wavelength over FWHM; pixels that are wider count as well.
            null: that of the grating of the file, or of MOSFIRE in K, with a warning.
        wavelength_range: Angstrom, beyond which pixels are not used.
        signal_to_noise: of mock spectra, in 20 Angstrom, or several to draw from.
        mock_pixels: of mock spectra: first and last wavelength, and width of a pixel, Angstrom.
        broad_share: of the mock spectra in which H-beta lies, that have broad lines.
        population, parameters, nebular: of `FeniksData`; null: those of the training, and where
            nothing has been trained its defaults.
        photometry: other settings of `FeniksData`.
    """

    declared: ClassVar = FeniksData.declared | SPECTRA
    more_truths: ClassVar = (*FeniksData.more_truths, "broad")
    of_one_file: ClassVar = frozenset(("spectra", "spectrum"))

    def __init__(
        self,
        spectra: str | Sequence[str] | None = None,
        spectrum: Mapping[str, Any] | None = DEFAULTS,
        resolution: float | None = None,
        wavelength_range: Sequence[float] = NEAR_INFRARED,
        signal_to_noise: float | Sequence[float] = 5.0,
        mock_pixels: Sequence[float] = K_BAND,
        broad_share: float = 0.0,
        population: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        nebular: bool | None = None,
        **photometry: Any,
    ) -> None:
        super().__init__(
            population=population or SPECTRAL_NETWORK,
            parameters=parameters or PARAMETERS,
            nebular=nebular is None or nebular,
            **photometry,
        )
        self.spectra = [spectra] if isinstance(spectra, str) else list(spectra or [])
        if len(wavelength_range) != 2:
            raise ValueError(f"data.wavelength_range={wavelength_range}; expected two wavelengths")
        low, high = map(float, wavelength_range)
        self.reading = read_settings(
            spectrum, resolution=resolution and float(resolution), wavelength_range=(low, high),
            sentinels=self.sentinels,
        )  # fmt: skip
        ratios = [signal_to_noise] if isinstance(signal_to_noise, int | float) else signal_to_noise
        self.signal_to_noise = [float(ratio) for ratio in ratios]
        if not self.signal_to_noise or min(self.signal_to_noise) <= 0:
            raise ValueError(
                f"data.signal_to_noise={signal_to_noise}; expected numbers above 0, such as [3,5,8]"
            )
        if len(mock_pixels) != 3 or not 0 < mock_pixels[0] < mock_pixels[1] or mock_pixels[2] <= 0:
            raise ValueError(
                f"data.mock_pixels={list(mock_pixels)}; expected first and last wavelength and "
                f"width of a pixel, Angstrom, such as [19500,23800,8]"
            )
        self.mock_wavelength = pixels(*map(float, mock_pixels))
        if not 0 <= broad_share <= 1:
            raise ValueError(f"data.broad_share={broad_share}; expected a share, 0 to 1")
        self.broad_share = broad_share
        self._by_id: dict[str, ObservedSpectrum] = {}  # of the catalogue that is read
        self._failed: dict[str, str] = {}  # with `skip_bad`: id -> what is wrong with its spectrum
        self._read_files: tuple[Any, dict[str, dict[str, ObservedSpectrum] | str]] | None = None

    @property
    def line_spread(self) -> float:
        """Wavelength over FWHM of the spectrograph, of mocks where none is given."""
        return self.reading.resolution or LINE_SPREAD

    # --- mocks --------------------------------------------------------------------------------

    def _catalogue_of(self, mocks: Mocks) -> dict[str, np.ndarray]:
        """With spectra, in arrays, and whether they have broad lines."""
        drawn = draw_spectra(
            self.synthesis, mocks.parameters, mocks.history, self.mock_wavelength,
            self.line_spread, self.signal_to_noise, self.broad_share, self.seed,
        )  # fmt: skip
        return super()._catalogue_of(mocks) | {
            "spectrum_wavelength": np.tile(drawn.wavelength, (len(drawn.flux), 1)),
            "spectrum_flux": drawn.flux,
            "spectrum_error": drawn.error,
            "spectrum_good": np.ones(drawn.flux.shape),
            "true_broad": drawn.is_broad.astype(float),
        }

    def provenance(self) -> dict[str, Any]:
        record = super().provenance()
        if self.is_simulation or not (files := self._files_read()):
            return record
        digest = hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
        return record | {"spectra": len(files), "spectra_sha256": digest}

    def _files_read(self) -> list[str]:
        """Files of spectra: of ``spectra``, or those that a column names."""
        if "spectrum" not in self.columns:
            return self._files()
        with self.open("test") as catalogue:
            self._assign(catalogue)
        return list(self._read_files[1]) if self._read_files else []

    # --- files --------------------------------------------------------------------------------

    def _files(self) -> list[str]:
        """Those of ``spectra``, each once. Raises ``FileNotFoundError`` for a pattern of none."""
        found: dict[str, None] = {}
        for pattern in self.spectra:
            if os.path.isdir(pattern):
                raise IsADirectoryError(
                    f"data.spectra={pattern} is a folder; name its files: data.spectra="
                    f"'{os.path.join(pattern, '*.fits')}'"
                )
            files = files_of(pattern)
            if not files:
                raise FileNotFoundError(f"data.spectra={pattern}: there is no such file")
            found |= dict.fromkeys(files)
        return list(found)

    def _spectra_of(self, files: Sequence[str]) -> dict[str, dict[str, ObservedSpectrum] | str]:
        """File -> its spectra by id, or with ``skip_bad`` what is wrong with it; read once."""
        version = [(file, os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files]
        if self._read_files is None or self._read_files[0] != version:
            read: dict[str, dict[str, ObservedSpectrum] | str] = {}
            for file in files:
                try:
                    read[file] = read_spectra(file, self.reading, self._say_of_spectra)
                    for spectrum in read[file].values():  # type: ignore[union-attr]
                        self._refuse_without_rest_optical(spectrum, file)
                except (ValueError, OSError) as error:
                    if not self.skip_bad:
                        raise
                    read[file] = str(error)
            self._read_files = version, read
        return self._read_files[1]

    def _say_of_spectra(self, text: str) -> None:
        self.warn_once(f"spectra of {self.label}: {text}")

    def _refuse_without_rest_optical(self, spectrum: ObservedSpectrum, file: str) -> None:
        """Raise where no redshift brings what is known of galaxies at rest into a spectrum."""
        i = self.priors.names.index("zred")
        low, high = (1 + float(x[i]) for x in (self.priors.low, self.priors.high))
        rest = fine_wavelengths()
        first, last = float(rest[0]) * low, float(rest[-1]) * high
        wave = spectrum.wavelength[spectrum.good]
        if not ((wave > first) & (wave < last)).any():
            raise ValueError(
                f"{file}: covers {wave[0]:,.0f} to {wave[-1]:,.0f} Angstrom, where no galaxy at "
                f"redshift {low - 1:g} to {high - 1:g} has its {rest[0]:,.0f} to {rest[-1]:,.0f} "
                f"Angstrom: a spectrum of another band"
            )

    def _assign(self, catalogue: Catalogue) -> None:
        """Find the spectrum of each row, by ids or by the column of files."""
        role = "spectrum" if "spectrum" in self.columns else "id"
        name = located(self.declared, self.columns, catalogue, role).name
        if name not in catalogue.names:
            return  # which is refused with near matches where the column is read
        cells = [text_of(x) for chunk in catalogue.chunks([name]) for x in chunk[name]]
        keys = [key for key in cells if key not in ("", "nan", "None")]
        self._by_id, self._failed = {}, {}
        if role == "spectrum":
            found = {key: self._file_of_row(key, cells.index(key), name) for key in keys}
            if len(keys) > len(set(found.values())):
                twice = next(key for key in keys if cells.count(key) > 1)
                raise ValueError(
                    f"{self.label}: two rows have the spectrum '{twice}' in column '{name}'; "
                    f"expected a file for each"
                )
            for key, file in found.items():
                self._take(key, self._spectra_of(list(found.values()))[file], file)
        else:
            self._assign_by_id(keys)
        without = [cell for cell in cells if cell not in self._by_id and cell not in self._failed]
        if without:
            names = f": {some_of(without)}" if role == "id" else ""
            self.warn_once(
                f"{self.label}: {len(without):,} of {len(cells):,} rows have no spectrum, and are "
                f"fitted by their photometry alone{names}"
            )

    def _assign_by_id(self, ids: Sequence[str]) -> None:
        """By a file's own ids, or else by its name."""
        names: dict[str, str] = {}
        spectra: dict[str, tuple[str, ObservedSpectrum | str]] = {}
        for file, read in self._spectra_of(self._files()).items():
            if isinstance(read, str):
                names[file], spectra[file] = stem(file), (file, read)
                continue
            for key, spectrum in read.items():
                text = f"{file}, spectrum of {key}" if key else file
                names[text], spectra[text] = key or stem(file), (file, spectrum)
        found, others = rows_of_spectra(names, ids, self.label)
        if others:
            self.warn_once(
                f"{self.label}: {len(others):,} spectra have no row, and are not used: "
                f"{some_of(others)}"
            )
        pairs = [f"{key} of {os.path.basename(text)}" for key, text in found.items()]
        self.print_once(f"{self.label}: rows of spectra, by ids in names: {some_of(pairs)}")
        for key, text in found.items():
            file, one = spectra[text]
            self._take(key, one if isinstance(one, str) else {"": one}, file)

    def _take(self, key: str, read: dict[str, ObservedSpectrum] | str, file: str) -> None:
        if isinstance(read, str):
            self._failed[key] = read
        elif len(read) > 1:
            raise ValueError(
                f"{file}: holds {len(read)} spectra; expected one, in a file of column "
                f"data.columns.spectrum; give such a file by data.spectra"
            )
        else:
            self._by_id[key] = next(iter(read.values()))

    def _file_of_row(self, name: str, row: int, column: str) -> str:
        """A file of the column of files: as it is named, or beside the catalogue or the spectra."""
        folders = [Path(), *(Path(p).parent for p in (self.path or "", *self.spectra) if p)]
        for folder in folders:
            if (folder / name).is_file():
                return str(folder / name)
        raise FileNotFoundError(
            f"{self.label}: column '{column}': there is no file {name} (row {row:,}, counted from "
            f"0), neither here nor beside the catalogue; correct the name, or leave it blank: no "
            f"spectrum"
        )

    # --- columns ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        roles = dict(super().roles(catalogue, training))
        if training:
            return roles

        def here(role: str) -> CatalogueColumn:
            return located(self.declared, self.columns, catalogue, role)

        if self.spectra or "spectrum" in self.columns:
            role = "spectrum" if "spectrum" in self.columns else "id"
            roles[role] = here(role)
            self._assign(catalogue)
        elif any(here(role).name in catalogue.names for role in VECTORS):
            roles |= {role: here(role) for role in VECTORS}
        else:
            raise ValueError(
                f"{self.label} has no spectra: name their files, data.spectra='spec/*.fits', or "
                f"take data=feniks for photometry alone (arrays of a table are in the columns "
                f"{', '.join(repr(role) for role in VECTORS)})"
            )
        return roles

    # --- values -------------------------------------------------------------------------------

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        batch = super().to_batch(columns, training)
        if training:
            return batch
        if "spectrum_flux" in columns:
            spectra = self._of_table(columns)
        else:
            keys = [text_of(key) for key in columns["spectrum" if "spectrum" in columns else "id"]]
            for key in keys:
                if key in self._failed:
                    raise ValueError(self._failed[key])
            spectra = self._padded([self._by_id.get(key) for key in keys])
        batch |= spectra
        if not self.is_simulation:
            self._compare_with_photometry(batch)
        if "true_broad" in columns:
            batch["true_broad"] = torch.from_numpy(columns["true_broad"]).float()
        return batch

    def _padded(self, spectra: Sequence[ObservedSpectrum | None]) -> Rows:
        """Spectra in the length of the longest of the catalogue; of None no pixel is good."""
        longest = max((len(s.flux) for s in self._by_id.values()), default=1)
        n = len(spectra)
        wavelength = np.full((n, longest), ANYWHERE)
        flux, error = np.zeros((n, longest)), np.ones((n, longest))
        good = np.zeros((n, longest), bool)
        resolution = np.full(n, self.line_spread)
        for row, each in enumerate(spectra):
            if each is not None:
                m = len(each.flux)
                wavelength[row] = np.append(
                    each.wavelength, np.full(longest - m, each.wavelength[-1])
                )
                flux[row, :m], error[row, :m], good[row, :m] = each.flux, each.error, each.good
                resolution[row] = each.resolution
        batch = spectra_batch(wavelength, flux, error, good, resolution)
        if any(each.covariance is not None for each in self._by_id.values()):
            covariance = torch.diag_embed(torch.from_numpy(error).square())
            for row, each in enumerate(spectra):
                if each is not None and each.covariance is not None:
                    m = len(each.flux)
                    covariance[row, :m, :m] = torch.from_numpy(each.covariance)
            batch["spectrum_covariance"] = covariance
        return batch

    def _of_table(self, columns: Mapping[str, np.ndarray]) -> Rows:
        """Spectra of arrays in the catalogue, which are in vacuum."""
        wavelength, flux, error, good = (columns[role] for role in VECTORS)
        for role, values in zip(VECTORS, (wavelength, flux, error, good), strict=True):
            if values.shape != flux.shape:
                raise ValueError(
                    f"column '{self._name(role)}' has {values.shape[1]} numbers per row, and "
                    f"'{self._name('spectrum_flux')}' has {flux.shape[1]}; expected as many"
                )
        rising = np.isfinite(wavelength).all(1) & (wavelength > 0).all(1)
        rising &= (np.diff(wavelength, axis=1) > 0).all(1) & (wavelength < LARGEST).all(1)
        self._refuse_row("spectrum_wavelength", ~rising, wavelength, "rising numbers above 0")
        flags = (good == 0) | (good == 1) | np.isnan(good)
        self._refuse_row("spectrum_good", ~flags.all(1), good, "1, 0, or NaN for 0")
        low, high = self.reading.wavelength_range
        usable = (good == 1) & (np.abs(flux) < LARGEST) & (error > 0) & (error < LARGEST)
        usable &= (wavelength >= low) & (wavelength <= high)
        few = usable.any(1) & (usable.sum(1) < FEWEST)
        self._refuse_row("spectrum_flux", few, flux, f"{FEWEST} good pixels, or none")
        middle = np.median(wavelength, axis=1)
        width = np.median(np.diff(wavelength, axis=1), axis=1)
        given = self.line_spread if self.is_simulation else self.reading.resolution
        line_spread = resolution_of(None, given, self.label, self._say_of_spectra)
        seen = [with_pixels(line_spread, a, b) for a, b in zip(middle, width, strict=True)]
        flux, error = np.where(usable, flux, 0.0), np.where(usable, error, 1.0)
        return spectra_batch(wavelength, flux, error, usable, np.array(seen))

    def _name(self, role: str) -> str:
        return str(self.columns.get(role, self.declared[role].name))

    def _refuse_row(self, role: str, bad: np.ndarray, values: np.ndarray, expected: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            what = f"column '{self._name(role)}': {np.array2string(values[row], threshold=4)}"
            raise BadValue(
                what, row, int(bad.sum()), f"{expected}: drop those rows or correct them"
            )

    @functools.cached_property
    def _pivots(self) -> list[float]:
        """Wavelengths of the bands, Angstrom; none where their curves are not at hand."""
        try:
            return [pivot_wavelength(band) for band in self.filters]
        except (ValueError, ImportError):
            return []

    def _compare_with_photometry(self, batch: Rows) -> None:
        """Warn where a spectrum and a band within it differ by more than a slit can lose."""
        wave, good = batch["spectrum_wavelength"], batch["spectrum_good"]
        known = good.sum(1) >= FEWEST
        mean = batch["spectrum_flux"].sum(1) / good.sum(1).clamp_min(1)
        for i, pivot in enumerate(self._pivots):
            flux, error = batch["flux"][:, i], batch["flux_error"][:, i]
            inside = known & (wave[:, 0] < pivot) & (wave[:, -1] > pivot)
            inside &= batch["observed"][:, i] & ~batch["is_limit"][:, i] & (flux > 5 * error)
            ratio = mean / flux
            odd = inside & ~((ratio > 1 / SAME_FLUX) & (ratio < SAME_FLUX))
            if odd.any():
                row = int(odd.nonzero()[0, 0])
                self.warn_once(
                    f"{self.label}: the mean flux of a spectrum is {float(mean[row]):.3g} uJy, "
                    f"{float(ratio[row]):.2g} times the {float(flux[row]):.3g} uJy of its galaxy "
                    f"in {list(self.bands)[i]}: is the unit right? data.spectrum.units.flux states "
                    f"it"
                )
                return
