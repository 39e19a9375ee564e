"""An adapter is one row of a bank; a batch says which rows each of its tokens uses."""
