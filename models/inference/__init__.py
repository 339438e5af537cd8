"""Samplers and variational inference that two components use."""
