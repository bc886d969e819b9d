"""The mathematics: advantages, losses, rows, weights, pass@k. Pure functions."""
