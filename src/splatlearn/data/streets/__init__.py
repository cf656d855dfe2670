"""A procedural world to drive through: streets seen by a spinning lidar and six cameras, with labels and boxes.

`classes.py` says which classes there are. A class is told by shape and place; colours, patterns and intensities vary
at random within every class and are drawn alike for all. The world of a scan is its lidar's frame at the scan's time:
x forward, y left, z up.
"""

from typing import TYPE_CHECKING, Any

from splatlearn.data.streets.classes import BOXED, CLASSES, IGNORED, PALETTE

if TYPE_CHECKING:
    from splatlearn.data.streets.scene import StreetScene, StreetsConfig, StreetsReader

__all__ = ["BOXED", "CLASSES", "IGNORED", "PALETTE", "StreetScene", "StreetsConfig", "StreetsReader"]


def __getattr__(name: str) -> Any:
    # Late, so that the processes that make drives do not import torch.
    if name in __all__:
        from splatlearn.data.streets import scene

        return getattr(scene, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
