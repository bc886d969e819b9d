"""Uploaded evaluators: unpacked, built and run in a sandbox, their rows joined to rollouts."""
