"""Photometry of galaxies: the generator and Bagpipes at the same parameters, and their speeds.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.sed_emulator generator     # 4 min of CPU
    python -m benchmarks.sed_emulator speed         # a minute
    python -m benchmarks.sed_emulator summarise multirun/...   # see benchmarks.sed_emulator_sweep

`generator`: 600 galaxies (seed 0), 150 in each bin of redshift, of 10^10 Msun formed, in the 20
bands of experiment=sed_emulator_reference; both programs have the same populations, transmission
curves and cosmology. `case`: "free" without dust, "dust", and "nebular", dust and gas; the IGM is
always there. Bagpipes has its dust `Salim` without a bump, eta = 1, and its bins of star formation
in reverse order: it numbers them from the oldest. It samples spectra at points, at a resolution of
100 by default, which has an error of its own: `generator` is |generator - Bagpipes at a resolution
of 1000|, `bagpipes` is |Bagpipes at 100 - at 1000|, medians and 95th percentiles in mag (in dex for
log_stellar_mass and log_sfr, which have no resolution); `offset` is the median of the first with
its sign. `galaxies` is the hash of the parameters. Writes benchmarks/sed_emulator_generator.csv.

`speed`: CPU milliseconds per galaxy, one thread, best of five, and how many times faster than
Bagpipes and than the generator in this run; `matmul_ms` is that of a 1024^3 float32 matrix product.
Bagpipes is called through `model.update` at a resolution of 100. "sed_emulator" is the shipped
checkpoint, which adds up the light of the bins of star formation; "direct" is the network of the
paper with random weights, on which its time does not depend. Writes
benchmarks/sed_emulator_speed.csv.
"""

import argparse
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import itertools

import numpy as np
import torch
from torch import Tensor

from orrery import pretrained
from orrery.benchmarks.dust_hmc import write_rows
from orrery.benchmarks.sed_emulator_sweep import summarise
from orrery.evaluation.timing import best_of_five
from orrery.models.sed_emulator.networks import DirectNetwork
from orrery.physics.sps.filters import Filter, load_filter
from orrery.physics.sps.libraries import load_population
from orrery.physics.sps.star_formation import bin_edges
from orrery.physics.sps.synthesis import RATIOS, Synthesis

BANDS = (
    *(f"lsst_baseline_{band}" for band in "ugrizy"),
    *(f"vista_vircam_{band}" for band in ("Z", "Y", "J", "H", "Ks")),
    *("spitzer_irac_ch1", "spitzer_irac_ch2"),
    *(f"jwst_f{band}w" for band in ("090", "115", "150", "200", "277", "356", "444")),
)
Z_BINS = (0.5, 1.0, 2.0, 3.0, 3.8)
PER_BIN = 150
CASES = {"free": (False, False), "dust": (True, False), "nebular": (True, True)}  # dust, gas
LOG_MASS = 10.0
FINE = 1000.0  # resolution of Bagpipes with which the generator is compared
GENERATOR_COLUMNS = (
    *("case", "quantity", "z_low", "z_high", "n", "offset", "generator", "generator_p95"),
    *("bagpipes", "bagpipes_p95", "galaxies"),
)
SPEED_COLUMNS = (
    *("method", "case", "batch", "ms", "per_second", "faster_than_bagpipes"),
    *("faster_than_generator", "matmul_ms"),
)
Row = dict[str, Any]
Parameters = dict[str, np.ndarray]


def draw(seed: int) -> Parameters:
    """Parameters of galaxies by name, each (n,), sorted by bin of redshift."""
    rng = np.random.default_rng(seed)
    bins = itertools.pairwise(Z_BINS)
    zred = np.concatenate([rng.uniform(low, high, PER_BIN) for low, high in bins])
    n = len(zred)
    return {
        "zred": zred,
        "logzsol": rng.uniform(-1.9, 0.19, n),
        **{name: rng.normal(0, 0.5, n) for name in RATIOS},
        "dust2": rng.uniform(0, 2, n),
        "dust_index": rng.uniform(-0.7, 0.3, n),
        "gas_logu": rng.uniform(-4, -1, n),
    }


# --- Bagpipes -------------------------------------------------------------------------------------


