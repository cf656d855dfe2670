"""Encoders, one architecture family a file."""
