"""The nouns: packed rows of cameras, images, points, Gaussians, boxes and tokens."""

from splatlearn.structures.cameras import Cameras
from splatlearn.structures.gaussians import SH_C0, Gaussians
from splatlearn.structures.images import Frames, Images
from splatlearn.structures.packed import Batch, Packed
from splatlearn.structures.points import Boxes, Points, Tokens

__all__ = ["SH_C0", "Batch", "Boxes", "Cameras", "Frames", "Gaussians", "Images", "Packed", "Points", "Tokens"]
