"""Parts that two components use."""
