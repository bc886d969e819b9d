"""Of all tests."""

from hypothesis import settings

# Machines are noisy: how long an example takes says nothing about the code.
settings.register_profile("turnwise", deadline=None)
settings.load_profile("turnwise")
