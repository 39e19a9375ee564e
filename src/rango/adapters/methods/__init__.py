"""One file a method: its tensors in a row, how they start, and the ΔW they stand for."""
