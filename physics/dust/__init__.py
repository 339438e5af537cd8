"""Interstellar dust: a synthetic sky, and extinction along lines of sight."""
