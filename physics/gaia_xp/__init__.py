"""Gaia's BP/RP spectra: instrument, noise, simulated stars."""
