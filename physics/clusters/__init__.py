"""Globular clusters: lowered isothermal models, their stars and profiles."""
