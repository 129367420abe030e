"""Shared by all stages: output folders, logging, command lines, errors and files."""
