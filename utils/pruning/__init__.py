"""Stages 05 and 07: which blocks can be removed."""
