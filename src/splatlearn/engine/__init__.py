"""Trainable objects, the loop, checkpoints, logs, report."""
