"""Decoder layers whose forward and backward are written out over the kernels."""
