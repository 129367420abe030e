"""Stage 08: a trained model on long recordings."""
