"""The mathematics: advantages, losses, rows, weights, packing, pass@k. Pure functions."""
