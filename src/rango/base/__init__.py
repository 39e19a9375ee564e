"""The frozen model: streamed, quantized loading, and which of its modules can be adapted."""
