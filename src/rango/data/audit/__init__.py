"""What may be wrong with a data set, found before a model learns it."""
