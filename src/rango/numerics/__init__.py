"""The plain statement of the mathematics: pure functions on tensors, the reference for kernels."""
