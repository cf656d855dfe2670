"""Losses that more than one recipe or task uses."""
