"""Stage 04: measurements of each layer of an encoder."""
