"""Learners: the torch one (one step, save, restore), its process, and the torch-free handle."""
