"""Evaluation: predict, score, plot, report; posterior files and sky maps."""
