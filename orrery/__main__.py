"""The entry points where there is no clone: ``python -m orrery train model=zephyr``."""

import runpy
import sys

HELP = """\
usage: python -m orrery {train,evaluate,export} [key=value ...]

  train      train a component of the zoo:        python -m orrery train model=zephyr
  evaluate   evaluate a checkpoint, or apply it:  python -m orrery evaluate checkpoint=zephyr
  export     write it for other programs:         python -m orrery export checkpoint=gyro to=folder

python -m orrery train --help lists the settings. In a clone, python train.py is the same."""


def main() -> None:
    entry_point = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if entry_point in ("--help", "-h"):
        print(HELP)
    elif entry_point in ("train", "evaluate", "export"):
        del sys.argv[1]
        # as `python -m orrery.train`: by this name Lightning starts the other processes of ddp
        runpy.run_module(f"orrery.{entry_point}", run_name="__main__", alter_sys=True)
    else:
        sys.exit(f"error: there is no entry point '{entry_point}'\n\n{HELP}")


if __name__ == "__main__":
    main()
