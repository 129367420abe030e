"""Stage 03: what predictions are worth, in plain NumPy and pandas."""
