"""Progress of long work on data, on standard error: a bar where somebody watches, else a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE = 2.0
"""Seconds in which nothing is said: most work on data is over by then."""
PLAIN_SECONDS = 10.0
"""Time between lines where the output is no terminal."""


class Tell(Protocol):
    """Takes the number of things that are done."""

    def __call__(self, done: int) -> None:
        """Shows it, when it is time to."""
        ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Tell]:
    """Progress of `total` things, from the first that is told after `PATIENCE` on.

    Args:
        what: is done, for the reader (`making rooms`).
        total: number of things.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True)
    task, begun, last = bar.add_task(what, total=total), time.monotonic(), -PLAIN_SECONDS

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - begun < PATIENCE:
            return
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done)
        elif now - last >= PLAIN_SECONDS:
            last = now
            console.print(f"{what}: {done} of {total}", markup=False, highlight=False)

    try:
        yield tell
    finally:
        bar.live.stop()
