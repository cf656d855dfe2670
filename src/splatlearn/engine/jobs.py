"""Many jobs that know nothing of each other: run at the same time, tried again, and written down.

What runs a job is a `Backend`: this process or processes of this machine (`jobs_local.py`), or a Ray cluster
(`jobs_ray.py`). One that fails, or whose process dies, is told in its status; the others go on.
"""

import json
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from splatlearn.engine.checkpoint import replace_file
from splatlearn.errors import UserError

State = Literal["waiting", "running", "done", "failed", "stopped"]
Work = Callable[[int], Mapping[str, float]]
"""What a job does: gets the number of the attempt, from 1, and returns metrics."""


@dataclass(frozen=True)
class Job:
    """Something to do.

    Args:
        name: what it is called, unlike the others.
        work: what it does; it travels to another process, so a function of a module, or a `functools.partial` of one.
    """

    name: str
    work: Work


@dataclass(frozen=True, kw_only=True)
class Status:
    """What became of a job.

    Args:
        name: of the job.
        state: `stopped` is one that a signal ended, or that was not begun for that reason.
        attempts: how often it was begun.
        seconds: from its first beginning.
        metrics: what its work returned.
        error: what was wrong, and where in the program if that was not the user's to mend.
    """

    name: str
    state: State = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Reply:
    """How one attempt ended; unlike an exception it always travels between processes."""

    state: State
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


class Backend(Protocol):
    """What runs the attempts.

    Attributes:
        slots: attempts at the same time.
    """

    slots: int

    def submit(self, work: Work, attempt: int) -> "Future[Reply]":
        """Begins `attempt_at(work, attempt)`; the future raises when whatever ran it died."""
        ...

    def stop(self) -> None:
        """Asks what is running to end, soon and in order."""
        ...


def attempt_at(work: Work, attempt: int, threads: int | None = None) -> Reply:
    """One attempt in this process. What goes wrong is told, not raised, but for Ctrl-C.

    Args:
        work: of the job.
        attempt: its number, from 1.
        threads: that torch may use here; None leaves them as they are.
    """
    try:
        if threads:
            import torch

            torch.set_num_threads(threads)
        return Reply("done", dict(work(attempt)))
    except SystemExit as error:
        return Reply("stopped", error=str(error))
    except UserError as error:
        return Reply("failed", error=str(error))
    except Exception as error:  # the other jobs go on, whatever this is
        return Reply("failed", error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def run_jobs(
    jobs: Sequence[Job],
    backend: Backend,
    *,
    retries: int = 1,
    record: Path | None = None,
    watch: Callable[[Status], None] | None = None,
) -> list[Status]:
    """Runs all jobs, in their order where there is a choice.

    A job that fails is begun again at once, `retries` times at most. SIGTERM is handed on to what is running, and
    nothing else is begun.

    Args:
        jobs: what is to be done.
        backend: what does it.
        retries: attempts after the first.
        record: a JSON file, rewritten whenever a status changes: a list of statuses.
        watch: gets each status that is final.

    Returns:
        A status a job, in their order.
    """
    statuses = {job.name: Status(name=job.name) for job in jobs}
    waiting, running = deque(jobs), dict[Future[Reply], Job]()
    begun: dict[str, float] = {}

    def note(name: str, **changes: Any) -> None:
        seconds = time.perf_counter() - begun.setdefault(name, time.perf_counter())
        status = statuses[name] = replace(statuses[name], seconds=round(seconds, 3), **changes)
        if record is not None:
            text = json.dumps([asdict(one) for one in statuses.values()], indent=2)
            replace_file(record, text + "\n")
        if watch is not None and status.state not in ("waiting", "running"):
            watch(status)

    with _handing_on(backend) as stopping:
        while waiting or running:
            while waiting and len(running) < backend.slots and not stopping.is_set():
                job = waiting.popleft()
                attempt = statuses[job.name].attempts + 1
                note(job.name, state="running", attempts=attempt)
                running[backend.submit(job.work, attempt)] = job
                if stopping.is_set():  # the signal came just before
                    backend.stop()
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, reply = running.pop(future), _reply(future, stopping.is_set())
                again = reply.state == "failed" and statuses[job.name].attempts <= retries
                note(job.name, state="waiting" if again else reply.state, metrics=reply.metrics, error=reply.error)
                if again:
                    waiting.appendleft(job)
                if reply.state == "stopped":
                    stopping.set()
        for job in waiting:
            note(job.name, state="stopped")
    return list(statuses.values())


def require_done(statuses: Sequence[Status]) -> None:
    """Complains unless all jobs are done.

    Raises:
        SystemExit: some were stopped by a signal.
        UserError: some failed; with what was wrong.
    """
    if any(status.state == "stopped" for status in statuses):
        raise SystemExit(143)
    failed = [f"{status.name}: {status.error}" for status in statuses if status.state == "failed"]
    if failed:
        raise UserError("\n".join(failed))


def table(statuses: Sequence[Status], columns: Mapping[str, str]) -> str:
    """A line a job: name, state, attempts, minutes, metrics; then a line for each error.

    Args:
        statuses: of `run_jobs`.
        columns: metric -> heading; one that no job has is left out.
    """
    shown = [name for name in columns if any(name in status.metrics for status in statuses)]
    rows = [["name", "state", "attempts", "minutes", *(columns[name] for name in shown)]]
    for one in statuses:
        cells = [_cell(one.metrics[name]) if name in one.metrics else "-" for name in shown]
        rows.append([one.name, one.state, str(one.attempts), f"{one.seconds / 60:.1f}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{one.name}: {first_line(one.error)}" for one in statuses if one.error)])


def first_line(text: str) -> str:
    """Of an error."""
    return text.splitlines()[0] if text else ""


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _reply(future: "Future[Reply]", stopping: bool) -> Reply:
    """What the attempt said, or that it could say nothing any more."""
    try:
        return future.result()
    except Exception as error:  # every backend has its own for this
        told = f"its process died, out of memory perhaps ({type(error).__name__}: {first_line(str(error))})"
        return Reply("stopped", error="stopped by SIGTERM") if stopping else Reply("failed", error=told)


@contextmanager
def _handing_on(backend: Backend) -> Iterator[threading.Event]:
    """SIGTERM stops the backend, and so does an exception, Ctrl-C say; the event says that the signal came."""
    stopping, main = threading.Event(), threading.current_thread() is threading.main_thread()

    def hand_on(_: int, __: FrameType | None) -> None:
        stopping.set()
        backend.stop()

    before = signal.signal(signal.SIGTERM, hand_on) if main else None
    try:
        yield stopping
    except BaseException:
        backend.stop()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
