"""The classes of the procedural streets: fixed ids, in the order of `CLASSES`; -1 is ignored (the sky).

What tells them apart is shape and place. Colours, patterns and how well they reflect a laser are drawn alike for all.

| class | shape and place |
|---|---|
| road | smooth, the lowest of the ground, between the kerbs; its markings belong to it |
| pavement | smooth, a kerb higher than the road beside it; the kerb belongs to it |
| terrain | ground that is neither: uneven, behind or beside the pavement |
| building | tall walls with windows, doors and a roof |
| barrier | garden walls and fences, long and low |
| pole | thin, straight, upright: lamps, and what carries signs and lights |
| traffic sign | a small flat plate on a pole |
| traffic light | a small box with three hooded lamps on a pole |
| trunk | rougher and thicker than a pole, bent or forked, below a crown |
| vegetation | a cloud of leaves: crowns, bushes, hedges |
| car | up to 5 m long and 1.9 m high, a cabin in the middle or towards the rear |
| truck | a cab and a higher box or bed behind it |
| bus | one long high body with rows of windows |
| pedestrian | an upright person on foot |
| two-wheeler | a bicycle or motorcycle, with or without a rider |
"""

CLASSES: tuple[str, ...] = (
    "road",
    "pavement",
    "terrain",
    "building",
    "barrier",
    "pole",
    "traffic sign",
    "traffic light",
    "trunk",
    "vegetation",
    "car",
    "truck",
    "bus",
    "pedestrian",
    "two-wheeler",
)
LABELS: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
IGNORED = -1
SKY = "sky"
"""Name of what is behind everything; its label is `IGNORED`."""
BOXED = ("car", "truck", "bus", "pedestrian", "two-wheeler")
"""Classes of things that move or could: they have boxes."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (152, 251, 152),
    (90, 90, 90),
    (190, 153, 153),
    (220, 220, 220),
    (250, 220, 0),
    (255, 140, 20),
    (140, 86, 50),
    (20, 140, 35),
    (0, 60, 230),
    (70, 130, 180),
    (0, 200, 220),
    (220, 20, 60),
    (119, 11, 32),
)
"""One RGB colour (0 to 255) a class, for pictures of labels."""
