"""One module per checkpoint file format."""
