"""Many adapters on one base at once: each job trains a row of one bank, many rows a batch."""
