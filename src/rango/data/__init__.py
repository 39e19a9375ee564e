"""From a file of samples to batches: read, render with the chat template, tokenize, mask, pack."""
