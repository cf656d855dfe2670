"""What a run says about itself: one JSON line a step, a progress display, optional trackers, and stopwatches."""

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from splatlearn.engine.checkpoint import replace_file
from splatlearn.errors import UserError

PLAIN_SECONDS = 10.0
"""Time between progress lines where the output is no terminal."""


class JsonLines:
    """One JSON object a line; a line is written whole or not at all by one write.

    Args:
        path: file, made when the first line is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line and hands it to the operating system."""
        with self.path.open("ab", buffering=0) as file:
            file.write(_line(record).encode())

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines in order; a half-written last line is left out."""
        if self.path.exists():
            with self.path.open() as file:
                for line in file:
                    if line.endswith("\n"):
                        yield json.loads(line)

    def cut(self, step: int) -> None:
        """Removes the lines of `step` and later, and a half-written last line; the rest stays byte for byte."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        if kept != lines:
            replace_file(self.path, "".join(kept))

    def amend(self, values: Mapping[str, Any]) -> None:
        """Adds values to the last line; the rest stays byte for byte."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        if lines:
            lines[-1] = _line({**json.loads(lines[-1]), **values})
            replace_file(self.path, "".join(lines))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for them."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Tracker(Protocol):
    """Takes the numbers of a step elsewhere."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step by name."""
        ...

    def close(self) -> None:
        """After the last step."""
        ...


class TensorBoard:
    """Event files in `folder`, those of `start` and later steps replaced (extra `track`)."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed: pip install 'splatlearn[track]'") from error
        self.writer = SummaryWriter(str(folder), purge_step=start or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project (extra `track`).

    Its id is random and kept in the folder: a run is continued under it, and folders of one name (`a/seed0`,
    `b/seed0`) are different runs.
    """

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("wandb is not installed: pip install 'splatlearn[track]'") from error
        stored = folder / "wandb-id"
        if not stored.exists():
            replace_file(stored, uuid.uuid4().hex)
        self.run = wandb.init(
            project=project,
            name=folder.name,
            id=stored.read_text(),
            dir=str(folder),
            config=dict(settings),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step by name."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the upload."""
        self.run.finish()


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a log line under names joined by slashes."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            flat[prefix + name] = float(value)
    return flat


class Display:
    """Progress on standard error: a bar with rate, loss and time left, or a line now and then where nobody watches.

    Args:
        steps: of the whole run.
        start: first step of this process.
        active: false shows nothing (other ranks than 0).
    """

    def __init__(self, steps: int, start: int = 0, active: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=not active)
        self.steps, self.start = steps, start
        self.begun, self.last_line = time.monotonic(), -PLAIN_SECONDS
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("", total=steps, completed=start, numbers="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Shows that `step` is done, with a few of its numbers."""
        done, now = step + 1, time.monotonic()
        rate = (done - self.start) / max(now - self.begun, 1e-9)
        numbers = "  ".join([*(f"{name} {value:.4g}" for name, value in values.items()), f"{rate:.2f} steps/s"])
        self.progress.update(self.task, completed=done, numbers=numbers)
        if not self.console.is_terminal and (now - self.last_line >= PLAIN_SECONDS or done == self.steps):
            self.last_line = now
            left = (self.steps - done) / rate
            self.message(f"step {done}/{self.steps}  {numbers}  {left:.0f} s left")

    def message(self, text: str) -> None:
        """A line of its own above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Stopwatch:
    """Splits a step's time into parts; on a GPU by events, which cost no waiting until `seconds` is asked.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begins the first part."""
        self.marks = [("", self._now())]

    def lap(self, name: str) -> None:
        """Ends the part `name`."""
        self.marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds per part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {
            name: self._between(before, after)
            for (_, before), (name, after) in zip(self.marks, self.marks[1:], strict=False)
        }

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self.device.type == "cuda" else after - before


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use so far, in units of 2^20 bytes: of the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
