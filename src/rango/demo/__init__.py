"""The embedded base, its data, and the comparison of methods on them."""
