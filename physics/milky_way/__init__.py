"""The Milky Way: its frame, potentials, orbits of stars and clusters, and their actions."""
