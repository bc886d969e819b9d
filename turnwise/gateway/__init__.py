"""The data plane: one request in, one turn recorded, one reply out; a reward closes the rollout."""
