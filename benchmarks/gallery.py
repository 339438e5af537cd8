"""The figures of README and docs, from evaluations of the shipped checkpoints.

    python -m benchmarks.gallery zephyr dust
    python -m benchmarks.gallery --data <folder of the files that are named below>    # all of them

`gc_emulator`, `gyro` and `abundances` are drawn for real stars, whose files are not shipped.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

FIGURES = {  # component: the figure of its evaluation, and what it is evaluated on
    "zephyr": ("redshifts", []),
    "gyro": ("gyrochrones", ["data.path={data}/clusters.csv"]),
    "scatter_vae": ("spectra", []),
    "gc_emulator": ("profiles", ["data=gc_profile", "data.path={data}/NGC0104.hdf"]),
    "dust": ("sky", []),
    "mass_net": ("diagram", []),
    "sed_emulator": ("recovered", []),
    "gems": ("actions", []),
    "abundances": ("pattern", ["data.path={data}/ajabacb6t6_mrt.txt"]),
    "feniks": ("candidates", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("components", nargs="*", help=f"of {', '.join(FIGURES)}; none: all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="files of real stars")
    parser.add_argument("--out", type=Path, default=Path("figures/gallery"))
    options = parser.parse_args()
    if unknown := set(options.components) - set(FIGURES):
        parser.error(f"no figure of {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for component in options.components or FIGURES:
        figure, words = FIGURES[component]
        words = [word.format(data=options.data) for word in words]
        with TemporaryDirectory() as folder:
            evaluate = [sys.executable, "-m", "orrery.evaluate", f"checkpoint={component}"]
            subprocess.run([*evaluate, *words, f"hydra.run.dir={folder}"], check=True)
            shutil.copy(Path(folder) / f"{figure}.png", options.out / f"{component}.png")


if __name__ == "__main__":
    main()
