"""Orrery, a PyTorch Lightning model zoo for astronomy: ``from orrery import load``."""

import os

# Before torch is imported: threads that wait do not spin. A step of zephyr on two busy cores takes
# 0.24 s in place of 2.0, on less busy ones 0.10 in place of 0.22.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from orrery.pretrained import load, names

__all__ = ["load", "names"]
