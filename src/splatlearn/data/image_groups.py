"""Groups of images, one for each teacher's domain, drawn equally often. Legend: B images, T teachers, H W pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from splatlearn.config import require
from splatlearn.data.lazy_scenes import in_group, joined
from splatlearn.data.photo_augment import BLUR, PhotoAugmentation, augment_photo, centre_photo
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Scene, Source
from splatlearn.errors import BadData, UserError
from splatlearn.structures import Batch, Images


@dataclass(frozen=True, kw_only=True, eq=False)
class Photos(Batch):
    """Images, and whose they are.

    Args:
        images: one an item, with `group` (B) int64, number of the teacher whose domain it is of, -1 = of none's; and
            `coins` (B T) float32 in [0, 1), for teacher dropping.
    """

    images: Images


@dataclass(frozen=True, kw_only=True)
class ImageGroups:
    """Images by group; a `Data` of `Photos`. Sources with cameras give one random view of a scene.

    Args:
        groups: name -> where its images are. A group that is named like a teacher is that teacher's domain.
        teachers: names of the T teachers, in the order of the losses.
        size: width and height of the samples, pixels; smaller images are enlarged.
        augmentation: what is changed at random in training.
        augment: whether it is; otherwise the middle of each image is taken.
        balance: `teacher` draws all groups equally often, smaller ones over and over (DUNE); `size` every image.
    """

    groups: Mapping[str, tuple[Source, ...]]
    teachers: tuple[str, ...]
    size: tuple[int, int]
    augmentation: PhotoAugmentation = field(default_factory=PhotoAugmentation)
    augment: bool = True
    balance: Literal["teacher", "size"] = "teacher"

    def __post_init__(self) -> None:
        require(
            {
                "groups: at least one is needed": any(self.groups.values()),
                f"size: at least {BLUR}x{BLUR} pixels are needed, got {self.size[0]}x{self.size[1]}": (
                    min(self.size) >= BLUR
                ),
            }
        )

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Scenes of `train` or `val` by group: split as the data say, or else at random.

        Raises:
            BadData: no images, or too few to split; names every such group.
        """
        groups, wrong = {}, []
        for name, sources in self.groups.items():
            try:
                groups[name] = joined([in_group(_split(source, split), name) for source in sources])
            except UserError as error:
                wrong.append(f"group {name!r}: {error}")
        if wrong:
            raise BadData("\n".join(wrong))
        return {name: scenes for name, scenes in groups.items() if scenes}

    def shares(self) -> Mapping[str, float]:
        """Equal, in training by teacher; else by size."""
        return dict.fromkeys(self.groups, 1.0) if self.augment and self.balance == "teacher" else {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Photos:
        """An image of the scene, cropped and changed in colour, and its coins.

        Raises:
            Rejected: it cannot be decoded.
        """
        views = len(scene.cameras)
        view = int(rng.integers(views)) if views else 0
        coins = torch.from_numpy(rng.random((1, len(self.teachers)), dtype=np.float32))
        (image,) = scene.images([view])
        if self.augment:
            image = augment_photo(image, self.size, self.augmentation, rng)
        else:
            image = centre_photo(image, self.size)
        number = self.teachers.index(scene.group) if scene.group in self.teachers else -1
        images = Images(images=image[None], attributes={"group": torch.tensor([number]), "coins": coins})
        return Photos(names=(f"{scene.name}: view {view}" if views else scene.name,), images=images)


def _split(source: Source, split: str) -> Sequence[Scene]:
    scenes = source.scenes()
    try:
        return split_scenes(scenes, split)
    except BadData as error:
        raise BadData(f"{source.name}: {error}") from None
