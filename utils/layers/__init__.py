"""Stage 04: what each layer of an encoder knows."""
