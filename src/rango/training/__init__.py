"""The config, the optimizer, the checkpoint, the loop."""
