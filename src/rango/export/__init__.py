"""Out of Rango: merged checkpoints that any tool of the field reads."""
