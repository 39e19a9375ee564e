"""Chat templates: the built-in ones, which one a tokenizer uses, and what it renders."""
