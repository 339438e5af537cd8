"""Orrery, a PyTorch Lightning model zoo for astronomy: ``from orrery import load``."""

from orrery.pretrained import load, names

__all__ = ["load", "names"]
