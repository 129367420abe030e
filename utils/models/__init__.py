"""Encoders and CNNs: loading, training, predictions, size and speed."""
