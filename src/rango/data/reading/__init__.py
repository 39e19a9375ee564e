"""Bytes become examples: files found, recognised by content, streamed, entry by entry."""
