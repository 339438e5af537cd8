"""How a galaxy makes its elements: yields, delays, and a galaxy of one zone."""
