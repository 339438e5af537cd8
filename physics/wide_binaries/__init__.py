"""Wide binaries: projected Keplerian motion, Gaia's astrometry of pairs, stellar sequences."""
