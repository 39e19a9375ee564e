"""Where a run's events go: always a file."""
