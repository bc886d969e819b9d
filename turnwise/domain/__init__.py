"""The nouns and the rules they keep: frozen values on the standard library and numpy only."""
