"""Decoding with a KV cache: greedy and sampled."""
