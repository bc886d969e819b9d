"""The doors: wire protocols in, nouns through, wire protocols out."""
