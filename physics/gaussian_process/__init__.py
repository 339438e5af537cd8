"""Gaussian processes on HEALPix x log distance: covariances and their approximations."""
