"""What two or more stages need. Nothing here parses a command line, chooses a path or exits."""
