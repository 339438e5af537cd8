"""Synthesis of galaxy photometry: populations of stars, dust, filters."""
