"""Ways to pre-train, one file each."""
