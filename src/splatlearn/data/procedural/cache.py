"""Parts of procedural worlds on disk: made once from their seed, read many times; whole or not there at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from splatlearn.config import user_cache
from splatlearn.data.progress import progress
from splatlearn.errors import UserError

_LOOK = 0.5
"""Seconds between looks at how much there is."""


def cache_root() -> Path:
    """`$SPLATLEARN_CACHE`, else `$XDG_CACHE_HOME/splatlearn`, else `~/.cache/splatlearn`."""
    own = os.environ.get("SPLATLEARN_CACHE")
    return Path(own).expanduser() if own else user_cache()


def cores() -> int:
    """Processors that this process may use, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """Everything that the bytes of a part follow from, besides its index; worlds add their settings."""

    seed: int

    def digest_of(self, version: int) -> str:
        """Short hash of the settings and of the version of the code that makes parts of them."""
        text = json.dumps({"version": version, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Workshop:
    """Makes the parts of one procedural world.

    Args:
        world: name of the world (`rooms`), for folders and messages.
        part: name of one part (`room`).
        version: raised whenever the same settings make other bytes.
        module: where a worker finds this workshop as `WORKSHOP`, and its `Recipe`.
        fill: writes part (recipe, index) into an empty folder.
    """

    world: str
    part: str
    version: int
    module: str
    fill: Callable[[Any, int, Path], None]

    def root(self, recipe: BaseRecipe) -> Path:
        """Where the parts of a recipe are, made where it is missing.

        Raises:
            UserError: the cache folder cannot be written.
        """
        name = f"v{self.version}-seed{recipe.seed}-{recipe.digest_of(self.version)}"
        root = cache_root() / self.world / name
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the cache {root}: {error}; set SPLATLEARN_CACHE to another folder"
            ) from error
        return root

    def folder(self, root: Path, index: int) -> Path:
        """Where a part lies under the folder of its settings."""
        return root / f"{self.part}-{index:04d}"

    def ensure(self, recipe: BaseRecipe, count: int, workers: int) -> list[Path]:
        """The folders of parts 0 to count - 1; missing ones are made, and progress is shown.

        Args:
            recipe: what they follow from.
            count: parts.
            workers: processes that make parts; the bytes do not depend on it.

        Raises:
            UserError: the cache folder cannot be written, or a worker failed.
        """
        root = self.root(recipe)
        folders = [self.folder(root, index) for index in range(count)]
        missing = [index for index in range(count) if not folders[index].is_dir()]
        share = min(workers, (len(missing) + 1) // 2)
        with progress(f"making {self.world}", len(missing)) as tell:
            if share <= 1:
                for done, index in enumerate(missing, 1):
                    self.make(recipe, index, folders[index])
                    tell(done)
            else:
                with ThreadPoolExecutor(share) as pool:
                    jobs = [pool.submit(self._in_process, recipe, root, missing[k::share]) for k in range(share)]
                    while wait(jobs, _LOOK).not_done:
                        tell(sum(folders[index].is_dir() for index in missing))
                for job in jobs:
                    job.result()
        return folders

    def make(self, recipe: BaseRecipe, index: int, folder: Path) -> None:
        """Makes one part in a temporary folder beside `folder` and renames it; a folder that exists is kept."""
        if folder.is_dir():
            return
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self.fill(recipe, index, temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _in_process(self, recipe: BaseRecipe, root: Path, indices: Sequence[int]) -> None:
        """Makes parts in a fresh interpreter: works from notebooks, from daemons, and without a guarded main module."""
        fields = {"module": self.module, "recipe": asdict(recipe), "root": str(root), "indices": list(indices)}
        package_parent = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "splatlearn.data.procedural.worker"]
        order = json.dumps(fields)
        done = subprocess.run(command, input=order, text=True, capture_output=True, env=environment, check=False)
        if done.returncode:
            raise UserError(f"making {self.world} failed:\n{done.stderr[-2000:]}")


def save_arrays(path: Path, **arrays: Any) -> None:
    """A compressed npz whose bytes depend on the arrays alone (numpy stamps no time on members)."""
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
