"""Figures and reports. They take numpy arrays and plain numbers, and import no model."""