class Bagpipes:
    """Photometry by Bagpipes of galaxies with the parameters of `draw`."""

    def __init__(self, parameters: Parameters, case: str, resolution: float | None = None) -> None:
        import bagpipes

        if resolution is not None:
            bagpipes.config.R_phot = bagpipes.config.R_other = resolution
        edges = 1e3 * bin_edges(torch.from_numpy(parameters["zred"])).numpy()  # Myr
        self.components = [
            components({name: float(x[i]) for name, x in parameters.items()}, edges[i], case)
            for i in range(len(edges))
        ]
        with tempfile.TemporaryDirectory() as folder:
            curves = [_written(load_filter(name), Path(folder)) for name in BANDS]
            self.model = bagpipes.model_galaxy(
                self.components[0], filt_list=curves, phot_units="mujy"
            )

    def run(self) -> dict[str, np.ndarray]:
        """AB magnitudes (n,) by band, and log10 of living stars, Msun, and SFR, Msun/yr."""
        found = []
        for each in self.components:
            self.model.update(each)
            if self.model.sfh.unphysical:
                raise RuntimeError(f"Bagpipes calls a history unphysical: {each}")
            mass, sfr = float(self.model.sfh.stellar_mass), float(self.model.sfh.sfr)
            magnitudes = 23.9 - 2.5 * np.log10(self.model.photometry)
            found.append([*magnitudes, mass, math.log10(sfr)])
        names = (*BANDS, "log_stellar_mass", "log_sfr")
        return dict(zip(names, np.array(found).T, strict=True))

    def seconds(self, n: int) -> float:
        """CPU seconds per galaxy, of the first ``n``, best of five."""

        def update() -> None:
            for each in self.components[:n]:
                self.model.update(each)

        return best_of_five(update) / n


def components(p: dict[str, float], edges: np.ndarray, case: str) -> dict[str, Any]:
    """Bagpipes' description of one galaxy; ``edges`` of star formation: (8,), Myr."""
    dust, gas = CASES[case]
    history = {
        "massformed": LOG_MASS,
        "metallicity": 10 ** p["logzsol"],
        "bin_edges": edges.tolist(),
        **{f"dsfr{i}": p[name] for i, name in enumerate(reversed(RATIOS), 1)},
    }
    model: dict[str, Any] = {"redshift": p["zred"], "continuity": history, "t_bc": 0.01}
    if dust:
        model["dust"] = {
            "type": "Salim", "B": 0.0, "delta": p["dust_index"], "eta": 1.0,
            "Av": 2.5 * math.log10(math.e) * p["dust2"], "qpah": 2.0, "umin": 1.0, "gamma": 0.01,
        }  # fmt: skip
    if gas:
        model["nebular"] = {"logU": p["gas_logu"]}
    return model


def _written(band: Filter, folder: Path) -> str:
    path = folder / f"{band.name}.dat"
    np.savetxt(path, np.stack([band.wavelength, band.transmission], 1), fmt="%.10g")
    return str(path)


# --- the generator --------------------------------------------------------------------------------


class Generator:
    """Photometry by `physics.sps` of galaxies with the parameters of `draw`."""

    def __init__(self, parameters: Parameters, case: str) -> None:
        dust, gas = CASES[case]
        bands = [load_filter(name) for name in BANDS]
        self.synthesis = Synthesis(load_population("bc03_miles"), bands, Z_BINS[-1], gas)
        fixed = {
            "logmass": np.full(len(parameters["zred"]), LOG_MASS),
            "dust1_fraction": np.zeros(len(parameters["zred"])),
            "gas_logz": parameters["logzsol"],
        }
        columns = parameters | fixed
        if not dust:
            columns |= {"dust2": np.zeros_like(columns["dust2"])}
        stacked = np.stack([columns[name] for name in self.synthesis.names], 1)
        self.parameters = torch.from_numpy(stacked).float()

    def run(self) -> dict[str, np.ndarray]:
        """As `Bagpipes.run`."""
        magnitudes = dict(
            zip(BANDS, self.synthesis.magnitudes(self.parameters).numpy().T, strict=True)
        )
        found = self.synthesis.derived(self.parameters)
        return magnitudes | {name: found[name].numpy() for name in ("log_stellar_mass", "log_sfr")}

    def seconds(self, n: int) -> float:
        """CPU seconds per galaxy, of batches of ``n``, best of five."""
        repeats = math.ceil(n / len(self.parameters))
        batch = self.parameters.repeat(repeats, 1)[:n]
        return best_of_five(lambda: self.synthesis.magnitudes(batch)) / n


# --- the commands ---------------------------------------------------------------------------------


