"""Atomic commits, digests, safe names: everything that reaches the disk goes through here."""
