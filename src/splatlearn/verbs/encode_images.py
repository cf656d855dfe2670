"""`encode` for images: a grid of tokens of every image, of files on disk or of arrays.

Legend: V views, H W pixels, h w tokens of a grid, C channels. A size is (width, height).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from splatlearn.verbs.encode import Job, Levels, Plan, flat_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from splatlearn.data.scene import Scene, Source
    from splatlearn.encoders.base import ImageEncoder

Size = tuple[int, int]


class View(NamedTuple):
    """One image of a scene, which may be all that the scene is."""

    scene: "Scene"
    number: int
    name: str

    def read(self) -> "Tensor":
        """(3 H W) in [0, 1] at its native size; raises `Rejected`."""
        return self.scene.images([self.number])[0]


def plan_images(encoder: "ImageEncoder", source: "Source", levels: Levels, size: Size | None, every: int) -> Plan:
    """A file an image, or a file a view of a recording.

    Raises:
        UserError: there are no images, none can be read, or the patch does not divide the size.
    """
    from splatlearn.tasks.base import chosen_levels

    where = f"--data {source.name}"
    if size is not None:
        check_multiple(size, encoder.patch, f"encoder {encoder.name!r}", "--size")
    views = views_of(source.scenes(), every)
    _check_readable(views, where)
    chosen = chosen_levels(encoder, levels)
    jobs = [Job(view.name, partial(_arrays, encoder, view, chosen, size)) for view in views]
    width = sum(encoder.channels[level] for level in chosen)
    facts = {"patch": encoder.patch, "level_numbers": list(chosen)}
    damaged = {name.strip("/").replace("/", "-"): reason for name, reason in source.reader().skipped}
    return Plan(jobs, width, facts, "tokens lie in grids (h w C)", damaged)


def views_of(scenes: "Sequence[Scene]", every: int = 1) -> list[View]:
    """Each n-th view of every recording, and each n-th photograph, in order, named as one file each."""
    views, photographs = [], 0
    for scene in scenes:
        name = flat_name(scene)
        if not len(scene.cameras):
            views += [View(scene, 0, name)] if photographs % every == 0 else []
            photographs += 1
            continue
        labels = scene.camera_names or [f"{int(frame):06d}" for frame in scene.cameras["frame"]]
        views += [View(scene, view, f"{name}-{labels[view]}") for view in range(0, len(labels), every)]
    return views


def nearest_multiple(size: tuple[float, float], patch: int) -> Size:
    """The size whose sides are the multiples of the patch that are nearest, one patch at least."""
    width, height = (max(1, int(side / patch + 0.5)) * patch for side in size)
    return width, height


def check_multiple(size: Size, patch: int, owner: str, flag: str) -> None:
    """Raises: ConfigError: the patch does not divide both sides."""
    from splatlearn.errors import ConfigError

    if any(side < patch or side % patch for side in size):
        wide, high = nearest_multiple(size, patch)
        raise ConfigError(
            f"{flag} {size[0]},{size[1]}: multiples of the patch of {patch} pixels of {owner} are needed, such as "
            f"{wide},{high}"
        )


class LoadedImageEncoder:
    """A frozen image encoder for numpy arrays and files.

    Attributes:
        patch: pixels between tokens.
        channels: width of each level, shallow to deep.
    """

    def __init__(self, encoder: "ImageEncoder", device: str = "auto") -> None:
        from splatlearn.tasks.encoders import pick_device

        self.module = encoder.eval().requires_grad_(False).to(pick_device(device))
        self.patch, self.channels = encoder.patch, encoder.channels

    def encode(
        self, images: "np.ndarray | str | Path", levels: Levels = "finest", size: Size | None = None
    ) -> "np.ndarray":
        """Token grids of one image, or of several of one size.

        Args:
            images: (H W 3) or (V H W 3) RGB, uint8 or floats in [0, 1], or the path of a file.
            levels: the last level's features, or all levels side by side, shallow to deep.
            size: width and height to which images are resized, multiples of the patch; the nearest ones by default.

        Returns:
            (h w C) float32 of one image, (V h w C) of several.

        Raises:
            UserError: no such file or not an image, another shape, values that are not finite or out of range, or a
                size that the patch does not divide.
        """
        from splatlearn.tasks.base import chosen_levels

        pixels, single = _pixels(images)
        grids = encode_images(self.module, pixels, chosen_levels(self.module, levels), size)[0].numpy()
        return grids[0] if single else grids

    def summary(self, images: "np.ndarray | str | Path", size: Size | None = None) -> "np.ndarray":
        """(C) float32 class token of one image, or the mean of its last level; (V C) of several. As `encode`."""
        pixels, single = _pixels(images)
        summaries = encode_images(self.module, pixels, (), size)[1].numpy()
        return summaries[0] if single else summaries


def encode_images(
    encoder: "ImageEncoder", pixels: "Tensor", levels: tuple[int, ...], size: Size | None = None
) -> "tuple[Tensor, Tensor]":
    """(V h w C) grids of the chosen levels side by side and (V C) summaries, float32 on the host.

    Args:
        encoder: frozen.
        pixels: (V 3 H W) in [0, 1].
        levels: numbers, shallow to deep; without any, the grids have no channels.
        size: width and height to which images are resized; by default the nearest multiples of the patch.

    Raises:
        UserError: the patch does not divide the size.
    """
    import torch

    from splatlearn.tasks.encoders import device_of

    patch, views = encoder.patch, len(pixels)
    if size is not None:
        check_multiple(size, patch, f"encoder {encoder.name!r}", "size")
    width, height = size or nearest_multiple((pixels.shape[3], pixels.shape[2]), patch)
    grid = (width // patch, height // patch)
    with torch.no_grad():
        maps = encoder((pixels if views else pixels.new_zeros(1, *pixels.shape[1:])).to(device_of(encoder)), grid)
    shape = maps.levels[-1].shape[2:]
    chosen = [maps.levels[level].permute(0, 2, 3, 1) for level in levels]
    grids = torch.cat(chosen, -1) if chosen else pixels.new_zeros(len(maps.summary), *shape, 0)
    return grids[:views].float().cpu().contiguous(), maps.summary[:views].float().cpu()


def _arrays(encoder: "ImageEncoder", view: View, levels: tuple[int, ...], size: Size | None) -> "dict[str, np.ndarray]":
    import numpy as np

    pixels = view.read()
    grids, summaries = encode_images(encoder, pixels[None], levels, size)
    high, wide = grids.shape[1:3]
    return {
        "features": grids[0].numpy(),
        "summary": summaries[0].numpy(),
        "size": np.array([wide * encoder.patch, high * encoder.patch]),
        "native": np.array([pixels.shape[2], pixels.shape[1]]),
        "patch": np.array(encoder.patch),
    }


def _check_readable(views: list[View], where: str) -> None:
    """Whether a single image can be read, so that nothing is begun in vain."""
    from splatlearn.data.scene import Rejected
    from splatlearn.errors import BadData, MissingData

    problems = []
    for view in views:
        try:
            view.read()
            return
        except MissingData as error:
            raise MissingData(f"{where}: the encoder takes images, and {error}") from error
        except Rejected as error:
            problems.append(str(error))
    raise BadData(f"{where}: nothing can be read: {'; '.join(problems[:4])}")


def _pixels(images: Any) -> "tuple[Tensor, bool]":
    """(V 3 H W) in [0, 1], and whether it was one image."""
    import numpy as np
    import torch

    from splatlearn.data.imagery import UnreadableImage, read_upright
    from splatlearn.errors import BadData, UserError

    if isinstance(images, str | Path):
        try:
            images = read_upright(Path(images).expanduser())
        except UnreadableImage as error:
            raise BadData(f"{images}: {error}") from error
    array = np.asarray(images)
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        raise UserError(f"encode: images must be (H, W, 3) or (V, H, W, 3), RGB; got {array.shape}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"encode: images must be uint8, or floats in [0, 1]; got {array.dtype}")
    values = np.ascontiguousarray(array[None] if array.ndim == 3 else array, dtype=np.float32)
    if array.dtype == np.uint8:
        values = values / 255
    if not np.isfinite(values).all():
        raise UserError(f"encode: images have {int((~np.isfinite(values)).sum())} values that are not finite")
    if values.size and (values.min() < 0 or values.max() > 1):
        raise UserError(f"encode: images must lie in [0, 1] or be uint8; got {values.min():g} to {values.max():g}")
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(), array.ndim == 3