def generator_rows() -> Iterator[Row]:
    parameters = draw(0)
    table = np.stack(list(parameters.values()))
    galaxies = hashlib.sha256(table.tobytes()).hexdigest()[:12]
    # by resolution first: Bagpipes has it as a global setting
    default = {case: Bagpipes(parameters, case).run() for case in CASES}
    fine = {case: Bagpipes(parameters, case, FINE).run() for case in CASES}
    for case in CASES:
        ours = Generator(parameters, case).run()
        for low, high in itertools.pairwise(Z_BINS):
            rows = (parameters["zred"] >= low) & (parameters["zred"] < high)
            for quantity, values in ours.items():
                truth = fine[case][quantity][rows]
                difference = values[rows] - truth
                own = np.abs(default[case][quantity][rows] - truth)
                yield {
                    "case": case, "quantity": quantity, "z_low": low, "z_high": high,
                    "n": int(rows.sum()), "galaxies": galaxies,
                    "offset": float(np.median(difference)),
                    "generator": float(np.median(np.abs(difference))),
                    "generator_p95": float(np.quantile(np.abs(difference), 0.95)),
                    "bagpipes": float(np.median(own)),
                    "bagpipes_p95": float(np.quantile(own, 0.95)),
                }  # fmt: skip


def speed_rows() -> Iterator[Row]:
    square = torch.ones(1024, 1024)
    matmul_ms = 1e3 * best_of_five(lambda: square @ square)
    parameters = draw(0)
    bagpipes = {case: Bagpipes(parameters, case).seconds(100) for case in CASES}
    generator = {case: Generator(parameters, case).seconds(1000) for case in CASES}

    def row(method: str, case: str, batch: int, seconds: float) -> Row:
        return {
            "method": method, "case": case, "batch": batch, "ms": 1e3 * seconds,
            "per_second": 1 / seconds, "matmul_ms": matmul_ms,
            "faster_than_bagpipes": bagpipes[case] / seconds,
            "faster_than_generator": generator[case] / seconds,
        }  # fmt: skip

    for case in CASES:
        yield row("Bagpipes", case, 1, bagpipes[case])
        yield row("generator", case, 1000, generator[case])
    yield row("generator", "dust", 1, Generator(parameters, "dust").seconds(1))
    p = Generator(parameters, "dust").parameters
    for name, emulate in emulators().items():
        for n, repeats in ((2048, 40), (1, 1000)):
            batch = p[torch.arange(n) % len(p)]
            seconds = best_of_five(partial(repeat, emulate, batch, repeats))
            yield row(name, "dust", n, seconds / n / repeats)


def repeat(emulate: Callable[[Tensor], Tensor], parameters: Tensor, times: int) -> None:
    for _ in range(times):
        emulate(parameters)


def emulators() -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, functions of parameters (n, p) to magnitudes (n, bands)."""
    model = pretrained.load("sed_emulator")
    n_bands = len(BANDS)
    wide, narrow = (
        DirectNetwork(model.names, n_bands, 256, 3),
        DirectNetwork(model.names, n_bands, 32, 5),
    )
    return {
        "sed_emulator": model.emulate,
        "direct 3 x 256": wide.requires_grad_(False),
        "direct 5 x 32": narrow.requires_grad_(False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("generator", "speed", "summarise"))
    parser.add_argument("folder", type=Path, nargs="?", help="of a sweep, for summarise")
    parser.add_argument("--out", type=Path, help="by default benchmarks/sed_emulator_<command>.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "summarise":
        if options.folder is None:
            parser.error("summarise needs the folder of a sweep, such as multirun/sed_emulator/...")
        summarise(options.folder)
        return
    run, columns = {
        "generator": (generator_rows, GENERATOR_COLUMNS),
        "speed": (speed_rows, SPEED_COLUMNS),
    }[options.command]
    with torch.inference_mode():
        rows = list(run())
    write_rows(options.out or Path(f"benchmarks/sed_emulator_{options.command}.csv"), rows, columns)
    if options.command == "speed":
        for row in rows:
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v)
                            for k, v in row.items()))  # fmt: skip
        return
    for case in CASES:
        for low in Z_BINS[:-1]:
            chosen = [
                r
                for r in rows
                if r["case"] == case and r["z_low"] == low and r["quantity"] in BANDS
            ]
            worst = max(chosen, key=lambda r: r["generator"])
            print(
                f"{case}, z from {low}: {worst['generator']:.4f} mag in the worst band "
                f"({worst['quantity']}); Bagpipes' own {max(r['bagpipes'] for r in chosen):.4f}"
            )


if __name__ == "__main__":
    main()
