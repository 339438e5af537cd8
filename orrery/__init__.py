"""Orrery, a PyTorch Lightning model zoo for astronomy: ``from orrery import load``."""

from orrery.pretrained import load, names
from orrery.threads import choose_how_to_wait

__all__ = ["load", "names"]

choose_how_to_wait()  # before torch is imported
