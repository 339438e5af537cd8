"""Galaxies: a simulated population, photometry, redshift labels."""
