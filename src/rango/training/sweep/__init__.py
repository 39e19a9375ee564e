"""A sweep: candidates of a space train as rows of one bank, and losers give their rows away."""
