"""Stages 02 and 06: encoders, CNNs, their training, their predictions, and what they cost."""
