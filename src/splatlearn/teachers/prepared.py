"""A teacher's maps on disk: computed once, read with the frames. Legend: V views, C channels, h w tokens.

A folder holds `maps.json` (teacher, its digest and settings, size of the images) and, a view,
`SCENE/VIEW.safetensors`: `map` (C h w) and `summary` (C) in float16, and the raw `frame` number of the view.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from splatlearn.config import changed
from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import BadData, UserError
from splatlearn.structures import Frames, Images
from splatlearn.teachers.base import Teacher

FACTS = "maps.json"
T = TypeVar("T", bound=Images)


@dataclass(frozen=True, kw_only=True)
class PreparedMaps:
    """A folder of maps of one teacher, for images of one size; it travels to loader workers as it is.

    Args:
        folder: where.
        name: of the teacher.
        size: (width, height) of the images.
        grid: (width, height) of the maps, tokens.
        channels: C.
        teacher: what the teacher's features follow from, `Teacher.identity`.
        info: about the teacher, for the record.
    """

    folder: Path
    name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    channels: int
    teacher: Mapping[str, Any]
    info: Mapping[str, Any]

    @classmethod
    def of(cls, teacher: Teacher, size: tuple[int, int], folder: Path) -> Self:
        """Those that a teacher would give; nothing is written.

        Raises:
            UserError: the teacher gives several levels, or its patch does not divide the size.
        """
        if len(teacher.info.channels) != 1:
            raise UserError(f"{teacher.name}: one level is prepared, and it gives {len(teacher.info.channels)}")
        return cls(
            folder=folder,
            name=teacher.name,
            size=size,
            grid=teacher.tokens(size),
            channels=teacher.info.channels[0],
            teacher=teacher.identity(),
            info=asdict(teacher.info),
        )

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Those of a folder.

        Raises:
            BadData: it is not one of prepared maps.
        """
        folder = Path(folder).expanduser()
        try:
            facts = json.loads((folder / FACTS).read_text())
            size, grid = tuple(facts.pop("size")), tuple(facts.pop("grid"))
            return cls(folder=folder, size=size, grid=grid, **facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadData(
                f"{folder}: no prepared maps, {FACTS} cannot be read ({error}); `splatlearn prepare` makes them"
            ) from error

    @property
    def bytes_per_view(self) -> int:
        """Of the map of one view."""
        return 2 * self.channels * self.grid[0] * self.grid[1]

    def check(self, teacher: Teacher, size: tuple[int, int]) -> None:
        """Compares with a teacher that is to be read from here.

        Raises:
            UserError: it is another teacher, has other weights or settings, or is for images of another size.
        """
        other = PreparedMaps.of(teacher, size, self.folder)
        if lines := changed(self._facts(), other._facts()):
            raise UserError(
                f"{self.folder}: maps of another teacher or size (prepared -> needed): {'; '.join(lines)}; prepare "
                "those that are needed, in another folder"
            )

    def begin(self) -> None:
        """Writes `maps.json`, where there is none.

        Raises:
            UserError: the folder holds other maps.
        """
        if (self.folder / FACTS).exists():
            if lines := changed(PreparedMaps.read(self.folder)._facts(), self._facts()):
                raise UserError(
                    f"{self.folder}: holds other maps (there -> now): {'; '.join(lines)}; name another folder"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {**self._facts(), "info": dict(self.info)}
        _replace(self.folder / FACTS, (json.dumps(facts, indent=2) + "\n").encode())

    def path(self, scene: str, view: int | str) -> Path:
        """The file of a view: its number in the scene, or, of a rig, the camera's name (`Scene.view_key`)."""
        name = view if isinstance(view, str) else f"{view:06d}"
        return self.folder / quote(scene, safe=" ") / f"{quote(name, safe=' ')}.safetensors"

    def write(self, scene: str, view: int | str, maps: FeatureMaps, frame: int) -> None:
        """Stores the last level and the summary of a single view, whole or not at all.

        Args:
            scene: its name.
            view: its `Scene.view_key`.
            maps: of this one view.
            frame: raw number of the view, that it is known by.

        Raises:
            UserError: features that float16 cannot hold.
        """
        tensors = {"map": maps.levels[-1][0].half().cpu().contiguous(), "summary": maps.summary[0].half().cpu()}
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise UserError(f"{scene}, view {view}: {self.name} gives features that are not finite in float16")
        path = self.path(scene, view)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, save({**tensors, "frame": torch.tensor(frame)}))

    def attach(self, frames: T, scene: str, views: Sequence[int | str]) -> T:
        """Frames with attributes `maps/NAME` (V C h w) and `summary/NAME` (V C), float16: `Teacher` takes those first.

        Args:
            frames: V images of the size that was prepared, not cropped, flipped or turned.
            scene: that they are of.
            views: the `Scene.view_key` of each.

        Raises:
            BadData: a view was not prepared, or its file does not fit.
            UserError: the images have another size.
        """
        size = (frames.images.shape[3], frames.images.shape[2])
        if size != self.size:
            raise UserError(f"{self.folder}: prepared for images of {self.size}, got {size} (width, height)")
        found = [self._view(scene, view) for view in views]
        if isinstance(frames, Frames) and "frame" in frames.cameras:
            now, then = frames.cameras["frame"].tolist(), [int(tensors["frame"]) for tensors in found]
            if now != then:
                raise BadData(
                    f"{self.folder}: views {list(views)} of {scene} were frames {then} when they were prepared, and "
                    f"are {now}: the reader's options differ; prepare the maps anew"
                )
        shapes = {"map": (self.channels, self.grid[1], self.grid[0]), "summary": (self.channels,)}
        stacked = {
            part: torch.stack([tensors[part] for tensors in found]) if found else torch.zeros(0, *shape).half()
            for part, shape in shapes.items()
        }
        return frames.with_attributes(
            **{f"maps/{self.name}": stacked["map"], f"summary/{self.name}": stacked["summary"]}
        )

    def _view(self, scene: str, view: int | str) -> dict[str, torch.Tensor]:
        path = self.path(scene, view)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BadData(
                f"{path}: no map of view {view} of {scene} ({type(error).__name__}); run the same `splatlearn prepare` "
                "again, which makes what is missing"
            ) from error
        if tensors["map"].shape != (self.channels, self.grid[1], self.grid[0]):
            raise BadData(f"{path}: a map of {tuple(tensors['map'].shape)}, not of the folder's size; remove the file")
        return tensors

    def _facts(self) -> dict[str, Any]:
        """What has to agree."""
        facts = {"name": self.name, "size": list(self.size), "grid": list(self.grid), "channels": self.channels}
        return {**facts, "teacher": dict(self.teacher)}


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
