"""Rooms on disk: made once from their seed, read many times.

A room is a folder: `color/000000.jpg`, `depth/000000.png` (16 bit, millimetres), `instance/000000.png` (16 bit),
`cameras.npz`, `cloud.npz`, `boxes.npz`, `mesh.npz`. Folders appear whole or not at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

<<<<<<< HEAD
from splatlearn.data.procedural.cache import BaseRecipe, Workshop, save_arrays
=======
from splatlearn.config import user_cache
from splatlearn.data.progress import progress
from splatlearn.errors import UserError
>>>>>>> main

if TYPE_CHECKING:
    from splatlearn.data.rooms.capture import Recording
    from splatlearn.data.rooms.cloud import Cloud
    from splatlearn.data.rooms.world import World

VERSION = 5
"""Raised whenever the same settings make other bytes."""
LENGTH_UNIT = 0.001
"""Metres a unit of stored depths and stored cloud coordinates."""


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Everything that the bytes of a room follow from, besides its index."""

    frames: int
    size: tuple[int, int]
    points: int
    noise: float
    side: tuple[float, float]

    @property
    def digest(self) -> str:
        """Short hash of the settings and of this module's version."""
        return self.digest_of(VERSION)


<<<<<<< HEAD
def fill_room(recipe: Recipe, index: int, folder: Path) -> None:
    """Makes one room in an empty folder."""
=======
def cache_root() -> Path:
    """`$SPLATLEARN_CACHE`, else `$XDG_CACHE_HOME/splatlearn`, else `~/.cache/splatlearn`."""
    own = os.environ.get("SPLATLEARN_CACHE")
    return Path(own).expanduser() if own else user_cache()


def rooms_folder(recipe: Recipe) -> Path:
    """Where the rooms of a recipe are, made where it is missing.

    Raises:
        UserError: the cache folder cannot be written.
    """
    root = cache_root() / "rooms" / f"v{VERSION}-seed{recipe.seed}-{recipe.digest}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the cache {root}: {error}; set SPLATLEARN_CACHE to another folder") from error
    return root


def ensure(recipe: Recipe, count: int, workers: int) -> list[Path]:
    """The folders of rooms 0 to count - 1; missing ones are made, and progress is shown.

    Args:
        recipe: what they follow from.
        count: rooms.
        workers: processes that make rooms; the bytes do not depend on it.

    Raises:
        UserError: the cache folder cannot be written, or a worker failed.
    """
    root = rooms_folder(recipe)
    folders = [root / f"room-{index:04d}" for index in range(count)]
    missing = [index for index in range(count) if not folders[index].is_dir()]
    share = min(workers, (len(missing) + 1) // 2)
    with progress("making rooms", len(missing)) as tell:
        if share <= 1:
            for done, index in enumerate(missing, 1):
                make_room(recipe, index, folders[index])
                tell(done)
        else:
            with ThreadPoolExecutor(share) as pool:
                jobs = [pool.submit(_in_process, recipe, root, missing[k::share]) for k in range(share)]
                while wait(jobs, _LOOK).not_done:
                    tell(sum(folders[index].is_dir() for index in missing))
            for job in jobs:
                job.result()
    return folders


def _in_process(recipe: Recipe, root: Path, indices: Sequence[int]) -> None:
    """Makes rooms in a fresh interpreter: works from notebooks, from daemons, and without a guarded main module."""
    order = json.dumps({"recipe": asdict(recipe), "root": str(root), "indices": list(indices)})
    package_parent = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "splatlearn.data.rooms.worker"]
    done = subprocess.run(command, input=order, text=True, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"making rooms failed:\n{done.stderr[-2000:]}")


def make_rooms(recipe: Recipe, root: Path, indices: Sequence[int]) -> None:
    """Makes the rooms of these indices under `root`."""
    for index in indices:
        make_room(recipe, index, root / f"room-{index:04d}")


def make_room(recipe: Recipe, index: int, folder: Path) -> None:
    """Makes one room in a temporary folder beside `folder` and renames it; a folder that exists is kept."""
>>>>>>> main
    from splatlearn.data.rooms.capture import FIELD, record
    from splatlearn.data.rooms.cloud import sample_cloud
    from splatlearn.data.rooms.walk import walk
    from splatlearn.data.rooms.world import build

    seed = (recipe.seed, index)
    world = build((*seed, 0), recipe.side)
    poses = walk(world, np.random.default_rng((*seed, 1)), recipe.frames, FIELD)
    recording = record(world, poses, recipe.size, np.random.default_rng((*seed, 2)), recipe.noise)
    cloud = sample_cloud(world, poses, recipe.points, np.random.default_rng((*seed, 3)), recipe.noise)
    _write_frames(folder, recording)
    _write_arrays(folder, world, recording, cloud)


WORKSHOP = Workshop("rooms", "room", VERSION, __name__, fill_room)


def _write_frames(folder: Path, recording: "Recording") -> None:
    for name in ("color", "depth", "instance"):
        (folder / name).mkdir()
    for index in range(len(recording.poses)):
        Image.fromarray(recording.color[index]).save(folder / "color" / f"{index:06d}.jpg", quality=93, subsampling=0)
        for name in ("depth", "instance"):
            Image.fromarray(getattr(recording, name)[index]).save(folder / name / f"{index:06d}.png")


def _write_arrays(folder: Path, world: "World", recording: "Recording", cloud: "Cloud") -> None:
    boxes = world.boxes
    size = np.array(recording.color.shape[2:0:-1])
    save_arrays(folder / "cameras.npz", poses=recording.poses, intrinsics=recording.intrinsics, size=size)
    save_arrays(
        folder / "cloud.npz",
        xyz=np.round(cloud.xyz / LENGTH_UNIT).astype(np.int16),
        color=cloud.color,
        normal=np.round(cloud.normal * 127).astype(np.int8),
        instance=cloud.instance.astype(np.uint16),
    )
    save_arrays(
        folder / "boxes.npz",
        centers=boxes.centers.astype(np.float32),
        sizes=boxes.sizes.astype(np.float32),
        yaws=boxes.yaws.astype(np.float32),
        labels=boxes.labels.astype(np.int16),
    )
    save_arrays(
        folder / "mesh.npz",
        vertices=world.mesh.vertices.astype(np.float32),
        faces=world.mesh.faces.astype(np.int32),
        instance=world.mesh.instances.astype(np.uint16),
        color=_face_colors(world),
    )


def _face_colors(world: "World") -> NDArray[np.uint8]:
    """(F 3) mean colour of each triangle under its light."""
    from splatlearn.data.procedural.photograph import tone

    light = world.light[world.mesh.faces].mean(1)
    color = tone(world.sampler.mean[world.mesh.materials] * light * world.exposure)
    return np.clip(np.round(color * 255), 0, 255).astype(np.uint8)
