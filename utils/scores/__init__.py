"""Stage 03: scores of predictions, their intervals and verdicts, in plain NumPy and pandas."""
