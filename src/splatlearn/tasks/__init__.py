"""Ways to measure an encoder, one file each."""
