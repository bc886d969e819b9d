"""AWS's shapes of the same calls."""
