"""Stage 01: from recordings to clips on disk."""
