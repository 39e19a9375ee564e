"""Tables, plots, the model card and the HTML report, from plain data."""
