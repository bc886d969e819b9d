"""`python -m turnwise.cli`."""

from turnwise.cli import main

main()
