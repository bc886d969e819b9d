"""Rollouts: their list, one with every turn, and a group side by side."""
