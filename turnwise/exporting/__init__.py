"""Registered models as tar archives: a PEFT folder as it is, or merged into its base."""
