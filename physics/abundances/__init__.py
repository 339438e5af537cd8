"""Chemical abundances of stars: names, solar scales, classes, trends, masses of galaxies."""
