"""The classes of the procedural rooms: fixed ids, in the order of `CLASSES`; -1 is ignored."""

CLASSES: tuple[str, ...] = (
    "wall",
    "floor",
    "ceiling",
    "door",
    "window",
    "table",
    "chair",
    "sofa",
    "bed",
    "cabinet",
    "bookshelf",
    "desk",
    "lamp",
    "plant",
    "picture",
    "clutter",
)
LABELS: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
IGNORED = -1
STRUCTURE = ("wall", "floor", "ceiling")
"""Classes that are surfaces of the room itself and have no box."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (174, 199, 232),
    (152, 223, 138),
    (220, 220, 220),
    (214, 39, 40),
    (23, 190, 207),
    (255, 152, 150),
    (188, 189, 34),
    (140, 86, 75),
    (255, 187, 120),
    (31, 119, 180),
    (148, 103, 189),
    (247, 182, 210),
    (255, 221, 40),
    (44, 160, 44),
    (196, 156, 148),
    (90, 90, 110),
)
"""One RGB colour (0 to 255) a class, for pictures of labels."""
