"""A procedural indoor world: furnished rooms, filmed with an RGB-D camera, with labels, boxes and meshes.

A class is told by shape and place; colours and patterns vary at random within every class.
"""

from typing import TYPE_CHECKING, Any

from splatlearn.data.rooms.classes import CLASSES, IGNORED, PALETTE

if TYPE_CHECKING:
    from splatlearn.data.rooms.scene import RoomMesh, RoomsConfig, RoomsReader, RoomsScene

__all__ = ["CLASSES", "IGNORED", "PALETTE", "RoomMesh", "RoomsConfig", "RoomsReader", "RoomsScene"]


def __getattr__(name: str) -> Any:
    # Late, so that the processes that make rooms do not import torch.
    if name in __all__:
        from splatlearn.data.rooms import scene

        return getattr(scene, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
