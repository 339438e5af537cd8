"""Derive ``physics/gaia_xp/gaia_xp.npz`` from GaiaXPy: ``python -m benchmarks.xp_instrument``.

The package (BSD-3) carries the mean instrument of DR3 as text; the zoo keeps of it the product of
the two matrices of each band, and the dispersion where the response is tabulated.
"""

import argparse
import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

MODELS = {"bp": "bpC03_v375wi", "rp": "rpC03_v142r"}
OUT = Path(__file__).parent.parent / "physics/gaia_xp/gaia_xp.npz"


def derive(folder: Path) -> dict[str, np.ndarray]:
    """``folder``: GaiaXPy's ``config``."""
    found: dict[str, np.ndarray] = {}
    for band, model in MODELS.items():
        csv.field_size_limit(10**7)
        with (folder / f"{model}_bases.csv").open(newline="") as file:
            (bases,) = csv.DictReader(file)
        n = int(bases["nBases"])
        inverse, transformation = (
            np.array(bases[key].strip("()").split(","), float).reshape(n, -1)
            for key in ("inverseBasesCoefficients", "transformationMatrix")
        )
        low, high = float(bases["normRangeMin"]), float(bases["normRangeMax"])
        start, end = float(bases["pwlRangeMin"]), float(bases["pwlRangeMax"])
        slope = (high - low) / (end - start)
        dispersion = np.genfromtxt(folder / f"{model}_dispersion.csv", delimiter=",")
        wavelength, response = np.genfromtxt(folder / f"{model}_response.csv", delimiter=",")
        pseudo = CubicSpline(*dispersion)(wavelength)
        found |= {
            f"{band}_functions": transformation @ inverse,
            f"{band}_wavelength": wavelength,
            f"{band}_response": response,
            f"{band}_theta": low + slope * (pseudo - start),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    spec = find_spec("gaiaxpy")
    installed = Path(spec.origin).parent / "config" if spec and spec.origin else None
    parser.add_argument("--config", type=Path, default=installed, help="GaiaXPy's config folder")
    folder = parser.parse_args().config
    if folder is None:
        parser.error("GaiaXPy is not installed: pip install gaiaxpy, or name its --config folder")
    np.savez_compressed(OUT, **derive(folder))  # type: ignore[arg-type]
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
