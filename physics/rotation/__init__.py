"""Stellar rotation: gyrochrones, stars of asteroseismic age."""
