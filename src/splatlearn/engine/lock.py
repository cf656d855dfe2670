"""One process at a time in a run folder."""

import os
import warnings
from pathlib import Path
from typing import BinaryIO, Self

from splatlearn.errors import UserError

LOCK = ".lock"


class FolderLock:
    """An advisory lock on `FOLDER/.lock`, a file that goes when the lock is left; a process that dies leaves it, too.

    Where the system has no such locks, a warning says so, and nobody is kept out.

    Attributes:
        held: whether it was taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.held = folder, False
        self._file: BinaryIO | None = None

    def take(self, new: bool = False) -> None:
        """Keeps other processes out, until `with` is left.

        Args:
            new: make the folder, too; it must not be there.

        Raises:
            UserError: another process has the lock, or made the folder first.
        """
        if new:
            try:
                self.folder.mkdir(parents=True)
            except FileExistsError as error:
                raise UserError(f"--run {self.folder}: another process began here meanwhile") from error
        try:
            self._file = _locked(self.folder / LOCK)
        except BlockingIOError as error:
            raise UserError(
                f"--run {self.folder}: another process runs here; wait until it ends, or name another folder"
            ) from error
        except (ImportError, OSError) as error:
            warnings.warn(
                f"{self.folder} cannot be locked ({error}): see to it that no other process runs there", stacklevel=2
            )
        self.held = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._file.close()
        self.held, self._file = False, None


def _locked(path: Path) -> BinaryIO:
    """The file, made and locked. One that its holder removed meanwhile keeps nobody out, so it is made again."""
    import fcntl  # not on Windows

    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
