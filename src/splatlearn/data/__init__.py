"""Scenes on disk, readers, worlds, sampling, augmentation."""
