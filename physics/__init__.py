"""Forward physics: pure functions on tensors, each with its source."""
