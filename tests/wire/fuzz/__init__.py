"""Requests that no client sends, at every door: none may break it or change what it refuses."""
