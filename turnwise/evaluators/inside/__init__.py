"""What the evaluators' own interpreter runs: standard library only, never imported here."""
