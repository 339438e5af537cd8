"""Network layers and densities that two components use."""
